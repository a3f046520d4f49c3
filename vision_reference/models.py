"""Networks by name, for students and teachers alike."""

import torch
import torchvision
from torch import nn

from vision_reference.errors import UserError

# Their training forward pass returns auxiliary classifiers' outputs beside the logits; we build them without.
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


def classification_models() -> list[str]:
    """Names of torchvision's classification networks."""
    return torchvision.models.list_models(module=torchvision.models)


def build_model(name: str, num_classes: int) -> nn.Module:
    """A freshly initialized torchvision classification network.

    Raises:
        UserError: torchvision has no classification network of that name.
    """
    if name not in classification_models():
        near = [other for other in classification_models() if other.split("_")[0][:5] == name[:5]]
        hint = ", ".join(near[:8]) or "resnet18, resnet50, convnext_tiny, mobilenet_v2, efficientnet_b0"
        raise UserError(f"unknown model '{name}'; allowed: torchvision's classification models, such as {hint}")
    options = {"aux_logits": False, "init_weights": True} if name in _WITH_AUXILIARY_HEADS else {}
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)


def find_weights(name: str) -> torchvision.models.WeightsEnum | None:
    """The torchvision weights called ``name`` (such as ResNet50_Weights.IMAGENET1K_V2); None if it is no such name.

    Raises:
        UserError: the name has the form of one, but torchvision has no such weights.
    """
    if "_Weights." not in name or "/" in name:
        return None
    try:
        return torchvision.models.get_weight(name)
    except ValueError:
        raise UserError(
            f"torchvision has no weights '{name}'; expected a name such as ResNet50_Weights.IMAGENET1K_V2"
        ) from None


def fetch_weights(weights: torchvision.models.WeightsEnum, model_name: str) -> dict[str, torch.Tensor]:
    """State dict of ``weights``, downloaded once and checked by hash.

    Raises:
        UserError: they belong to another network than ``model_name``, or cannot be downloaded.
    """
    owner = torchvision.models.get_model_weights(model_name)
    if weights not in owner:
        raise UserError(f"{weights} are not weights of {model_name}; allowed: {', '.join(str(w) for w in owner)}")
    try:
        return weights.get_state_dict(check_hash=True, progress=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"could not fetch {weights} ({error}); download {weights.url} elsewhere and give the file instead"
        ) from None

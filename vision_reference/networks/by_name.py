"""Networks by name, for students and teachers alike."""

import torch
import torchvision
from torch import Tensor, nn

from vision_reference.errors import UserError
from vision_reference.networks import checkpoints, cifar_resnets, heads

_TIMM = "timm:"
_AUXILIARY_PREFIXES = tuple(f"{name}." for name in heads.AUXILIARY_HEADS)


def classification_models() -> list[str]:
    """Names of torchvision's classification networks."""
    return torchvision.models.list_models(module=torchvision.models)


def build_model(name: str, num_classes: int) -> nn.Module:
    """A freshly initialized classification network: torchvision's, a CIFAR ResNet, or with ``timm:NAME`` timm's.

    Raises:
        UserError: there is no classification network of that name.
    """
    if name.startswith(_TIMM):
        return _build_timm_model(name.removeprefix(_TIMM), num_classes)
    if name in cifar_resnets.NAMES:
        return cifar_resnets.build(name, num_classes)
    if name not in classification_models():
        near = [other for other in classification_models() if other.split("_")[0][:5] == name[:5]]
        hint = ", ".join(near[:8]) or "resnet18, resnet50, convnext_tiny, mobilenet_v2, efficientnet_b0"
        raise UserError(
            f"unknown model '{name}'; allowed: torchvision's classification models, such as {hint}; for 32x32 images "
            f"{', '.join(cifar_resnets.NAMES)}; timm:NAME"
        )
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}  # they warn otherwise
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    return heads.drop_auxiliary_heads(model)


def _build_timm_model(name: str, num_classes: int) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise UserError(f"model '{_TIMM}{name}' needs timm, which is not installed; pip install timm") from None
    if not timm.is_model(name):
        raise UserError(f"timm has no model '{name}'; timm.list_models('*resnet*') finds names")
    return timm.create_model(name, num_classes=num_classes)


def build_filled(
    name: str, num_classes: int, state: dict[str, Tensor] | None, source: str, *, new_head: bool
) -> nn.Module:
    """Network ``name`` with ``num_classes`` classes, filled with the state dict ``state`` (None: left as initialized).

    Auxiliary heads are left out on both sides: they only ever serve training, and no loss here uses them.

    Args:
        source: names ``state`` in errors.
        new_head: where ``state`` has another number of classes, replace the last layer by a fresh one instead of
            refusing: the beginning of transfer learning.

    Raises:
        UserError: no such network, or ``state`` does not fit.
    """
    model = build_model(name, num_classes)
    if state is None:
        return model
    state = {key: value for key, value in state.items() if not key.startswith(_AUXILIARY_PREFIXES)}
    if new_head:
        heads.shape_heads_like(model, state)
    checkpoints.load_weights(model, state, source)
    if heads.class_count(model) != num_classes:
        heads.replace_head(model, num_classes)
    return model


def read_state(source: str, name: str) -> dict[str, Tensor]:
    """State dict for network ``name`` from a torchvision weights name or from a file in any accepted format.

    Raises:
        UserError: there is none, it cannot be read, or it belongs to another network.
    """
    weights = find_weights(source)
    return fetch_weights(weights, name) if weights else checkpoints.read_weights(source, name)


def find_weights(name: str) -> torchvision.models.WeightsEnum | None:
    """The torchvision weights called ``name`` (such as ResNet50_Weights.IMAGENET1K_V2); None if it is no such name.

    Raises:
        UserError: the name has the form of one, but torchvision has no such weights.
    """
    if "_Weights." not in name or "/" in name:
        return None
    try:
        return torchvision.models.get_weight(name)
    except (ValueError, KeyError):
        raise UserError(
            f"torchvision has no weights '{name}'; expected a name such as ResNet50_Weights.IMAGENET1K_V2"
        ) from None


def fetch_weights(weights: torchvision.models.WeightsEnum, model_name: str) -> dict[str, torch.Tensor]:
    """State dict of ``weights``, downloaded once and checked by hash.

    Raises:
        UserError: they belong to another network than ``model_name``, or cannot be downloaded.
    """
    if model_name.startswith(_TIMM) or model_name in cifar_resnets.NAMES:
        raise UserError(f"{weights} are torchvision's, not weights of {model_name}; give a file")
    owner = torchvision.models.get_model_weights(model_name)
    if weights not in owner:
        raise UserError(f"{weights} are not weights of {model_name}; allowed: {', '.join(str(w) for w in owner)}")
    try:
        return weights.get_state_dict(check_hash=True, progress=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"could not fetch {weights} ({error}); download {weights.url} elsewhere and give the file instead"
        ) from None

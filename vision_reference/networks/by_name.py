"""Networks by name, for students and teachers alike."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from vision_reference.errors import UserError
from vision_reference.networks import checkpoints, cifar_resnets, heads, pretrained
from vision_reference.networks.description import CompleteDescription, Description, from_checkpoint
from vision_reference.networks.pretrained import TIMM
from vision_reference.user_functions import import_function

_AUXILIARY_PREFIXES = tuple(f"{name}." for name in heads.AUXILIARY_HEADS)


def classification_models() -> list[str]:
    """Names of torchvision's classification networks."""
    return torchvision.models.list_models(module=torchvision.models)


def build_model(name: str, num_classes: int) -> nn.Module:
    """A freshly initialized classification network.

    Args:
        name: torchvision's, a CIFAR ResNet, ``timm:NAME`` for timm's, or ``package.module:function``: what a function
            of the user's own returns, called with ``num_classes``. The last kind only ever comes from a command line:
            see ``recorded_name``.
        num_classes: K.

    Raises:
        UserError: there is no classification network of that name.
    """
    check_name(name)
    if name.startswith(TIMM):
        import timm

        return timm.create_model(name.removeprefix(TIMM), num_classes=num_classes)
    if name in cifar_resnets.NAMES:
        return cifar_resnets.build(name, num_classes)
    if is_own(name):
        function = import_function(name, "network")
        try:
            model = function(num_classes=num_classes)
        except TypeError as error:
            raise UserError(f"network {name}: calling it with num_classes={num_classes} fails ({error})") from error
        if not isinstance(model, nn.Module):
            raise UserError(f"network {name}: the function returned {type(model).__name__}, not a torch.nn.Module")
        return model
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}  # they warn otherwise
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    return heads.drop_auxiliary_heads(model)


def check_name(name: str) -> None:
    """Refuse what names no network, without building one. A function of the user's own is not imported.

    Raises:
        UserError: there is no classification network of that name.
    """
    if name.startswith(TIMM):
        try:
            import timm
        except ImportError:
            raise UserError(f"model '{name}' needs timm, which is not installed; pip install timm") from None
        if not timm.is_model(name.removeprefix(TIMM)):
            raise UserError(f"timm has no model '{name.removeprefix(TIMM)}'; timm.list_models('*resnet*') finds names")
    elif name not in cifar_resnets.NAMES and not is_own(name) and name not in classification_models():
        near = [other for other in classification_models() if other.split("_")[0][:5] == name[:5]]
        hint = ", ".join(near[:8]) or "resnet18, resnet50, convnext_tiny, mobilenet_v2, efficientnet_b0"
        raise UserError(
            f"unknown model '{name}'; allowed: torchvision's classification models, such as {hint}; for 32x32 images "
            f"{', '.join(cifar_resnets.NAMES)}; timm:NAME; package.module:function"
        )


def is_own(name: str) -> bool:
    """Whether ``name`` is that of a function of the user's own."""
    return ":" in name and not name.startswith(TIMM)


def recorded_name(description: Description) -> str | None:
    """The network that a file of weights names; None where it names none.

    Raises:
        UserError: it names a function, which is never imported because a file says so.
    """
    name = description.arch
    if name is not None and is_own(name):
        raise UserError(
            f"'{description.source}' was trained with a network of somebody's own, {name}; give --model {name} (with "
            "PYTHONPATH set to the folder of its module): no code is imported because a file names it"
        )
    return name


def build_filled(name: str, num_classes: int, state: dict[str, Tensor], source: str) -> nn.Module:
    """Network ``name`` with ``num_classes`` classes, filled with the state dict ``state``.

    Auxiliary heads are left out on both sides: they only ever serve training, and no loss here uses them.

    Args:
        source: names ``state`` in errors.

    Raises:
        UserError: no such network, or ``state`` does not fit.
    """
    state = _without_auxiliary_heads(state)
    # Shapes are compared before the network is made: a small file that claims to be a huge one costs nothing.
    checkpoints.check_shapes(outline(name, num_classes), state, source)
    model = build_model(name, num_classes)
    checkpoints.load_weights(model, state, source)
    return model


def saved_classes(name: str, state: dict[str, Tensor], source: str) -> int:
    """For how many classes ``state``, weights of the network ``name``, was trained.

    Raises:
        UserError: no such network, or ``state`` does not fit it.
    """
    state = _without_auxiliary_heads(state)
    shaped = heads.shape_heads_like(outline(name, 1), state)
    checkpoints.check_shapes(shaped, state, source)
    return heads.class_count(shaped)


def _without_auxiliary_heads(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(_AUXILIARY_PREFIXES)}


def outline(name: str, num_classes: int) -> nn.Module:
    """The network on the meta device: names and shapes alone. Raises UserError as ``build_model``."""
    try:
        with torch.device("meta"):
            return build_model(name, num_classes)
    except (NotImplementedError, RuntimeError):  # a constructor that computes with the values of its tensors
        return build_model(name, num_classes)


def load_network(
    source: str | Path, arch: str | None = None, *, ema: bool = False
) -> tuple[nn.Module, CompleteDescription]:
    """A trained network in evaluation mode on the CPU, and what is known about it.

    Sizes, interpolation, mean and std that the file does not tell are those of a preset (``Description.assumed`` names
    them); its classes may be unknown.

    Args:
        source: as in ``read_state``.
        arch: name of the network, where the file does not tell it.
        ema: the moving average of the weights instead of the weights.

    Raises:
        UserError: there are no such weights, they cannot be read, or are not those of ``arch``.
    """
    source = str(source)
    state, description = read_state(source, arch, ema=ema)
    name = arch or recorded_name(description)
    if name is None:
        raise UserError(f"'{source}' does not say which network it holds; name it")
    classes = saved_classes(name, state, source)
    if description.classes and len(description.classes) != classes:
        raise UserError(f"'{source}' is damaged: it names {len(description.classes)} classes and has {classes}")
    model = build_filled(name, classes, state, source)
    return model.eval(), replace(description, arch=name).completed()


def match_classes(network: nn.Module, description: Description, classes: Sequence[str]) -> list[str]:
    """Have logit i of ``network`` mean class i of the data, by name; returns lines to tell the user.

    Args:
        network: changed in place where its classes stand in another order.
        description: of its weights.
        classes: of the data.

    Raises:
        UserError: the network was trained on other classes.
    """
    if description.classes is None or not comparable_classes(description, classes):
        if all(re.fullmatch(r"n\d{8}", name) for name in classes):  # ImageNet's folders, in the order all use
            return []
        taken = f"they are taken to be the data's {len(classes)}, in the same order"
        return [f"note: {description.source} does not name its classes as the data does; {taken}"]
    order = heads.class_order(description.classes, classes, description.source)
    if order is None:
        return []
    heads.reorder_classes(network, order)
    return [f"note: {description.source} has the data's classes in another order; they are matched by name"]


def comparable_classes(description: Description, classes: Sequence[str]) -> bool:
    """Whether the class names of weights and data can be compared: torchvision's are words, folders have others."""
    if description.classes is None:
        return False
    return pretrained.names_its_data(description.source) or set(description.classes) == set(classes)


def read_state(source: str, name: str | None, *, ema: bool = False) -> tuple[dict[str, Tensor], Description]:
    """State dict and description of trained weights.

    Args:
        source: a name of weights (ResNet50_Weights.IMAGENET1K_V2, timm:NAME, hf://owner/name), or a file in any
            accepted format.
        name: the network that they are meant for; None: whichever they belong to.
        ema: the moving average of the weights instead of the weights.

    Raises:
        UserError: there are none, they cannot be read, or they belong to another network.
    """
    if pretrained.is_name(source):
        if ema:
            raise UserError(f"{source} has no moving average of the weights; drop --model-ema")
        return pretrained.read(source, name)
    content = checkpoints.load_checkpoint(source)
    return checkpoints.weights_in(content, name, source=source, ema=ema), from_checkpoint(content, source, ema=ema)

"""The parts of a classification network that depend on the data: its last layer, its auxiliary heads, its image size.

Everything here works on the networks that ``torchvision.models`` lists for classification, and on any other whose
last layer is a ``Linear`` or ``Conv2d`` that was registered last.
"""

from collections.abc import Collection, Sequence
from typing import cast

import torch
from torch import nn
from torchvision.models import Inception3, MaxVit, VisionTransformer

from vision_reference.errors import UserError, some

AUXILIARY_HEADS = ("aux1", "aux2", "AuxLogits")  # GoogLeNet has the first two, Inception v3 the last


def last_layer(module: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Name and layer of the classifier proper: the ``Linear`` or ``Conv2d`` that turns features into K logits.

    Constructors register layers in the order in which data passes, and every family's classifier comes at the very
    end; what follows it (SqueezeNet: ReLU and pooling) holds no weights.

    Raises ``UserError`` where there is no such layer.
    """
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    if not layers:
        raise UserError(f"{type(module).__name__} has no Linear or Conv2d layer that could be its classifier")
    return layers[-1]


def class_count(model: nn.Module) -> int:
    """Number of classes K that ``model`` tells apart: the rows of its last layer's weight."""
    return last_layer(model)[1].weight.shape[0]


def auxiliary_heads(model: nn.Module) -> dict[str, nn.Module]:
    """The heads that only help training (GoogLeNet, Inception v3), by attribute name; empty for other networks."""
    heads = {name: getattr(model, name, None) for name in AUXILIARY_HEADS}
    return {name: head for name, head in heads.items() if isinstance(head, nn.Module)}


def drop_auxiliary_heads(model: nn.Module) -> nn.Module:
    """Removes the auxiliary heads in place, so that training returns plain logits as evaluation does.

    They carried gradients to early layers before batch normalization was common; no recipe here has a loss for them.
    Evaluation is not affected: it never used them.
    """
    for name in auxiliary_heads(model):
        setattr(model, name, None)
    _renew(model, "aux_logits", False)
    return model


def replace_head(model: nn.Module, num_classes: int) -> nn.Module:
    """Puts a freshly initialized ``num_classes``-way layer in the place of the last one, in place; returns the model.

    The new layer has the old one's input width, kernel, bias, device and type, and PyTorch's default initialization.
    Auxiliary heads get new last layers as well. No other parameter or buffer is touched.

    Raises ``UserError`` where ``num_classes`` is below 1 or the network has no classifier layer.
    """
    if num_classes < 1:
        raise UserError(f"a classifier needs at least 1 class, not {num_classes}")
    for module in (model, *auxiliary_heads(model).values()):
        name, old = last_layer(module)
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, _resized(old, num_classes))
    _renew(model, "num_classes", num_classes)
    return model


def _renew(model: nn.Module, name: str, value: int) -> None:
    """Sets a number that torchvision's networks keep beside their layers, in those that have it."""
    if isinstance(getattr(model, name, None), int):
        setattr(model, name, value)


def _resized(old: nn.Linear | nn.Conv2d, num_classes: int) -> nn.Linear | nn.Conv2d:
    has_bias, device, dtype = old.bias is not None, old.weight.device, old.weight.dtype
    if isinstance(old, nn.Linear):
        return nn.Linear(old.in_features, num_classes, bias=has_bias, device=device, dtype=dtype)
    return nn.Conv2d(
        old.in_channels,
        num_classes,
        cast(tuple[int, int], old.kernel_size),  # torch annotates all convolutions alike, as tuples of any length
        stride=cast(tuple[int, int], old.stride),
        padding=cast("str | tuple[int, int]", old.padding),
        bias=has_bias,
        device=device,
        dtype=dtype,
    )


def class_order(of_weights: Sequence[str], of_data: Sequence[str], source: str) -> list[int] | None:
    """Where each class of the data stands among those that weights were trained on; None if all stand where they do.

    Args:
        of_weights, of_data: class names in the order of logits and of labels.
        source: names the weights in errors.

    Raises:
        UserError: the names differ by more than their order.
    """
    places = {name: place for place, name in enumerate(of_weights)}
    unknown = [name for name in of_data if name not in places]
    if unknown or len(places) != len(of_data):
        only_there = sorted(set(of_weights) - set(of_data))
        parts = [f"only in the data: {some(unknown)}"] * bool(unknown)
        parts += [f"only in the weights: {some(only_there)}"] * bool(only_there)
        raise UserError(
            f"'{source}' was trained on other classes than the data has ({'; '.join(parts)}); give weights of these "
            "classes, or rename the class folders"
        )
    order = [places[name] for name in of_data]
    return None if order == list(range(len(order))) else order


def reorder_classes(model: nn.Module, order: Sequence[int]) -> None:
    """Makes logit i of ``model`` what logit ``order[i]`` was, in place: the last layer's rows change places."""
    layer = last_layer(model)[1]
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias):
            if parameter is not None:
                parameter.copy_(parameter[list(order)])


def shape_heads_like(model: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    """Gives ``model`` the heads that the state dict ``state`` was saved with, so that all of it can be loaded strictly.

    The last layer takes the class count of the saved weight; auxiliary heads that were not saved are dropped. A state
    dict without the last layer's weight changes no class count: loading it then names what is missing.
    """
    if not any(key.startswith(tuple(f"{name}." for name in AUXILIARY_HEADS)) for key in state):
        drop_auxiliary_heads(model)
    saved = state.get(f"{last_layer(model)[0]}.weight")
    if saved is not None and saved.shape[0] != class_count(model):
        replace_head(model, saved.shape[0])
    return model


def fixed_input_size(model: nn.Module) -> int | None:
    """Side in pixels of the only images that ``model`` works on, None where it takes various sizes.

    ViT's position embeddings and MaxViT's windows are cut for one size. Inception v3 runs on others, but its filters
    were laid out for 299 and it loses accuracy without a word, so it counts as fixed.
    """
    if isinstance(model, VisionTransformer):
        return model.image_size
    if isinstance(model, MaxVit):
        return 224
    return 299 if isinstance(model, Inception3) else None


def check_input_sizes(role: str, name: str, model: nn.Module, sizes: Collection[int]) -> None:
    """Refuses image sizes (side in pixels, square) that the network ``name``, used as ``role``, is not made for.

    Student and teacher see the same pixels, so each is checked against the training and the evaluation crop. Sizes
    are tried on the meta device: shapes are worked out, nothing is computed, the model stays as it is.

    Raises ``UserError`` that names the network, the size given and what to do.
    """
    fixed = fixed_input_size(model)
    for size in sorted(set(sizes)):
        if fixed is not None and size != fixed:
            raise UserError(
                f"{role} {name} takes {fixed}x{fixed} images only, not {size}x{size}: give "
                f"--train-crop-size {fixed} --val-crop-size {fixed} (teacher and student see the same images)"
            )
        if fixed is None and not _runs_at(model, size):
            raise UserError(
                f"{role} {name} cannot process {size}x{size} images: "
                "raise --train-crop-size and --val-crop-size or choose another network"
            )


def _runs_at(model: nn.Module, size: int) -> bool:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    training = {module: module.training for module in model.modules()}
    try:
        with torch.inference_mode():
            torch.func.functional_call(model.eval(), on_meta, torch.empty(1, 3, size, size, device="meta"))
    except (RuntimeError, AssertionError):
        return False
    finally:
        for module, mode in training.items():
            module.training = mode
    return True

"""Which parameter gets which weight decay, and optimizers by name."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from vision_reference.errors import UserError

_NORM_LAYERS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)
_EMBEDDINGS = ("class_token", "position_embedding", "relative_position_bias_table")


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    norm_weight_decay: float | None = None,
    bias_weight_decay: float | None = None,
    transformer_embedding_decay: float | None = None,
) -> list[dict]:
    """Parameter groups for a torch optimizer: every trainable parameter once, each with its weight decay.

    A parameter belongs to the first of these that is given a decay of its own: biases (parameters named ``bias``,
    those of normalization layers too), embeddings (named ``class_token``, ``position_embedding`` or
    ``relative_position_bias_table``; ViT's ``pos_embedding`` is not among them, as in torchvision's recipe),
    normalization layers; else to the rest. Frozen parameters are left out, a parameter shared by two modules counts
    where it is met first.

    Args:
        model: the network.
        weight_decay: of the rest.
        norm_weight_decay, bias_weight_decay, transformer_embedding_decay: None: as the rest.

    Returns:
        Non-empty groups in the order that torchvision's recipe gives them (rest, normalization, biases, one per name of
        an embedding), parameters in the model's order, so that its optimizer states can be resumed.
    """
    decays = {"rest": weight_decay}
    if norm_weight_decay is not None:
        decays["norm"] = norm_weight_decay
    if bias_weight_decay is not None:
        decays["bias"] = bias_weight_decay
    if transformer_embedding_decay is not None:
        decays |= dict.fromkeys(_EMBEDDINGS, transformer_embedding_decay)

    members: dict[str, list[nn.Parameter]] = {group: [] for group in decays}
    seen = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            kind = name if name in ("bias", *_EMBEDDINGS) else None
            if kind not in decays:
                kind = "norm" if isinstance(module, _NORM_LAYERS) and "norm" in decays else "rest"
            members[kind].append(parameter)
    return [{"params": members[kind], "weight_decay": decay} for kind, decay in decays.items() if members[kind]]


def build_optimizer(
    name: str, groups: list[dict], lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Optimizer ``name`` with the settings of torchvision's recipe.

    Args:
        name: sgd, sgd_nesterov, rmsprop (eps 0.0316, alpha 0.9) or adamw, in any case.
        groups: what ``parameter_groups`` returns.
        lr: learning rate.
        momentum: of all but adamw, which has none.
        weight_decay: of groups that name none.

    Raises:
        UserError: unknown name.
    """
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": partial(torch.optim.SGD, momentum=momentum),
        "sgd_nesterov": partial(torch.optim.SGD, momentum=momentum, nesterov=True),
        "rmsprop": partial(torch.optim.RMSprop, momentum=momentum, eps=0.0316, alpha=0.9),
        "adamw": torch.optim.AdamW,
    }
    if name.lower() not in makers:
        raise UserError(f"unknown optimizer '{name}'; allowed: {', '.join(makers)}")
    return makers[name.lower()](groups, lr=lr, weight_decay=weight_decay)

"""How weights move: optimizers and their parameter groups, the learning rate of every step, the moving average.

The learning rate is a function of epoch and step alone: no hidden state, so that a resumed run cannot go astray. Two
conventions are at home here:

- torchvision's recipe changes the rate once an epoch: a constant or linear warm-up of some epochs, and after it the
  main schedule, counted from the end of the warm-up and, if it is a cosine, shortened by it;
- the paper's student recipe warms up in every step, and its main schedule counts from epoch 0, warm-up or not: "x0.1
  every 80 epochs" changes at epochs 80 and 160. (The authors' README says every 30; their code decays every 80.)

torch's own schedulers give the first to rounding error, as the tests show; they cannot give the second.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vision_reference.arguments import SCHEDULERS, WARMUP_METHODS
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
        UserError: unknown name, or settings that this optimizer does not take.
    """
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": partial(torch.optim.SGD, momentum=momentum),
        "sgd_nesterov": partial(torch.optim.SGD, momentum=momentum, nesterov=True),
        "rmsprop": partial(torch.optim.RMSprop, momentum=momentum, eps=0.0316, alpha=0.9),
        "adamw": torch.optim.AdamW,
    }
    if name.lower() not in makers:
        raise UserError(f"unknown optimizer '{name}'; allowed: {', '.join(makers)}")
    try:
        return makers[name.lower()](groups, lr=lr, weight_decay=weight_decay)
    except ValueError as error:  # nesterov without momentum
        raise UserError(f"--opt {name} does not take these settings: {error}") from None


@dataclass(frozen=True)
class LearningRate:
    """The rule of a run's learning rate; fields are named after the flags and mean the same.

    Raises:
        UserError: unknown schedule or warm-up method, or a warm-up per step of no epochs.
    """

    epochs: int
    scheduler: str = "steplr"
    step_size: int = 30
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    min: float = 0.0
    warmup_epochs: int = 0
    warmup_method: str = "constant"
    warmup_decay: float = 0.01
    warmup_per_step: bool = False

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULERS:
            raise UserError(f"unknown --lr-scheduler '{self.scheduler}'; allowed: {', '.join(SCHEDULERS)}")
        if self.warmup_method not in WARMUP_METHODS:
            raise UserError(f"unknown --lr-warmup-method '{self.warmup_method}'; allowed: {', '.join(WARMUP_METHODS)}")
        if self.warmup_per_step and self.warmup_epochs < 1:
            raise UserError("--lr-warmup-per-step needs --lr-warmup-epochs of 1 or more (the paper's: 5)")

    @classmethod
    def of(cls, args: argparse.Namespace) -> "LearningRate":
        """What the flags of ``train.py`` ask for.

        Raises:
            UserError: they make no sense together.
        """
        return cls(
            epochs=args.epochs,
            scheduler=args.lr_scheduler,
            step_size=args.lr_step_size,
            milestones=tuple(args.lr_milestones or ()),
            gamma=args.lr_gamma,
            min=args.lr_min,
            warmup_epochs=args.lr_warmup_epochs,
            warmup_method=args.lr_warmup_method,
            warmup_decay=args.lr_warmup_decay,
            warmup_per_step=args.lr_warmup_per_step,
        )

    def at(self, base_lr: float, epoch: int, step: int = 0, steps_per_epoch: int = 1) -> float:
        """Learning rate of one training step.

        Args:
            base_lr: the rate that the schedule scales (--lr, or a parameter group's own).
            epoch: from 0.
            step: within the epoch, from 0; matters to a warm-up per step only.
            steps_per_epoch: n; matters to a warm-up per step only.
        """
        if self.warmup_per_step:
            lr = self._main(base_lr, epoch, self.epochs)
            done = 1 + step + epoch * steps_per_epoch
            return lr * min(1.0, done / (self.warmup_epochs * steps_per_epoch))
        if epoch >= self.warmup_epochs:
            return self._main(base_lr, epoch - self.warmup_epochs, self.epochs - self.warmup_epochs)
        if self.warmup_method == "constant":
            return base_lr * self.warmup_decay
        return base_lr * (self.warmup_decay + (1 - self.warmup_decay) * epoch / self.warmup_epochs)

    def _main(self, base_lr: float, epoch: int, epochs: int) -> float:
        if self.scheduler == "steplr":
            return base_lr * self.gamma ** (epoch // self.step_size)
        if self.scheduler == "multisteplr":
            return base_lr * self.gamma ** sum(epoch >= milestone for milestone in self.milestones)
        if self.scheduler == "exponentiallr":
            return base_lr * self.gamma**epoch
        return self.min + (base_lr - self.min) * (1 + math.cos(math.pi * epoch / max(1, epochs))) / 2


class Schedule:
    """Sets an optimizer's learning rates; each parameter group's rate at the start is the one its schedule scales.

    All that it needs to go on is the epoch, under the name that torch's schedulers give it, so that the
    ``lr_scheduler`` of a checkpoint of torchvision's recipe can be loaded; what it saves can be loaded by the scheduler
    that torchvision's recipe builds of the same flags. Where a resumed run is given other flags, the flags count: the
    rate is what a run with these flags would have at this epoch.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rule: LearningRate) -> None:
        self.optimizer = optimizer
        self.rule = rule
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.step_to(0)

    def step_to(self, epoch: int, step: int = 0, steps_per_epoch: int = 1) -> None:
        """Set the rates for a training step (all counted from 0)."""
        self.epoch = epoch
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = self.rule.at(base_lr, epoch, step, steps_per_epoch)

    def state_dict(self) -> dict:
        """``last_epoch``: the number of epochs begun, which after an epoch is that of the next; and what else torch's
        ``SequentialLR`` needs where there is a warm-up, whose two schedulers count epochs of their own.
        """
        begun, warmup = self.epoch + 1, self.rule.warmup_epochs
        state: dict = {"last_epoch": begun}
        if warmup:
            state["_schedulers"] = [{"last_epoch": min(begun, warmup - 1)}, {"last_epoch": max(0, begun - warmup)}]
        return state

    def load_state_dict(self, state: dict) -> None:
        """Go on after the epochs that ``state`` (ours or a torch scheduler's) counts.

        Raises:
            UserError: it counts none.
        """
        epochs = state.get("last_epoch")
        if not isinstance(epochs, int) or epochs < 0:
            raise UserError(f"a learning-rate schedule cannot be after epoch {str(epochs)[:20]}")
        self.step_to(epochs)


def adjusted_decay(decay: float, *, batch_size: int, world_size: int, steps: int, epochs: int) -> float:
    """Decay of one update of the average, adjusted so that runs of any batch size and length forget alike.

    ``1 - decay`` is scaled by ``world_size * batch_size * steps / epochs`` and limited to 1 (no memory at all), as
    torchvision's recipe does.

    Args:
        decay: from 0 to 1, as given by --model-ema-decay.
        batch_size: images per process and step.
        world_size: number of processes.
        steps: training steps from one update to the next.
        epochs: length of the run.
    """
    forgotten = (1 - decay) * world_size * batch_size * steps / max(1, epochs)
    return 1 - min(1.0, forgotten)


def build_ema(model: nn.Module, decay: float) -> AveragedModel:
    """Moving average of the parameters and buffers of ``model``, on its device.

    Buffers are averaged like weights, so that the batch-norm statistics fit them. The first update copies.

    Args:
        decay: of one update, from 0 to 1; see ``adjusted_decay``.
    """
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

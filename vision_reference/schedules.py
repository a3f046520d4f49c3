"""The learning rate as a function of epoch and step alone: no hidden state, so a resumed run cannot go astray.

Two conventions are at home here:

- torchvision's recipe changes the rate once an epoch: a constant or linear warm-up of some epochs, and after it the
  main schedule, counted from the end of the warm-up and, if it is a cosine, shortened by it;
- the paper's student recipe warms up in every step, and its main schedule counts from epoch 0, warm-up or not: "x0.1
  every 80 epochs" changes at epochs 80 and 160. (The authors' README says every 30; their code decays every 80.)

torch's own schedulers give the first to rounding error, as the tests show; they cannot give the second.
"""

import argparse
import math
from dataclasses import dataclass

import torch

from vision_reference.errors import UserError

_MAIN = ("steplr", "multisteplr", "cosineannealinglr", "exponentiallr")
_WARMUP = ("constant", "linear")


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
        if self.scheduler not in _MAIN:
            raise UserError(f"unknown --lr-scheduler '{self.scheduler}'; allowed: {', '.join(_MAIN)}")
        if self.warmup_method not in _WARMUP:
            raise UserError(f"unknown --lr-warmup-method '{self.warmup_method}'; allowed: {', '.join(_WARMUP)}")
        if self.warmup_per_step and self.warmup_epochs < 1:
            raise UserError("--lr-warmup-per-step needs --lr-warmup-epochs of 1 or more (the paper's: 5)")

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

    Its state is the epoch only, under the name that torch's schedulers give it, so that the ``lr_scheduler`` of a
    checkpoint of torchvision's recipe can be loaded. Where a resumed run is given other flags, the flags count: the
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
        """``last_epoch``: the number of epochs begun, which after an epoch is that of the next."""
        return {"last_epoch": self.epoch + 1}

    def load_state_dict(self, state: dict) -> None:
        """Go on after the epochs that ``state`` (ours or a torch scheduler's) counts."""
        self.step_to(state["last_epoch"])


def build_schedule(optimizer: torch.optim.Optimizer, args: argparse.Namespace) -> Schedule:
    """The schedule that the flags of ``train.py`` ask for.

    Raises:
        UserError: as ``LearningRate``.
    """
    rule = LearningRate(
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
    return Schedule(optimizer, rule)

"""All that training changes, in one place: what a checkpoint holds is what this holds."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from vision_reference.errors import UserError
from vision_reference.machine import Rank
from vision_reference.optimization import (
    LearningRate,
    Schedule,
    adjusted_decay,
    build_ema,
    build_optimizer,
    parameter_groups,
)


class _Stateful(Protocol):
    def state_dict(self) -> Mapping: ...
    def load_state_dict(self, state_dict: dict, /) -> object: ...


@dataclass
class Learner:
    """The student and everything that moves it.

    Attributes:
        model: the bare network; its weights are what is saved.
        network: the same, compiled where asked for; evaluates.
        student: the same, wrapped for several processes where there are several; trains.
        optimizer, schedule, scaler: of its training; the scaler does nothing but for fp16.
        ema: moving average of its weights, or None.
    """

    model: nn.Module
    network: nn.Module
    student: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None

    def state_dict(self) -> dict:
        """The parts of a checkpoint, under the names that torchvision's recipe gives them."""
        parts: dict[str, _Stateful | None]
        parts = {"model": self.model, "lr_scheduler": self.schedule, "scaler": self.scaler, "model_ema": self.ema}
        state = {name: part.state_dict() for name, part in parts.items() if part is not None}
        # torch's schedulers leave the optimizer with the rates of the next epoch, and go on from these.
        epoch = self.schedule.epoch
        self.schedule.step_to(epoch + 1)
        state["optimizer"] = self.optimizer.state_dict()
        self.schedule.step_to(epoch)
        return state

    def load_state_dict(self, checkpoint: dict, path: str) -> None:
        """Take over the parts of a checkpoint; weights are expected to be loaded already.

        Raises:
            UserError: a part is damaged or does not fit this run's flags.
        """
        if self.ema is not None and "model_ema" not in checkpoint:
            raise UserError(f"{path} holds no moving average; resume it without --model-ema")
        self._take("optimizer", checkpoint, path, "--opt, the weight decays and the model")
        self._check_optimizer_state(path)
        self._take("lr_scheduler", checkpoint, path, "--lr-scheduler")
        if self.scaler.is_enabled() and checkpoint.get("scaler"):
            self._take("scaler", checkpoint, path, "--amp-dtype")
        if self.ema is not None:
            self._take("ema", checkpoint, path, "the model", key="model_ema")

    def _take(self, name: str, checkpoint: dict, path: str, flags: str, key: str | None = None) -> None:
        part: _Stateful = self.schedule if name == "lr_scheduler" else getattr(self, name)
        try:
            part.load_state_dict(checkpoint[key or name])
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, UserError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the {key or name} in {path} is damaged or does not fit {flags} ({reason})") from None

    def _check_optimizer_state(self, path: str) -> None:
        """torch takes over any state; one of another shape would end the first step, one that is no number the run."""
        for parameter, state in self.optimizer.state.items():
            if not isinstance(state, dict):
                raise UserError(f"the optimizer in {path} is damaged: a weight's state is a {type(state).__name__}")
            for name, value in state.items():
                if not isinstance(value, Tensor):
                    fits = value is None or isinstance(value, int | float)
                else:
                    fits = value.numel() == 1 or value.shape == parameter.shape
                    fits = fits and bool(value.isfinite().all())
                if not fits:
                    raise UserError(f"the optimizer in {path} is damaged: its {name} does not fit the weights")


def build_learner(
    model: nn.Module, args: argparse.Namespace, rank: Rank, device: torch.device, amp_dtype: torch.dtype
) -> Learner:
    """Everything around ``model`` (already on ``device``) that the flags ask for.

    Raises:
        UserError: flags that this device cannot serve.
    """
    if args.sync_bn and rank.world_size > 1:
        if device.type != "cuda":
            raise UserError("--sync-bn works on GPUs only; drop it")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    # torch annotates what it compiles as any callable; of a module it makes a module.
    student = network = cast(nn.Module, torch.compile(model)) if args.compile else model
    if torch.distributed.is_initialized():
        student = DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)
    groups = parameter_groups(
        model,
        args.weight_decay,
        norm_weight_decay=args.norm_weight_decay,
        bias_weight_decay=args.bias_weight_decay,
        transformer_embedding_decay=args.transformer_embedding_decay,
    )
    lr = args.lr * (args.batch_size * rank.world_size * args.accumulate / 256 if args.scale_lr else 1)
    optimizer = build_optimizer(args.opt, groups, lr, args.momentum, args.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp and amp_dtype == torch.float16)
    ema = None
    if args.model_ema:
        batch = {"batch_size": args.batch_size * args.accumulate, "world_size": rank.world_size}
        decay = adjusted_decay(args.model_ema_decay, **batch, steps=args.model_ema_steps, epochs=args.epochs)
        ema = build_ema(model, decay)
    schedule = Schedule(optimizer, LearningRate.of(args))
    return Learner(model, network, student, optimizer, schedule, scaler, ema)

"""All that training changes, in one place: what a checkpoint holds is what this holds."""

import argparse
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from vision_reference.ema import build_ema
from vision_reference.errors import UserError
from vision_reference.machine import Rank
from vision_reference.optimizers import build_optimizer, parameter_groups
from vision_reference.schedules import Schedule, build_schedule


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
        parts = {
            "model": self.model,
            "optimizer": self.optimizer,
            "lr_scheduler": self.schedule,
            "scaler": self.scaler,
            "model_ema": self.ema,
        }
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, checkpoint: dict, path: str) -> None:
        """Take over the parts of a checkpoint; weights are expected to be loaded already.

        Raises:
            UserError: a part does not fit this run's flags.
        """
        try:
            self.optimizer.load_state_dict(checkpoint["optimizer"])
        except (ValueError, KeyError) as error:
            raise UserError(f"the optimizer in {path} does not fit --opt and the model ({error})") from None
        self.schedule.load_state_dict(checkpoint["lr_scheduler"])
        if self.scaler.is_enabled() and checkpoint.get("scaler"):
            self.scaler.load_state_dict(checkpoint["scaler"])
        if self.ema is not None:
            if "model_ema" not in checkpoint:
                raise UserError(f"{path} holds no moving average; resume it without --model-ema")
            self.ema.load_state_dict(checkpoint["model_ema"])


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
    student = network = torch.compile(model) if args.compile else model
    if torch.distributed.is_initialized():
        student = DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)
    groups = parameter_groups(
        model,
        args.weight_decay,
        norm_weight_decay=args.norm_weight_decay,
        bias_weight_decay=args.bias_weight_decay,
        transformer_embedding_decay=args.transformer_embedding_decay,
    )
    lr = args.lr * (args.batch_size * rank.world_size / 256 if args.scale_lr else 1)
    optimizer = build_optimizer(args.opt, groups, lr, args.momentum, args.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp and amp_dtype == torch.float16)
    ema = build_ema(model, args, rank.world_size) if args.model_ema else None
    return Learner(model, network, student, optimizer, build_schedule(optimizer, args), scaler, ema)

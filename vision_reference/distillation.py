"""The distillation loss and the teacher that feeds it.

Source of the definitions: Hinton et al. 2015, in the form of Chandrasegaran et al. 2022 (section 2): softmax at
temperature T for teacher and student alike, and the divergence scaled by T^2 so that the size of its gradient does not
depend on T.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vision_reference.losses.kd import KdLoss, kl
from vision_reference.losses.labels import label_loss, labelled_loss
from vision_reference.losses.wide import average
from vision_reference.machine import Machine, move_network
from vision_reference.networks.folding import fold_batch_norms
from vision_reference.networks.full_batches import FullBatches


class Losses(NamedTuple):
    """``total`` is what is minimized; ``kd`` and ``ce`` are its unweighted parts (``kd`` is 0 without a teacher)."""

    total: Tensor
    kd: Tensor
    ce: Tensor


def distillation_loss(
    student_logits: Tensor,
    targets: Tensor,
    teacher_logits: Tensor | None,
    *,
    temperature: float,
    kd_weight: float,
    label_smoothing: float,
    max_suppression: float = 0.0,
    kd_loss: KdLoss = kl,
    unlabelled: bool = False,
) -> Losses:
    """``kd_weight * kd_loss + (1 - kd_weight) * cross entropy``; plain cross entropy where there is no teacher.

    An image without a label has the first term alone. What a labelled one weighs does not depend on how many others
    there are: the loss is the sum over images divided by B, with or without labels.

    Args:
        student_logits: (B, K).
        targets: (B,) class numbers or (B, K) class probabilities.
        teacher_logits: (B, K), or None without a teacher.
        temperature: T > 0.
        kd_weight: lambda, from 0 to 1.
        label_smoothing: alpha of the student's own labels, from 0 to 1.
        max_suppression: alpha of MaxSup in the student's own cross entropy, see ``losses.labels``.
        kd_loss: what the student is to match, see ``losses.kd``; T^2 times the KL divergence by default.
        unlabelled: there is a teacher, and ``targets`` (B,) may hold ``UNLABELLED``; ``ce`` is that of the others.
    """
    if unlabelled and teacher_logits is not None:
        ce, share = labelled_loss(student_logits, targets, label_smoothing, max_suppression)
        kd = kd_loss(student_logits, teacher_logits, targets, temperature)
        return Losses(kd_weight * kd + (1 - kd_weight) * share * ce, kd, ce)
    ce = label_loss(student_logits, targets, label_smoothing, max_suppression)
    if teacher_logits is None:
        return Losses(ce, torch.zeros_like(ce), ce)
    kd = kd_loss(student_logits, teacher_logits, targets, temperature)
    return Losses(kd_weight * kd + (1 - kd_weight) * ce, kd, ce)


class Teacher:
    """A frozen network that only answers. No module, so that no optimizer, wrapper or checkpoint can pick it up.

    What answers is a copy made for nothing else: batch norms folded into convolutions, and under autocast the weights
    of convolutions and linear layers kept in its type (autocast would convert frozen weights anew in every step; the
    answers are the same to the bit).

    Args:
        model: the trained network; put into evaluation mode and frozen here, its weights stay as they are.
        device: where the student trains.
        memory_format: the student's memory format.
        autocast: makes the autocast context in which the student runs.
        compile: compile the forward pass.
        renormalize: see ``networks.teachers.TrainedTeacher``.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        memory_format: torch.memory_format,
        autocast: Callable[[], AbstractContextManager],
        *,
        compile: bool = False,
        renormalize: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.device = device
        self.renormalize = None if renormalize is None else tuple(part.to(device) for part in renormalize)
        folded = fold_batch_norms(model.requires_grad_(False).eval())
        self.model = folded.requires_grad_(False)
        move_network(self.model, device, memory_format)
        with autocast():
            if torch.is_autocast_enabled(device.type):
                _keep_weights_in(torch.get_autocast_dtype(device.type), self.model)
        self._forward = FullBatches(torch.compile(self.model)) if compile else self.model
        self._autocast = autocast

    @classmethod
    def on(
        cls, machine: Machine, model: nn.Module, *, compile: bool, renormalize: tuple[Tensor, Tensor] | None
    ) -> "Teacher":
        """A teacher that runs where and as the student does."""
        place = machine.device, machine.memory_format, machine.autocast
        return cls(model, *place, compile=compile, renormalize=renormalize)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, K) for ``images`` (B, C, H, W)."""
        with torch.inference_mode(), self._autocast():
            if self.renormalize is not None:
                factor, offset = self.renormalize
                images = images * factor + offset
            return self._forward(images)


class Teachers:
    """Several teachers whose probabilities at one temperature are averaged; each sees pixels as it was trained on them.

    Args:
        teachers: at least one, all on one device.
        temperature: T of the distillation.
    """

    def __init__(self, teachers: Sequence[Teacher], temperature: float) -> None:
        self.teachers = teachers
        self.temperature = temperature
        self.device = teachers[0].device

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, K) for ``images`` (B, C, H, W): see ``losses.wide.average``."""
        with torch.inference_mode():
            return average([teacher(images) for teacher in self.teachers], self.temperature)


def _keep_weights_in(dtype: torch.dtype, model: nn.Module) -> None:
    """Converts the layers whose operation autocast runs in ``dtype`` anyway; subclasses may do something else."""
    for module in model.modules():
        if type(module) in (nn.Conv2d, nn.Linear):
            module.to(dtype)

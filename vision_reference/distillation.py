"""The distillation loss and the teacher that feeds it.

Source of the definitions: Hinton et al. 2015, in the form of Chandrasegaran et al. 2022 (section 2): softmax at
temperature T for teacher and student alike, and the divergence scaled by T^2 so that the size of its gradient does not
depend on T.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_reference.images.presets import Preset
from vision_reference.kd_losses import KdLoss, kl, loss_type
from vision_reference.networks.by_name import build_filled, match_classes, read_state
from vision_reference.networks.description import Description
from vision_reference.networks.folding import fold_batch_norms
from vision_reference.networks.full_batches import FullBatches


def label_loss(logits: Tensor, targets: Tensor, label_smoothing: float, max_suppression: float = 0.0) -> Tensor:
    """Cross entropy with label smoothing, or with the largest logit held down instead of the true one.

    Label smoothing replaces the one-hot target by ``(1 - alpha) * y + alpha / K``, which is the same as adding
    ``alpha * (z_true - mean(z))`` to the plain cross entropy. MaxSup (Zhou et al. 2025, arXiv 2502.15798, section 3)
    adds ``alpha * (max(z) - mean(z))``: where the network is right the two are equal, where it is wrong smoothing
    pushes the true logit down further while MaxSup pushes down the wrong one that leads.

    Args:
        logits: (B, K), any floating type.
        targets: (B,) class numbers, or (B, K) class probabilities (mixed images).
        label_smoothing: alpha of label smoothing, from 0 to 1.
        max_suppression: alpha of MaxSup, from 0 to 1.

    Returns:
        Scalar mean over the batch, float32 (float64 for float64 input).
    """
    logits = logits.to(loss_type(logits))
    loss = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    if max_suppression:
        loss = loss + max_suppression * (logits.amax(dim=1) - logits.mean(dim=1)).mean()
    return loss


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
) -> Losses:
    """``kd_weight * kd_loss + (1 - kd_weight) * cross entropy``; plain cross entropy where there is no teacher.

    Args:
        student_logits: (B, K).
        targets: (B,) class numbers or (B, K) class probabilities.
        teacher_logits: (B, K), or None without a teacher.
        temperature: T > 0.
        kd_weight: lambda, from 0 to 1.
        label_smoothing: alpha of the student's own labels, from 0 to 1.
        max_suppression: alpha of MaxSup in the student's own cross entropy, see ``label_loss``.
        kd_loss: what the student is to match, see ``kd_losses``; T^2 times the KL divergence by default.
    """
    ce = label_loss(student_logits, targets, label_smoothing, max_suppression)
    if teacher_logits is None:
        return Losses(ce, torch.zeros_like(ce), ce)
    kd = kd_loss(student_logits, teacher_logits, targets, temperature)
    return Losses(kd_weight * kd + (1 - kd_weight) * ce, kd, ce)


class TrainedTeacher(NamedTuple):
    """A teacher as its file gives it, for the data of this run.

    Attributes:
        network: in evaluation mode, its logits in the order of the data's classes.
        renormalize: (factor, offset), each (3, 1, 1), that turn this run's pixels into those that it was trained on;
            None if they are the same.
        description: what its file says about it.
        notes: lines to tell the user.
    """

    network: nn.Module
    renormalize: tuple[Tensor, Tensor] | None
    description: Description
    notes: list[str]


def read_teacher(
    name: str, weights: str, classes: Sequence[str], preset: Preset, temperatures: Collection[float]
) -> TrainedTeacher:
    """The teacher of ``--teacher`` and ``--teacher-weights``.

    Args:
        name, weights: the network and its weights, a file or a torchvision weights name.
        classes: of the data.
        preset: how this run normalizes pixels.
        temperatures: at which the student is to learn from it; a teacher of smoothed labels is best at 1.

    Raises:
        UserError: there are no such weights, they cannot be read or are of another network or other classes.
    """
    state, description = read_state(weights, name)
    network = build_filled(name, len(classes), state, weights).eval()
    notes = match_classes(network, description, classes)
    smoothing = description.args.get("label_smoothing")
    if isinstance(smoothing, float) and smoothing > 0 and max(temperatures, default=1) > 1:
        notes.append(
            f"note: the teacher was trained with --label-smoothing {smoothing:g}; at a temperature of "
            f"{max(temperatures):g} a student loses what that brings: distil at --kd-temperature 1"
        )
    own = description.mean, description.std
    if None in own or own == (preset.mean, preset.std):
        return TrainedTeacher(network, None, description, notes)
    mean, std, own_mean, own_std = (torch.tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std, *own))
    notes.append(f"note: the teacher is shown pixels as it was trained on them (mean {own[0]}, std {own[1]})")
    return TrainedTeacher(network, (std / own_std, (mean - own_mean) / own_std), description, notes)


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
        renormalize: see ``TrainedTeacher``.
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
        self.model = folded.requires_grad_(False).to(device, memory_format=memory_format)
        with autocast():
            if torch.is_autocast_enabled(device.type):
                _keep_weights_in(torch.get_autocast_dtype(device.type), self.model)
        self._forward = FullBatches(torch.compile(self.model)) if compile else self.model
        self._autocast = autocast

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, K) for ``images`` (B, C, H, W)."""
        with torch.inference_mode(), self._autocast():
            if self.renormalize is not None:
                factor, offset = self.renormalize
                images = images * factor + offset
            return self._forward(images)


def _keep_weights_in(dtype: torch.dtype, model: nn.Module) -> None:
    """Converts the layers whose operation autocast runs in ``dtype`` anyway; subclasses may do something else."""
    for module in model.modules():
        if type(module) in (nn.Conv2d, nn.Linear):
            module.to(dtype)

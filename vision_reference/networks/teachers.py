"""A trained network read from its file and made ready to teach the classes and pixels of a run."""

import hashlib
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vision_reference.images.presets import Preset
from vision_reference.networks.by_name import build_filled, match_classes, read_state
from vision_reference.networks.description import Description


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

    @property
    def label_smoothing(self) -> float:
        """That it was trained with, as far as its file says."""
        smoothing = self.description.args.get("label_smoothing")
        return smoothing if isinstance(smoothing, float) else 0.0


def rule_of_thumb(teacher: object, label_smoothing: float, temperature: float) -> list[str]:
    """A note where a teacher of smoothed labels is to teach above T = 1; none where all is well."""
    if not (label_smoothing > 0 and temperature > 1):
        return []
    return [
        f"note: the teacher {teacher} was trained with --label-smoothing {label_smoothing:g}; at a temperature of "
        f"{temperature:g} a student loses what that brings: distil at --kd-temperature 1"
    ]


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
    trained = TrainedTeacher(network, None, description, notes)
    notes += rule_of_thumb(weights, trained.label_smoothing, max(temperatures, default=1))
    own = description.mean, description.std
    if None in own or own == (preset.mean, preset.std):
        return trained
    mean, std, own_mean, own_std = (torch.tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std, *own))
    notes.append(f"note: the teacher {weights} is shown pixels as it was trained on them (mean {own[0]}, std {own[1]})")
    return TrainedTeacher(network, (std / own_std, (mean - own_mean) / own_std), description, notes)


def hash_weights(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers by name, the same for any file that holds them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.endswith("num_batches_tracked"):  # serves training only, and old files lack it
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()

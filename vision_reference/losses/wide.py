"""Arithmetic in the widest type that a device has, for what would lose its digits in a narrower one."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def widest_type(device: torch.device) -> torch.dtype:
    """The type to compute losses and sums in: float64, or float32 on Apple's GPUs, which have nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64


def average(answers: Sequence[Tensor], temperature: float) -> Tensor:
    """Logits (B, K) whose softmax at ``temperature`` is the mean of those of ``answers``: an ensemble's; float64.

    One answer is returned as it is. The logarithm of the mean is taken without leaving logarithms, so that what every
    teacher believes next to impossible keeps its logit instead of underflowing to a probability of 0.
    """
    if len(answers) == 1:
        return answers[0]
    wide = widest_type(answers[0].device)
    lprobs = torch.stack([torch.log_softmax(answer.to(wide) / temperature, dim=1) for answer in answers])
    return temperature * (lprobs.logsumexp(dim=0) - math.log(len(answers)))

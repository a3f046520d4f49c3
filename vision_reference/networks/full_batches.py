"""Compiled networks that are shown batches of one size only."""

from collections.abc import Callable

import torch
from torch import Tensor


class FullBatches:
    """A compiled network in evaluation mode, for whose odd last batches nothing is compiled anew.

    A batch smaller than one before is filled up with copies of its last image, and the answers to these are dropped:
    in evaluation mode no image's answer depends on its neighbours, so it stays exact.

    Args:
        forward: from images (B, C, H, W) to logits (B, K).
    """

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        self.forward = forward
        self.size = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, K)."""
        count = len(images)
        self.size = max(self.size, count)
        if count == self.size:
            return self.forward(images)
        filled = torch.cat([images, images[-1:].expand(self.size - count, -1, -1, -1)])
        if images.is_contiguous(memory_format=torch.channels_last):
            filled = filled.contiguous(memory_format=torch.channels_last)
        return self.forward(filled)[:count]

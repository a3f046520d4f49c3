"""What every loader hands out, and how it is asked."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from torch import Tensor


class Batch(NamedTuple):
    """Images and what belongs to them, on the training device but for the indices.

    Attributes:
        images: (B, 3, H, W) float32, normalized, in the memory layout of the run.
        targets: (B,) int64 class numbers, ``folders.UNLABELLED`` where there is none; (B, K) class probabilities
            once images are mixed.
        indices: (B,) int64 places of the samples in the data set, on the CPU.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor


class Loader(Protocol):
    """Batches of this process, epoch by epoch; nothing is remembered from one to the next."""

    def __len__(self) -> int:
        """Batches of this process in an epoch."""

    @property
    def step_sizes(self) -> list[int]:
        """Images of each step, summed over processes; of a training loader only."""

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``number`` (from 0) from batch ``first`` on, the same whenever they are asked for."""

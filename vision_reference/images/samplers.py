"""Which samples a process sees, in which order, and the random seed of each one's augmentation.

A sampler gives the batches of an epoch as lists of keys ``(index, seed)``. The seed is a function of (run's seed,
epoch, index, repetition), so the pixels of a training image depend neither on the number of loader workers nor on the
number of processes, and a run that is resumed sees what an uninterrupted run would have seen.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from vision_reference.errors import UserError
from vision_reference.images.seeds import combine_seeds, view_seed

Key = tuple[int, int]

_REPEATED_AUGMENTATION_ROUNDING = 256  # torchvision's recipe rounds the length of such an epoch down to this multiple


class BatchSampler(Protocol):
    """What a loader asks for its batches."""

    def __len__(self) -> int:
        """Batches of this process in an epoch."""

    def epoch(self, number: int) -> Iterator[list[Key]]:
        """The batches of epoch ``number`` (from 0), the same whenever they are asked for."""


def global_batch_sizes(num_samples: int, batch_size: int, world_size: int) -> list[int]:
    """Sizes of the batches of one epoch, summed over ranks: all full but the last, which holds what is left.

    Where the last one would leave a rank with fewer than two samples, it shares evenly with its neighbour: a rank with
    none would stall the others, and batch normalization cannot train on one.

    Args:
        num_samples: samples in the epoch.
        batch_size: samples per process and step.
        world_size: number of processes.

    Raises:
        UserError: there are fewer samples than processes.
    """
    if num_samples < world_size:
        raise UserError(f"{num_samples} training samples cannot be shared by {world_size} processes; start fewer")
    full = batch_size * world_size
    sizes = [full] * (num_samples // full)
    if left := num_samples % full:
        sizes.append(left)
    if len(sizes) > 1 and sizes[-1] < min(2, batch_size) * world_size:
        both = sizes.pop() + sizes.pop()
        # Too few for two steps (batches of one image only): one step takes them all.
        sizes += [both - both // 2, both // 2] if both >= 2 * world_size else [both]
    return sizes


class TrainBatchSampler:
    """Batches of ``(index, seed)`` keys for one process; over all processes each sample once per epoch, newly shuffled.

    Every process has the same number of batches. Within one step the sizes of the processes' batches differ by at most
    one sample; ``step_sizes`` tells the sum over processes, from which a process learns the weight of its own gradient.

    Args:
        num_samples: size of the data set.
        batch_size: samples per process and step.
        seed: the run's seed.
        rank, world_size: this process and the number of processes.
        repetitions: 1, or how many differently augmented copies of a sample an epoch holds (repeated augmentation,
            Hoffer et al. 2020, as torchvision's ``--ra-sampler``): the epoch keeps its length, so that it holds only
            ``1 / repetitions`` of the samples, and the copies of one sample fall on different processes.
        view_seeds: (M, num_samples) seeds of stored views, taken instead of drawn ones: row ``epoch mod M``.

    Raises:
        UserError: there are fewer samples than processes.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        repetitions: int = 1,
        view_seeds: np.ndarray | None = None,
    ) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.repetitions = repetitions
        self.view_seeds = view_seeds
        length = num_samples
        if repetitions > 1 and num_samples >= _REPEATED_AUGMENTATION_ROUNDING:
            length -= num_samples % _REPEATED_AUGMENTATION_ROUNDING
        self.step_sizes = global_batch_sizes(length, batch_size, world_size)

    def __len__(self) -> int:
        return len(self.step_sizes)

    def epoch(self, number: int) -> Iterator[list[Key]]:
        """The batches of epoch ``number``."""
        generator = torch.Generator().manual_seed(combine_seeds(self.seed, number))
        order = torch.randperm(self.num_samples, generator=generator).tolist()
        start = 0
        for size in self.step_sizes:
            places = range(start + self.rank, start + size, self.world_size)
            yield [self._key(number, order, place) for place in places]
            start += size

    def _key(self, epoch: int, order: list[int], place: int) -> Key:
        index, repetition = order[place // self.repetitions], place % self.repetitions
        if self.view_seeds is not None:
            return index, int(self.view_seeds[epoch % len(self.view_seeds), index])
        return index, view_seed(self.seed, epoch, index, repetition)


class EvalBatchSampler:
    """Batches of ``(index, 0)`` keys for one process; over all processes each sample exactly once, none repeated.

    The number of batches may differ between processes: whoever evaluates must not communicate within a batch.
    """

    def __init__(self, num_samples: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, num_samples, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def epoch(self, number: int = 0) -> Iterator[list[Key]]:
        """All batches; every epoch has the same."""
        for start in range(0, len(self.indices), self.batch_size):
            yield [(index, 0) for index in self.indices[start : start + self.batch_size]]


class ViewBatchSampler:
    """Batches of ``(index, seed)`` keys for some views of some samples, none of which goes over two of these parts.

    Args:
        parts: number of a view, and the samples that are shown in it.
        batch_size: samples per batch; the last one of a part may be smaller.
        seed: of sample ``index`` in view ``view``, given (view, index).
    """

    def __init__(
        self, parts: Sequence[tuple[int, Sequence[int]]], batch_size: int, seed: Callable[[int, int], int]
    ) -> None:
        self.parts = parts
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        return sum(-(-len(indices) // self.batch_size) for _, indices in self.parts)

    def epoch(self, number: int = 0) -> Iterator[list[Key]]:
        """All batches; every epoch has the same."""
        for view, indices in self.parts:
            for start in range(0, len(indices), self.batch_size):
                yield [(index, self.seed(view, index)) for index in indices[start : start + self.batch_size]]

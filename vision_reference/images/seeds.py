"""Seeds, and random numbers that depend on a seed alone. Nothing else of the project in here."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch

Bits = TypeVar("Bits", int, np.ndarray)

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def mixed(state: Bits) -> Bits:
    """The output of splitmix64 for 64 bits of state, as a Python integer or uint64 of any shape.

    Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"; its state goes on by ``_GOLDEN``.
    """
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
    return state ^ state >> 31


def combine_seeds(*parts: int) -> int:
    """One well-mixed 64-bit seed from several integers: splitmix64, folded over ``parts``."""
    state = 0
    for part in parts:
        state = mixed((state ^ (part & _MASK)) + _GOLDEN & _MASK)
    return state


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Context in which torch's CPU generator starts from ``seed``; its state is put back afterwards.

    ``torch.manual_seed`` would touch the GPUs' generators too, which a loader in the main process must not.
    """
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def view_seed(seed: int, view: int, index: int, repetition: int = 0) -> int:
    """What fixes the augmentation of sample ``index`` in view or epoch number ``view`` of a run with ``seed``."""
    return combine_seeds(seed, view, index, repetition)


def uniform_numbers(seeds: np.ndarray, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1): ``count`` per sample; row i depends on ``seeds[i]`` only.

    splitmix64 in counter mode.

    Args:
        seeds: (B,) uint64.

    Returns:
        (B, count) float64.
    """
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return (mixed(seeds.astype(np.uint64)[:, None] + steps) >> np.uint64(11)) * 2.0**-53

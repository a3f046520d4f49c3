"""Seeds and numbers made of them, against what splitmix64's authors publish."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vision_reference.images.seeds import combine_seeds, mixed, uniform_numbers

SEEDS = np.arange(20_000, dtype=np.uint64) * np.uint64(0x1234567)
# the first outputs of splitmix64 from state 0, as the reference implementation in C prints them
PUBLISHED = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)


def test_these_are_the_published_numbers():
    assert combine_seeds(0) == PUBLISHED[0]
    expected = [(number >> 11) / 2**53 for number in PUBLISHED]
    assert uniform_numbers(np.zeros(1, np.uint64), 3)[0].tolist() == expected


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_integers_and_arrays_are_mixed_alike(states):
    assert mixed(np.array(states, dtype=np.uint64)).tolist() == [mixed(state) for state in states]


def test_numbers_are_uniform_independent_and_depend_on_the_samples_own_seed_only():
    numbers = uniform_numbers(SEEDS, 3)
    assert numbers.shape == (20_000, 3)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.abs(numbers.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(numbers.var(axis=0) - 1 / 12).max() < 0.002
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.03
    assert np.array_equal(uniform_numbers(SEEDS[5:7], 3), numbers[5:7])
    assert len(np.unique(numbers)) == numbers.size


def test_combined_seeds_differ_for_neighbouring_and_swapped_parts():
    seeds = {combine_seeds(a, b, c) for a in range(20) for b in range(20) for c in range(20)}
    assert len(seeds) == 8000
    assert all(0 <= seed < 2**64 for seed in seeds)

"""How numbers are written."""

import math

import pytest

from scripts.studies import wording
from scripts.studies.statistics import Interval, mean_interval


def test_signs_are_true_minus_signs_and_zero_has_none():
    assert wording.number(-1.26, 1) == "\N{MINUS SIGN}1.3"
    assert [wording.signed(x, 1) for x in (1.26, -1.26, 0.04, -0.04)] == ["+1.3", "\N{MINUS SIGN}1.3", "0.0", "0.0"]


@pytest.mark.parametrize(
    ("half_widths", "decimals"),
    [([0.53], 1), ([0.14], 2), ([2.4], 1), ([14.0], 1), ([0.031], 2), ([0.0004], 3), ([0.5, 0.14, 5.0], 1), ([], 1)],
)
def test_numbers_are_rounded_to_what_their_interval_supports(half_widths, decimals):
    assert wording.decimals_for([*half_widths, math.inf, 0.0]) == decimals


def test_levels_and_differences():
    interval = Interval(61.53, 61.13, 61.93, 5)
    assert wording.level(interval) == "61.5 ± 0.4"
    assert wording.difference(Interval(-1.0, -2.0, 0.0, 3)) == "\N{MINUS SIGN}1.0 [\N{MINUS SIGN}2.0, 0.0]"
    alone = mean_interval([1.5])
    assert wording.level(alone) == "1.5"
    assert wording.difference(alone) == "+1.5"
    assert wording.brackets(alone) == wording.DASH


def test_words_for_counts_times_and_sizes():
    assert wording.listed(["a"]) == "a"
    assert wording.listed(["a", "b", "c"]) == "a, b and c"
    assert [wording.counted(n, "seed") for n in (1, 2)] == ["1 seed", "2 seeds"]
    assert [wording.duration(s) for s in (12, 580, 36000)] == ["12 s", "9.7 min", "10.0 h"]
    assert [wording.size(n) for n in (12, 1500, 2.5e9, 3.2e12)] == ["12 B", "1.5 kB", "2.5 GB", "3.2 TB"]
    assert [wording.p_value(p) for p in (0.03125, 0.125, 0.5, 2**-20)] == ["0.031", "0.125", "0.5", "< 0.0001"]

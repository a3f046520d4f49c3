"""The study's statistics against scipy, brute force, simulation and cases worked by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scripts.studies import statistics
from scripts.studies.statistics import (
    CONTRADICTED,
    EXPLORATORY,
    LEANING,
    NOT_TESTED,
    SUPPORTED,
    UNDECIDED,
    compared_temperatures,
    image_noise,
    interaction,
    judge,
    judge_together,
    mean_interval,
    outcome_difference,
    paired_differences,
    seeds_to_settle,
    sign_flip_p,
    smallest_p,
    verdicts_in_sequence,
    weakest,
)

# Sixteenths: sums of them are exact, so that ties are ties.
values = st.integers(-160, 160).map(lambda sixteenths: sixteenths / 16)
samples = st.lists(values, min_size=1, max_size=9)


def test_only_seeds_that_both_have_are_compared():
    assert paired_differences({2: 5.0, 0: 1.0, 1: 3.0}, {1: 1.0, 2: 1.5, 7: 9.0}) == {1: 2.0, 2: 3.5}
    assert paired_differences({0: 1.0}, {1: 1.0}) == {}


def test_the_interaction_of_the_pilot_by_hand():
    """What T = 4 brings over T = 1: plain +0.8, +1.5, +2.4; smoothed -1.0, -1.0, -2.4."""
    plain = {0: 60.8, 1: 61.0, 2: 62.2}, {0: 60.0, 1: 59.5, 2: 59.8}
    smoothed = {0: 58.2, 1: 59.0, 2: 58.0}, {0: 59.2, 1: 60.0, 2: 60.4}
    assert interaction(plain, smoothed) == pytest.approx({0: 1.8, 1: 2.5, 2: 4.8})


@given(st.lists(values, min_size=2, max_size=30))
def test_the_interval_is_the_one_scipy_gives(sample):
    interval = mean_interval(sample)
    expected = stats.ttest_1samp(sample, 0).confidence_interval(0.95) if len(set(sample)) > 1 else (sample[0],) * 2
    assert (interval.low, interval.high) == pytest.approx(tuple(expected), abs=1e-9)
    assert interval.half_width == pytest.approx((interval.high - interval.low) / 2)


def test_the_interval_by_hand():
    """Mean 2, standard deviation 1, n = 3: half-width 4.302653 / sqrt(3)."""
    interval = mean_interval([1, 2, 3])
    assert (interval.mean, interval.half_width, interval.n) == (2, pytest.approx(4.302653 / math.sqrt(3), rel=1e-6), 3)


def test_one_value_has_no_bounds_and_none_is_refused():
    interval = mean_interval([1.0])
    assert not interval.is_bounded
    assert not interval.excludes_zero
    for bad in ([], [1.0, math.nan], [math.inf]):
        with pytest.raises(ValueError, match="finite"):
            mean_interval(bad)


def _brute_force(sample):
    sums = [
        sum(s * v for s, v in zip(signs, sample, strict=True))
        for signs in itertools.product((1, -1), repeat=len(sample))
    ]
    return sum(total >= sum(sample) for total in sums) / len(sums)


@given(samples)
def test_the_sign_flip_test_counts_all_choices_of_signs(sample):
    assert sign_flip_p(sample) == _brute_force(sample)


def test_the_sign_flip_test_against_scipys_permutation_test():
    sample = np.array([0.8, 1.5, -0.3, 2.4, 0.1, -0.9, 1.1])
    zeros = np.zeros_like(sample)
    expected = stats.permutation_test(
        (sample, zeros),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        alternative="greater",
        n_resamples=np.inf,
    )
    assert sign_flip_p(sample) == pytest.approx(expected.pvalue)


@given(samples, st.randoms(use_true_random=False))
def test_neither_order_nor_scale_of_the_seeds_matters(sample, random):
    shuffled = random.sample(sample, len(sample))
    assert sign_flip_p(shuffled) == sign_flip_p(sample)
    assert sign_flip_p([8 * value for value in sample]) == sign_flip_p(sample)
    assert judge(shuffled).reading == judge(sample).reading


@given(samples)
def test_both_sides_of_the_sign_flip_test_cover_everything(sample):
    """P(sum >= s) + P(sum > -s) by symmetry = 1 + P(sum = s)."""
    positive, negative = sign_flip_p(sample), sign_flip_p([-value for value in sample])
    assert positive + negative >= 1
    assert min(positive, negative) >= smallest_p(len(sample))


def test_the_smallest_p_that_the_seeds_can_give():
    assert [smallest_p(n) for n in (1, 3, 5)] == [0.5, 0.125, 0.03125]
    for n in (1, 3, 5, 20, 33):
        assert sign_flip_p([0.1] * n) == smallest_p(n)  # 0.1 is no binary fraction: ties must survive rounding
    with pytest.raises(ValueError, match="1 to 40 seeds, not 41"):
        sign_flip_p([1.0] * 41)


@given(st.lists(values, min_size=2, max_size=9), st.integers(-50, 50))
def test_what_all_cells_gain_alike_changes_nothing(sample, shift):
    first = dict(enumerate(sample))
    second = {seed: value / 2 for seed, value in first.items()}
    moved = [{seed: value + shift for seed, value in cell.items()} for cell in (first, second)]
    before, after = paired_differences(first, second), paired_differences(*moved)
    assert after == pytest.approx(before)
    # What each seed gains alike in all cells changes nothing either: that is what pairing is for.
    own = [{seed: value + 7 * seed for seed, value in cell.items()} for cell in (first, second)]
    assert paired_differences(*own) == pytest.approx(before)


@given(st.lists(values, min_size=1, max_size=9))
def test_a_finding_turned_round_is_turned_round(sample):
    there, back = judge(sample), judge([-value for value in sample])
    swapped = {SUPPORTED: CONTRADICTED, CONTRADICTED: SUPPORTED}
    assert back.reading == swapped.get(there.reading, there.reading)
    assert (back.direction, back.p, back.p_against) == (-there.direction, there.p_against, there.p)
    assert back.seeds_needed == there.seeds_needed


@pytest.mark.parametrize(
    ("sample", "reading", "direction"),
    [
        ([1.0, 1.1, 0.9, 1.2, 0.8], SUPPORTED, 1),
        ([-1.0, -1.1, -0.9, -1.2, -0.8], CONTRADICTED, -1),
        ([1.8, 2.5, 4.8], LEANING, 1),  # the pilot's interaction: p cannot be below 0.125
        ([-1.8, -2.5, -4.8], LEANING, -1),
        ([1.0, 1.1, 0.9, 1.05], LEANING, 1),  # the interval leaves zero out, yet four seeds reach 0.0625 only
        ([-0.8, 0.5, 0.6], UNDECIDED, 0),  # the pilot's smoothed minus plain at T = 1
        ([0.1, 0.1, 0.1, 0.1, 5.0], UNDECIDED, 0),  # all agree, enough seeds, and the interval holds zero
        ([5.0], UNDECIDED, 0),  # one seed cannot even lean
        ([1.0, 0.0, 1.0], UNDECIDED, 0),
        ([0.0, 0.0, 0.0, 0.0, 0.0], UNDECIDED, 0),
        ([3.0, 3.2, 2.8, 3.1, 2.9, -0.1, 3.0, 3.0], SUPPORTED, 1),  # one seed against it is allowed
    ],
)
def test_readings_by_hand(sample, reading, direction):
    finding = judge(sample)
    assert (finding.reading, finding.direction) == (reading, direction)


# R: power.t.test(delta = d, sd = 1, power = 0.8, type = "one.sample") gives n = 9.94, 14.30, 33.37, 198.15.
@pytest.mark.parametrize(("effect", "seeds"), [(1.0, 10), (0.8, 15), (0.5, 34), (0.2, 199)])
def test_the_seeds_needed_are_those_of_power_tables(effect, seeds):
    assert seeds_to_settle(effect, 1.0) == seeds
    assert seeds_to_settle(-3 * effect, 3.0) == seeds


def test_the_seeds_needed_at_the_ends():
    assert seeds_to_settle(10.0, 1.0) == 5  # the sign-flip test cannot reach 0.05 with fewer
    assert seeds_to_settle(1.0, 0.0) == 5
    assert seeds_to_settle(1e9, 1e-9) == 5
    assert seeds_to_settle(0.0, 1.0) is None
    assert seeds_to_settle(0.01, 1.0) is None


def test_so_many_seeds_do_settle_it_in_a_simulation():
    n = seeds_to_settle(0.9, 1.0)
    draws = np.random.default_rng(0).normal(0.9, 1.0, (20_000, n))
    bound = draws.mean(1) - stats.t.ppf(0.975, n - 1) * draws.std(1, ddof=1) / math.sqrt(n)
    assert (bound > 0).mean() == pytest.approx(statistics._power(0.9, n), abs=0.01)
    assert statistics._power(0.9, n) >= 0.8 > statistics._power(0.9, n - 1)


def test_more_seeds_than_there_are_is_what_an_open_question_needs():
    """Leaning with four seeds that are all but equal: five would do; never four again."""
    assert judge([1.0, 1.01, 0.99, 1.0]).seeds_needed == 5
    assert judge([1.0]).seeds_needed is None
    assert judge([0.1, 0.1, 0.1, 0.1, 5.0]).seeds_needed > 5


def test_a_claim_of_two_parts_needs_both():
    yes, no = judge([1.0, 1.1, 0.9, 1.2, 0.8]), judge([-1.0, -1.1, -0.9, -1.2, -0.8])
    strong, open_ = judge([9.0, 9.1, 8.9, 9.2, 8.8]), judge([1.0, -1.0, 0.5, -0.2, 0.1])
    both = judge_together([strong, yes])
    assert (both.reading, both.interval) == (SUPPORTED, yes.interval)
    against = judge_together([strong, no])  # of two parts: p = 0.031 is not 0.025
    assert (against.reading, against.direction) == (LEANING, -1)
    no_6 = judge([-1.0, -1.1, -0.9, -1.2, -0.8, -1.0])
    assert judge_together([judge([9.0, 9.1, 8.9, 9.2, 8.8, 9.0]), no_6]).reading == CONTRADICTED
    mixed = judge_together([strong, open_])
    assert (mixed.reading, mixed.p, mixed.seeds_needed) == (UNDECIDED, open_.p, open_.seeds_needed)
    leaning = judge_together([strong, judge([1.0, 2.0, 3.0])])
    assert (leaning.reading, leaning.direction) == (LEANING, 1)
    assert weakest([strong, open_, no]) == 2
    assert judge_together([yes]) == yes


def test_in_sequence_what_follows_an_open_claim_is_exploratory():
    assert verdicts_in_sequence([SUPPORTED, LEANING, SUPPORTED, UNDECIDED]) == [
        SUPPORTED,
        LEANING,
        EXPLORATORY,
        EXPLORATORY,
    ]
    assert verdicts_in_sequence([CONTRADICTED, NOT_TESTED, SUPPORTED]) == [CONTRADICTED, NOT_TESTED, SUPPORTED]
    assert verdicts_in_sequence([UNDECIDED, NOT_TESTED, CONTRADICTED]) == [UNDECIDED, NOT_TESTED, EXPLORATORY]


def test_verdicts_are_wrong_no_more_often_than_they_say():
    """Five seeds, no effect in any of three claims: a verdict on any of them in at most 5 % of studies (here 5.0)."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(800):
        readings = [judge(row).reading for row in rng.normal(0, 1, (3, 5))]
        wrong += bool({SUPPORTED, CONTRADICTED} & set(verdicts_in_sequence(readings)))
    assert wrong / 800 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 800)


@pytest.mark.parametrize(("effect", "n"), [(0.3, 5), (1.0, 10), (4.0, 6), (0.05, 1000)])
def test_power_is_scipys_noncentral_t(effect, n):
    expected = stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, effect * math.sqrt(n))
    assert statistics._power(effect, n) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("grid", "compared"),
    [
        ([1, 2, 4, 64], (1, 4)),
        ([64, 3, 2, 1, 3], (1, 3)),
        ([1, 2, 64], (1, 2)),
        ([1, 3], (1, 3)),
        ([1, 2, 8], (1, 2)),  # equally far from 4: the lower
        ([2, 4], (2, 4)),
        ([4, 8], (4, 8)),
        ([0.5, 1, 1.5], (1, 1.5)),
        ([1], None),
        ([], None),
    ],
)
def test_the_grid_alone_chooses_the_temperatures(grid, compared):
    assert compared_temperatures(grid) == compared


def _outcomes(rng, shares, images=400):
    return {seed: (rng.random(images) < share).astype(np.uint8) for seed, share in enumerate(shares)}


def test_outcomes_are_subtracted_image_by_image():
    a, b = {0: np.array([1, 1, 0], np.uint8), 1: np.array([1, 0, 0], np.uint8)}, {0: np.array([0, 1, 1], np.uint8)}
    assert outcome_difference([(1, a), (-1, b)]).tolist() == [100.0, 0.0, -100.0]
    b[1] = np.array([0, 0, 0], np.uint8)
    assert outcome_difference([(1, a), (-1, b)]).tolist() == [100.0, 0.0, -50.0]
    assert outcome_difference([(1, a), (-1, b), (-1, a), (1, b)]).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="no seed"):
        outcome_difference([(1, a), (-1, {})])
    with pytest.raises(ValueError, match="different sizes"):
        outcome_difference([(1, a), (-1, {0: np.zeros(2, np.uint8)})])


def test_the_mean_over_images_is_the_difference_of_the_accuracies():
    rng = np.random.default_rng(0)
    a, b = _outcomes(rng, (0.6, 0.7)), _outcomes(rng, (0.5, 0.5))
    expected = np.mean([100 * (a[seed].mean() - b[seed].mean()) for seed in (0, 1)])
    assert image_noise(outcome_difference([(1, a), (-1, b)])).mean == pytest.approx(expected)


def test_the_bootstrap_over_images_against_scipys_and_the_closed_form():
    rng = np.random.default_rng(0)
    difference = outcome_difference([(1, _outcomes(rng, [0.66] * 3)), (-1, _outcomes(rng, [0.6] * 3))])
    noise = image_noise(difference)
    theirs = stats.bootstrap(
        (difference,), np.mean, vectorized=True, method="percentile", n_resamples=4000, random_state=1
    ).confidence_interval
    error = difference.std() / math.sqrt(len(difference))
    assert (noise.low, noise.high) == pytest.approx(tuple(theirs), abs=0.15 * error)
    assert noise.half_width == pytest.approx(1.959964 * error, rel=0.03)
    assert noise.n == 400


@settings(max_examples=20)
@given(st.permutations(range(40)))
def test_the_order_of_the_images_does_not_matter(order):
    difference = np.arange(40.0) % 3
    assert image_noise(difference[order], resamples=100) == image_noise(difference, resamples=100)


def test_a_test_set_without_images_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        image_noise(np.array([]))

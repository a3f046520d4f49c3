"""The rule for smoothed labels on made-up teachers; scripts/bench/smoothing_detector.py tries it on trained ones."""

import numpy as np
import pytest
from scipy.special import log_softmax

from vision_reference.analysis import smoothing


def teacher(classes, gap, noise, images=400, seed=0, accuracy=0.9):
    """Logits with the true class ``gap`` above the mean of the others, which spread by ``noise``; and labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=images)
    logits = noise * generator.normal(size=(images, classes))
    seen = np.where(generator.random(images) < accuracy, labels, generator.integers(classes, size=images))
    logits[np.arange(images), seen] = gap
    return logits, labels


def test_the_statistics_equal_their_definitions_and_ignore_shifts():
    logits, _ = teacher(10, 6, 1.0, images=101)
    lprobs = log_softmax(logits, axis=1)
    order = np.argsort(-lprobs.max(1))[:51]  # the more confident half of 101 images, the median among them
    rest = [np.delete(lprobs[row], lprobs[row].argmax()) for row in order]
    assert smoothing.spread_of_the_rest(logits) == pytest.approx(np.median([part.std() for part in rest]))
    floor = 10 * np.exp(np.median([np.median(part) for part in rest]))
    assert smoothing.floor_of_the_rest(logits) == pytest.approx(floor)
    assert smoothing.spread_of_the_rest(logits + 50) == pytest.approx(smoothing.spread_of_the_rest(logits))
    assert smoothing.floor_of_the_rest(np.zeros((60, 10))) == pytest.approx(1)


@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_smoothed_and_plain_teachers_are_told_apart_at_any_number_of_classes(classes):
    # What smoothing with alpha asks for: the true class log((1 - alpha) * K / alpha + 1) above all others.
    for alpha in (0.05, 0.1, 0.2):
        verdict = smoothing.looks_smoothed(*teacher(classes, np.log((1 - alpha) * classes / alpha + 1), 0.5))
        assert verdict.answer == smoothing.SMOOTHED
        assert verdict.alpha_range[0] < verdict.alpha < verdict.alpha_range[1]
    verdict = smoothing.looks_smoothed(*teacher(classes, 16, 3.0))
    assert (verdict.answer, verdict.alpha) == (smoothing.PLAIN, None)


def test_a_spread_between_the_limits_tells_nothing():
    between = (smoothing.SMOOTHED_BELOW + smoothing.PLAIN_ABOVE) / 2
    verdict = smoothing.looks_smoothed(*teacher(1000, 40, between))
    assert verdict.spread == pytest.approx(between, rel=0.05)
    assert verdict.answer == smoothing.UNKNOWN


def test_more_smoothing_gives_a_larger_estimate():
    estimates = []
    for alpha in (0.05, 0.1, 0.2):
        verdict = smoothing.looks_smoothed(*teacher(20, np.log((1 - alpha) * 20 / alpha + 1), 0.5))
        estimates.append(verdict.alpha)
    assert estimates == sorted(estimates)


@pytest.mark.parametrize(
    ("logits", "labels", "reason"),
    [
        (*teacher(4, 6, 0.5), "4 classes are too few"),
        (*teacher(10, 6, 0.5, images=49), "49 images are too few"),
        (*teacher(10, 6, 0.5, accuracy=0.0), "hardly better than chance"),
        (*teacher(100, 1.5, 0.5), "unsure of its best half"),
    ],
)
def test_where_nothing_can_be_seen_it_says_so(logits, labels, reason):
    verdict = smoothing.looks_smoothed(logits, labels)
    assert verdict.answer == smoothing.UNKNOWN
    assert reason in verdict.reason

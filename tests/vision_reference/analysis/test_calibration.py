"""Calibration, selection and entropy against scikit-learn, scipy and cases worked by hand."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from vision_reference.analysis import calibration


def sample(seed, images=500, classes=6, scale=3.0):
    """Logits and labels drawn from softmax(logits): calibrated by construction."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(images, classes)) * scale
    labels = np.array([generator.choice(classes, p=p) for p in softmax(logits, 1)])
    return logits, labels


def confident(logits, labels):
    probabilities = softmax(logits, 1)
    return probabilities.max(1), probabilities.argmax(1) == labels


@given(seed=st.integers(0, 2**31), bins=st.sampled_from([1, 10, 15]))
@settings(max_examples=20, deadline=None)
def test_reliability_bins_equal_scikit_learns(seed, bins):
    confidence, correct = confident(*sample(seed, images=200))
    for adaptive, strategy in ((False, "uniform"), (True, "quantile")):
        if adaptive and 200 % bins:
            continue  # scikit-learn interpolates quantiles, which cuts elsewhere where bins are unequal
        mine = calibration.reliability_bins(confidence, correct, bins, adaptive=adaptive)
        accuracy, mean = calibration_curve(correct, confidence, n_bins=bins, strategy=strategy)
        np.testing.assert_allclose(mine.accuracy, accuracy)
        np.testing.assert_allclose(mine.confidence, mean)
        assert mine.count.sum() == 200


def test_expected_calibration_error_of_a_hand_worked_case():
    # Two bins: (0, 0.5] holds 0.5 (wrong) and 0.4 (right), (0.5, 1] holds 0.9 (right) and 0.7 (wrong) and 1 (right).
    confidence, correct = np.array([0.5, 0.4, 0.9, 0.7, 1.0]), np.array([0, 1, 1, 0, 1])
    expected = 2 / 5 * abs(0.5 - 0.45) + 3 / 5 * abs(2 / 3 - 2.6 / 3)
    assert calibration.expected_calibration_error(confidence, correct, 2) == pytest.approx(expected)
    assert calibration.expected_calibration_error(np.zeros(3), np.zeros(3)) == 0
    assert calibration.expected_calibration_error(np.ones(4), np.array([1, 1, 0, 0])) == 0.5


def test_adaptive_calibration_error_against_its_formula():
    logits, labels = sample(1, images=60, classes=4)
    probabilities = softmax(logits * 2, 1)  # overconfident
    total = 0.0
    for k in range(4):
        order = np.argsort(probabilities[:, k])
        for part in order.reshape(15, 4):  # 60 images, 15 bins of 4
            total += abs((labels[part] == k).mean() - probabilities[part, k].mean())
    assert calibration.adaptive_calibration_error(probabilities, labels) == pytest.approx(total / (4 * 15))
    perfect = np.eye(4)[labels]
    assert calibration.adaptive_calibration_error(perfect, labels) == 0


def test_negative_log_likelihood_equals_scikit_learns():
    logits, labels = sample(2)
    for temperature in (0.5, 1.0, 3.0):
        theirs = log_loss(labels, softmax(logits / temperature, 1), labels=range(6))
        assert calibration.negative_log_likelihood(logits, labels, temperature) == pytest.approx(theirs)


@pytest.mark.parametrize("off", [0.5, 1.0, 2.5])
def test_the_calibrating_temperature_undoes_a_factor_and_makes_the_labels_likeliest(off):
    logits, labels = sample(3, images=20000)
    found = calibration.calibrating_temperature(logits * off, labels)
    assert found == pytest.approx(off, rel=0.05)
    theirs = minimize_scalar(
        lambda log_t: log_loss(labels, softmax(logits * off / np.exp(log_t), 1)), bracket=(-1, 1), tol=1e-6
    )
    assert found == pytest.approx(np.exp(theirs.x), rel=1e-3)


def test_no_temperature_calibrates_a_teacher_that_is_always_right_or_knows_nothing():
    assert calibration.calibrating_temperature(np.eye(3) * 5, np.arange(3)) is None
    assert calibration.calibrating_temperature(-np.eye(3) * 5, np.arange(3)) is None


def test_risk_and_coverage_of_a_hand_worked_case():
    # By confidence: right, wrong, right, wrong.
    coverage, risk = calibration.risk_coverage(np.array([0.6, 0.9, 0.7, 0.8]), np.array([0, 1, 1, 0]))
    np.testing.assert_allclose(coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(risk, [0, 1 / 2, 1 / 3, 1 / 2])
    area = calibration.area_under_risk_coverage(np.array([0.6, 0.9, 0.7, 0.8]), np.array([0, 1, 1, 0]))
    assert area == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_equal_confidences_count_by_their_mean_whatever_the_order():
    confidence, correct = np.array([0.9, 0.5, 0.5, 0.5, 0.5]), np.array([1, 1, 0, 0, 1])
    expected = calibration.area_under_risk_coverage(confidence, correct)
    # The mean over all orders of the tied four, by brute force.
    areas = [(np.cumsum(1 - correct[[0, *order]]) / np.arange(1, 6)).mean() for order in permutations(range(1, 5))]
    assert expected == pytest.approx(np.mean(areas))
    assert calibration.area_under_risk_coverage(confidence[::-1], correct[::-1]) == pytest.approx(expected)


@given(seed=st.integers(0, 2**31), temperature=st.sampled_from([1.0, 2.0, 3.0, 64.0]))
@settings(max_examples=20, deadline=None)
def test_entropy_and_mass_equal_scipys(seed, temperature):
    logits, _ = sample(seed, images=30, classes=12)
    probabilities = softmax(logits / temperature, 1)
    assert calibration.mean_entropy(logits, temperature) == pytest.approx(entropy(probabilities, axis=1).mean())
    for count in (1, 5, 10):
        rest = np.sort(probabilities, 1)[:, : 12 - count].sum(1).mean()
        assert calibration.mass_outside_top(logits, count, temperature) == pytest.approx(rest)
    assert calibration.mass_outside_top(logits, 12, temperature) == 0
    assert calibration.mean_entropy(np.zeros((3, 12)), temperature) == pytest.approx(np.log(12))


def test_extreme_logits_stay_finite():
    logits, labels = np.array([[1e5, 0.0, -1e5], [0.0, 1e5, 0.0]]), np.array([0, 1])
    assert calibration.mean_entropy(logits) == pytest.approx(0)
    assert calibration.negative_log_likelihood(logits, labels) == pytest.approx(0)

"""Whether a classifier's probabilities mean what they say: calibration, selective prediction, entropy.

Arrays in, numbers out, float64 inside. ``logits`` are (N, K), ``labels`` (N,), ``confidence`` (N,) is the largest
probability and ``correct`` (N,) whether its class is the label.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_softmax, logsumexp, softmax

BINS = 15
_TEMPERATURES = (1e-2, 1e2)


def log_probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """log softmax(logits / T), (N, K)."""
    return log_softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=1)


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Mean of -log p(label) at temperature T, in nats."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    return float((logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]).mean())


@dataclass(frozen=True)
class ReliabilityBins:
    """A reliability diagram's bars; empty bins are left out, so that all arrays are (number of filled bins,).

    Attributes:
        low, high: edges of the bin on the axis of confidence.
        confidence, accuracy: means over the bin's predictions, 0 to 1.
        count: number of its predictions.
    """

    low: np.ndarray
    high: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def error(self) -> float:
        """|accuracy - confidence|, each bin weighted by its share of the predictions; 0 to 1."""
        return float((np.abs(self.accuracy - self.confidence) * self.count).sum() / self.count.sum())


def reliability_bins(
    confidence: np.ndarray, correct: np.ndarray, bins: int = BINS, *, adaptive: bool = False
) -> ReliabilityBins:
    """Predictions sorted into bins by confidence.

    Args:
        bins: how many.
        adaptive: bins that hold equally many predictions instead of bins of equal width from 0 to 1. Equal
            confidences may then fall into neighbouring bins; they are sorted stably, in the order given.
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if adaptive:
        order = np.argsort(confidence, kind="stable")
        parts = [part for part in np.array_split(order, bins) if len(part)]
        low = np.array([confidence[part[0]] for part in parts])
        high = np.array([confidence[part[-1]] for part in parts])
    else:
        edges = np.linspace(0, 1, bins + 1)
        # (low, high], as Guo et al. 2017 have it, and 0 in the first bin
        number = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
        filled = np.unique(number)
        parts = [np.flatnonzero(number == index) for index in filled]
        low, high = edges[filled], edges[filled + 1]
    return ReliabilityBins(
        low=low,
        high=high,
        confidence=np.array([confidence[part].mean() for part in parts]),
        accuracy=np.array([correct[part].mean() for part in parts]),
        count=np.array([len(part) for part in parts]),
    )


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """ECE (Naeini et al. 2015; Guo et al. 2017): bins of equal width over the largest probability; 0 to 1."""
    return reliability_bins(confidence, correct, bins).error


def adaptive_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """ACE (Nixon et al. 2019, section 3): bins of equal mass, all classes' probabilities, not the largest alone.

    ``1 / (K * R) * sum over classes k and bins r of |share of label k - mean p_k|`` in bin r of the images sorted by
    p_k. With fewer images than bins each image is a bin of its own.

    Args:
        probabilities: (N, K).

    Returns:
        0 to 1; small by nature where there are many classes, most of whose probabilities are near 0.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    total = 0.0
    for number, column in enumerate(probabilities.T):
        gaps = reliability_bins(column, labels == number, bins, adaptive=True)
        total += float(np.abs(gaps.accuracy - gaps.confidence).mean())
    return total / probabilities.shape[1]


def calibrating_temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """The T that makes softmax(logits / T) likeliest for ``labels`` (Guo et al. 2017); above 1: overconfident.

    None where no T between 0.01 and 100 does: the likelihood then grows towards one end, as it does where every
    prediction is right.
    """
    logits = np.asarray(logits, dtype=np.float64)
    own = logits[np.arange(len(labels)), labels]

    def slope(inverse: float) -> float:
        """Of the negative log-likelihood in 1 / T, in which it is convex: the slope rises, and is 0 at the best T."""
        return float(((softmax(logits * inverse, axis=1) * logits).sum(axis=1) - own).mean())

    low, high = (1 / temperature for temperature in reversed(_TEMPERATURES))
    return None if slope(low) >= 0 or slope(high) <= 0 else float(1 / brentq(slope, low, high, xtol=1e-9))


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of errors among the most confident predictions, for every share of predictions kept.

    Among equal confidences nobody can choose, so that they count by their mean: the curve does not depend on the order
    of the images.

    Returns:
        coverage (N,), 1/N to 1, and risk (N,), 0 to 1.
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    order = np.argsort(-confidence, kind="stable")
    wrong = 1.0 - np.asarray(correct, dtype=np.float64)[order]
    _, group, sizes = np.unique(-confidence[order], return_inverse=True, return_counts=True)
    wrong = (np.bincount(group, weights=wrong) / sizes)[group]
    kept = np.arange(1, len(wrong) + 1)
    return kept / len(wrong), np.cumsum(wrong) / kept


def area_under_risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> float:
    """AURC (Geifman et al. 2019): mean of the risk over all coverages; 0 to 1, small is good."""
    return float(risk_coverage(confidence, correct)[1].mean())


def mean_entropy(logits: np.ndarray, temperature: float = 1.0) -> float:
    """Mean entropy of softmax(logits / T), in nats; log K at most."""
    lprobs = log_probabilities(logits, temperature)
    return float(-(np.exp(lprobs) * lprobs).sum(axis=1).mean())


def mass_outside_top(logits: np.ndarray, count: int, temperature: float = 1.0) -> float:
    """Mean probability, at temperature T, that is left to all but the ``count`` likeliest classes; 0 to 1."""
    probabilities = np.exp(log_probabilities(logits, temperature))
    if count >= probabilities.shape[1]:
        return 0.0
    rest = np.partition(probabilities, -count, axis=1)[:, :-count]
    return float(rest.sum(axis=1).mean())

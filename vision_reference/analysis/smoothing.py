"""Whether a teacher was trained with smoothed labels, told by its outputs alone.

Smoothed labels ask for the same small probability of every wrong class, so that the probabilities of all classes but
the likeliest lie close together; hard labels leave them free to fall apart. The rule looks at that spread: the standard
deviation of log p over all classes but the likeliest, the median over the more confident half of the images. It depends
little on the number of classes. MaxSup (arXiv 2502.15798), mixed images and a smoothed teacher's own teacher leave the
same trace: the outputs tell that confidence was held down, not by what.

How much is told by the floor: K times the median probability of those classes, which grows with alpha. A teacher whose
training ended early looks the same for another reason, so one that is not confident of its best half gets no verdict.

The constants were read off teachers of four architectures by

    python scripts/bench/smoothing_detector.py --output results/smoothing_detector

which also counts how often the rule is right on teachers that it was not read off; ``docs/mechanism.md`` has the table.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

# Spread below the first: smoothed; above the second: not; between them nobody can tell.
SMOOTHED_BELOW, PLAIN_ABOVE = 1.75, 2.05
# log(alpha) = INTERCEPT + SLOPE * log(floor), least squares over the smoothed teachers, and the factor by which that is
# off, twice the residuals' standard deviation.
INTERCEPT, SLOPE, ALPHA_FACTOR = -0.520, 0.572, 1.5

FEWEST_IMAGES, FEWEST_CLASSES = 50, 5
LEAST_OVER_CHANCE = 3.0
# Median probability of the likeliest class among the more confident half. Plain teachers stopped after 1 or 2 epochs
# reached 0.27 to 0.43 and looked smoothed by their spread.
LEAST_CONFIDENCE = 0.6

SMOOTHED, PLAIN, UNKNOWN = "smoothed", "not smoothed", "cannot tell"


@dataclass(frozen=True)
class Verdict:
    """What the outputs tell.

    Attributes:
        answer: one of ``SMOOTHED``, ``PLAIN``, ``UNKNOWN``.
        spread: the statistic, in nats; None where it makes no sense.
        alpha: rough estimate of the smoothing; None where it does not look smoothed.
        alpha_range: from where to where alpha probably is.
        reason: in words.
    """

    answer: str
    spread: float | None
    alpha: float | None
    alpha_range: tuple[float, float] | None
    reason: str


def spread_of_the_rest(logits: np.ndarray) -> float:
    """Median, over the more confident half of the images, of the standard deviation of log p over the other classes.

    Args:
        logits: (N, K), K at least 3; "the other classes" are all but the likeliest.

    Returns:
        In nats; does not depend on constants added to an image's logits.
    """
    lprobs, confident = _sorted(logits)
    return float(np.median(lprobs[confident, :-1].std(axis=1)))


def floor_of_the_rest(logits: np.ndarray) -> float:
    """K times the median, over the same images, of the median probability of the other classes; at most about 1."""
    lprobs, confident = _sorted(logits)
    return float(logits.shape[1] * np.exp(np.median(np.median(lprobs[confident, :-1], axis=1))))


def _sorted(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log p (N, K), each row ascending, and which rows (N,) are among the more confident half."""
    lprobs = np.sort(log_softmax(np.asarray(logits, dtype=np.float64), axis=1), axis=1)
    return lprobs, lprobs[:, -1] >= np.median(lprobs[:, -1])


def looks_smoothed(logits: np.ndarray, labels: np.ndarray) -> Verdict:
    """The rule, applied to a validation set's logits (N, K) and labels (N,)."""
    images, classes = logits.shape
    if classes < FEWEST_CLASSES or images < FEWEST_IMAGES:
        few = f"{classes} classes" if classes < FEWEST_CLASSES else f"{images} images"
        return Verdict(UNKNOWN, None, None, None, f"{few} are too few to see it")
    spread = spread_of_the_rest(logits)
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    if accuracy < LEAST_OVER_CHANCE / classes:
        return Verdict(UNKNOWN, spread, None, None, f"it is hardly better than chance ({100 * accuracy:.1f} % right)")
    lprobs, confident = _sorted(logits)
    confidence = float(np.exp(np.median(lprobs[confident, -1])))
    if confidence < LEAST_CONFIDENCE:
        return Verdict(
            UNKNOWN,
            spread,
            None,
            None,
            f"it is unsure of its best half ({confidence:.2f}), smoothed or not trained out",
        )
    if spread > PLAIN_ABOVE:
        return Verdict(PLAIN, spread, None, None, f"wrong classes' log p spread by {spread:.2f}, above {PLAIN_ABOVE:g}")
    if spread > SMOOTHED_BELOW:
        reason = f"wrong classes' log p spread by {spread:.2f}, between {SMOOTHED_BELOW:g} and {PLAIN_ABOVE:g}"
        return Verdict(UNKNOWN, spread, None, None, reason)
    reason = f"wrong classes' log p spread by {spread:.2f} only, below {SMOOTHED_BELOW:g}"
    alpha = min(1.0, float(np.exp(INTERCEPT + SLOPE * np.log(floor_of_the_rest(logits)))))
    return Verdict(SMOOTHED, spread, alpha, (alpha / ALPHA_FACTOR, min(1.0, alpha * ALPHA_FACTOR)), reason)

"""What a study may conclude: differences over paired seeds, intervals, exact tests, verdicts in fixed sequence.

Seeds are paired: within a seed all students share their first weights, the order of the data and its augmentation, so
that every comparison is a difference within a seed, and the spread of that difference over seeds is what counts. The
noise of the test set, which the seeds share, is another thing and is estimated apart (``image_noise``).

Every function is pure; values are in the unit of what is compared (points of accuracy, BLEU, percent of eta).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
POWER = 0.8
MOST_SEEDS = 1000  # a study that would need more is not going to be run
MOST_FLIPPED = 40  # two halves of 2**20 sums each: a second of work
RESAMPLES = 10_000

SUPPORTED, CONTRADICTED, LEANING, UNDECIDED = "supported", "contradicted", "leaning", "undecided"
EXPLORATORY, NOT_TESTED = "exploratory", "not tested"

BySeed = Mapping[int, float]  # {seed: value}


@dataclass(frozen=True)
class Interval:
    """A mean and where it may lie; ``low`` and ``high`` are infinite where one value says nothing about the spread."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    @property
    def is_bounded(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Finding:
    """What the seeds say about "the difference is greater than zero".

    Attributes:
        differences: one for each seed.
        interval: their mean with its 95 % t-interval.
        p: of the one-sided sign-flip test, the small side being a positive difference.
        p_against: of the same test the other way round.
        reading: supported, contradicted, leaning or undecided, as if this were the only question asked.
        direction: 1 where the reading goes towards the claim, -1 against it, 0 where it goes nowhere.
        seeds_needed: how many seeds would settle it if the effect and its spread are as seen; None where nothing
            can be said (one seed) or where more than ``MOST_SEEDS`` would be needed.
    """

    differences: tuple[float, ...]
    interval: Interval
    p: float
    p_against: float
    reading: str
    direction: int
    seeds_needed: int | None

    @property
    def smallest_p(self) -> float:
        """The smallest p that so many seeds can give."""
        return smallest_p(len(self.differences))


def paired(function: Callable[..., float], *cells: BySeed) -> dict[int, float]:
    """``function`` of what the ``cells`` hold for one seed, for every seed that all of them have, in order."""
    shared = sorted(set(cells[0]).intersection(*cells[1:]))
    return {seed: function(*(cell[seed] for cell in cells)) for seed in shared}


def paired_differences(first: BySeed, second: BySeed) -> dict[int, float]:
    """{seed: first - second} over the seeds that both have."""
    return paired(lambda a, b: a - b, first, second)


def interaction(first: tuple[BySeed, BySeed], second: tuple[BySeed, BySeed]) -> dict[int, float]:
    """{seed: (a - b) - (c - d)}: by how much the difference between two cells is greater than that of two others."""
    return paired(lambda a, b, c, d: (a - b) - (c - d), *first, *second)


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean of independent ``values`` with Student's t-interval; a single value has an infinite one.

    Raises:
        ValueError: without values, or where one is not finite.
    """
    sample = np.asarray(values, dtype=np.float64)
    if not sample.size or not np.isfinite(sample).all():
        raise ValueError(f"an interval needs finite values, not {sample.tolist()}")
    mean = float(sample.mean())
    if len(sample) == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    half = float(_t_quantile(len(sample), confidence) * sample.std(ddof=1) / math.sqrt(len(sample)))
    return Interval(mean, mean - half, mean + half, len(sample))


def smallest_p(n: int) -> float:
    """The smallest p that the one-sided sign-flip test can give with ``n`` seeds: 0.125 with 3, 0.03125 with 5."""
    return 2.0**-n


def sign_flip_p(differences: Sequence[float]) -> float:
    """Exact p of "the mean difference is not greater than zero", by flipping signs (Fisher 1935).

    If a teacher made no difference, each seed's difference could as well have had the other sign: p is the share of
    all 2**n choices of signs whose sum is at least the one observed. Counted without a list of all: the sums of one
    half of the seeds are looked up among the sorted sums of the other.

    Raises:
        ValueError: for no seed, or more than ``MOST_FLIPPED``.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not 0 < len(values) <= MOST_FLIPPED:
        raise ValueError(f"the sign-flip test takes 1 to {MOST_FLIPPED} seeds, not {len(values)}")
    observed = values.sum()
    slack = 1e-9 * np.abs(values).sum()  # sums that are equal but for rounding are equal
    half = len(values) // 2
    left, right = _signed_sums(values[:half]), np.sort(_signed_sums(values[half:]))
    at_least = len(right) - np.searchsorted(right, observed - slack - left, side="left")
    return float(at_least.sum() / 2.0 ** len(values))


def _signed_sums(values: np.ndarray) -> np.ndarray:
    """The 2**n sums of ``values`` with every choice of signs."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def seeds_to_settle(mean: float, spread: float, power: float = POWER) -> int | None:
    """How many seeds it takes for a verdict, if the differences have this mean and standard deviation.

    The fewest with which the 95 % t-interval leaves zero out on the side of ``mean`` with probability ``power``
    (noncentral t), and with which the sign-flip test can reach 0.05 at all. None: more than ``MOST_SEEDS``.
    """
    fewest = next(n for n in range(2, MOST_SEEDS) if smallest_p(n) <= SIGNIFICANCE)
    if mean == 0:
        return None
    if spread == 0:
        return fewest
    effect = abs(mean) / spread
    if _power(effect, MOST_SEEDS) < power:
        return None
    low, high = fewest - 1, MOST_SEEDS  # power grows with n: low fails (or is too few), high suffices
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(effect, middle) >= power else (middle, high)
    return high


def _power(effect: float, n: int) -> float:
    """Probability that the t-interval of ``n`` values lies above zero, ``effect`` in standard deviations."""
    noncentrality = effect * math.sqrt(n)
    if noncentrality > 30:  # where the power is one and the noncentral t overflows
        return 1.0
    return 1 - float(special.nctdtr(n - 1, noncentrality, _t_quantile(n, CONFIDENCE)))


def _t_quantile(n: int, confidence: float) -> float:
    """Half-width of the t-interval of ``n`` values, in standard errors."""
    return float(special.stdtrit(n - 1, (1 + confidence) / 2))


def judge(differences: Sequence[float]) -> Finding:
    """What one difference for each seed says about "greater than zero".

    supported or contradicted: the 95 % interval leaves zero out and the sign-flip p is at most 0.05. leaning: all
    seeds (two at least) have the same sign and are too few for any p of 0.05. undecided: everything else.
    """
    values = tuple(float(value) for value in differences)
    interval = mean_interval(values)
    p, p_against = sign_flip_p(values), sign_flip_p([-value for value in values])
    direction = _agreed_sign(values)
    if interval.low > 0 and p <= SIGNIFICANCE:
        reading, direction = SUPPORTED, 1
    elif interval.high < 0 and p_against <= SIGNIFICANCE:
        reading, direction = CONTRADICTED, -1
    elif direction and len(values) > 1 and smallest_p(len(values)) > SIGNIFICANCE:
        reading = LEANING
    else:
        reading, direction = UNDECIDED, 0
    needed = seeds_to_settle(interval.mean, float(np.std(values, ddof=1))) if len(values) > 1 else None
    if needed is not None and reading in (LEANING, UNDECIDED):
        needed = max(needed, len(values) + 1)
    return Finding(values, interval, p, p_against, reading, direction, needed)


def _agreed_sign(values: Sequence[float]) -> int:
    signs = {(value > 0) - (value < 0) for value in values}
    return signs.pop() if len(signs) == 1 else 0


def weakest(parts: Sequence[Finding]) -> int:
    """Which of several findings stands most against a claim that needs them all: the one of the smallest t."""
    return min(range(len(parts)), key=lambda index: _t_statistic(parts[index]))


def _t_statistic(finding: Finding) -> float:
    mean, n = finding.interval.mean, finding.interval.n
    if n == 1:
        return mean
    error = float(np.std(finding.differences, ddof=1)) / math.sqrt(n)
    return mean / error if error else math.copysign(math.inf, mean) if mean else 0.0


def judge_together(parts: Sequence[Finding]) -> Finding:
    """The finding of a claim that holds only where each of its ``parts`` does; its numbers are the weakest part's.

    supported: every part is (an intersection-union test: no correction, p is the largest). contradicted: the weakest
    part is, and any of them could have been the weakest: its p and its interval are corrected for so many (Bonferroni).
    leaning towards it: every part is supported or leans that way; against it: the weakest part does, or contradicts the
    claim with seeds too few for the correction.
    """
    deciding = parts[weakest(parts)]
    differences, allowed = deciding.differences, SIGNIFICANCE / len(parts)
    known = [part.seeds_needed for part in parts if part.seeds_needed is not None]
    needed = max(known) if len(known) == len(parts) else None
    if all(part.reading == SUPPORTED for part in parts):
        reading, direction = SUPPORTED, 1
    elif all(part.direction > 0 for part in parts):
        reading, direction = LEANING, 1
    elif deciding.p_against <= allowed and mean_interval(differences, 1 - allowed).high < 0:
        reading, direction = CONTRADICTED, -1
    elif deciding.direction < 0 and _agreed_sign(differences) < 0 and deciding.smallest_p > allowed:
        reading, direction = LEANING, -1
    else:
        reading, direction = UNDECIDED, 0
    p = max(part.p for part in parts)
    return replace(deciding, p=p, reading=reading, direction=direction, seeds_needed=needed)


def leaves_zero_out(differences: Sequence[float], confidence: float = CONFIDENCE) -> bool:
    """Whether the interval of the mean does; of seeds too few for any verdict it has to have a width.

    Two or three seeds may agree to the last image by chance, and their interval then has none.
    """
    interval = mean_interval(differences, confidence)
    is_known = interval.half_width > 0 or smallest_p(interval.n) <= SIGNIFICANCE
    return interval.excludes_zero and is_known


def verdicts_in_sequence(readings: Sequence[str]) -> list[str]:
    """Verdicts of claims tested in a fixed order, from their ``readings``.

    Up to and with the first claim that is neither supported nor contradicted the readings are the verdicts; what comes
    later is exploratory. Tested so, no claim's p needs a correction for the others (Maurer, Hothorn, Lehmacher 1995).
    A claim that the study was not made to test ("not tested") is no part of the sequence.
    """
    verdicts, is_open = [], True
    for reading in readings:
        if reading == NOT_TESTED:
            verdicts.append(NOT_TESTED)
            continue
        verdicts.append(reading if is_open else EXPLORATORY)
        is_open &= reading in (SUPPORTED, CONTRADICTED)
    return verdicts


def compared_temperatures(temperatures: Sequence[float]) -> tuple[float, float] | None:
    """The two temperatures of the claims, chosen by the grid alone: 4 against 1, or what is nearest in ratio.

    None where the grid has fewer than two. Of two that are equally near the lower one is taken.
    """
    grid = sorted(set(temperatures))
    if len(grid) < 2:
        return None
    low = min(grid[:-1], key=lambda t: (abs(math.log(t)), t))
    high = min((t for t in grid if t > low), key=lambda t: (round(abs(math.log(t / 4)), 9), t))
    return low, high


def image_noise(
    per_image: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Interval:
    """How far a mean over the images of one test set would move with another test set: paired bootstrap over images.

    Args:
        per_image: shape (images,): one difference for each image, as ``outcome_difference`` gives it.
        seed: of the resampling.

    Returns:
        The mean of ``per_image`` and its percentile interval; ``n`` counts images.

    Drawing images with replacement only changes how often each distinct value occurs, so that a multinomial draw over
    the distinct values (a dozen, where outcomes are right or wrong) is the same bootstrap at any size of test set.
    """
    values, counts = np.unique(np.asarray(per_image, dtype=np.float64), return_counts=True)
    total = int(counts.sum())
    if not total:
        raise ValueError("the test set's noise needs at least one image")
    draws = np.random.default_rng(seed).multinomial(total, counts / total, size=resamples)
    means = draws @ values / total
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(values @ counts / total), float(low), float(high), total)


def outcome_difference(signed_cells: Sequence[tuple[int, Mapping[int, np.ndarray]]]) -> np.ndarray:
    """Mean over the shared seeds of a signed sum of outcomes, for each image, in percentage points.

    Args:
        signed_cells: (sign, {seed: outcomes of shape (images,), 1 where right}) for each cell: a difference is
            ``[(1, a), (-1, b)]``, an interaction ``[(1, a), (-1, b), (-1, c), (1, d)]``.

    Raises:
        ValueError: where no seed has all cells, or test sets differ in size.
    """
    seeds = set(signed_cells[0][1]).intersection(*(cell for _, cell in signed_cells[1:]))
    if not seeds:
        raise ValueError("no seed has the outcomes of every cell")
    sizes = {len(cell[seed]) for _, cell in signed_cells for seed in seeds}
    if len(sizes) != 1:
        raise ValueError(f"outcomes of test sets of different sizes: {sorted(sizes)}")
    total = sum(sign * cell[seed].astype(np.float64) for sign, cell in signed_cells for seed in sorted(seeds))
    return 100 * np.asarray(total) / len(seeds)

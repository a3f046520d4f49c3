"""The answer at the top of a study's page: at most five sentences, each computed from the results."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scripts.studies import statistics, wording
from scripts.studies.claims import Claim, analysis_by_seed, labels_name, temperatures_of
from scripts.studies.results import STUDENT, Comparison, Kind, Run, Study, scores_of, short_names
from scripts.studies.statistics import (
    CONTRADICTED,
    EXPLORATORY,
    LEANING,
    NOT_TESTED,
    SUPPORTED,
    UNDECIDED,
    BySeed,
    Interval,
)

TAIL = 0.2  # of the epochs, on which it is judged whether training had come to rest


@dataclass(frozen=True)
class Followed:
    """What is measured on the validation data after each epoch of a run.

    Attributes:
        key: in the entries of ``Run.curve``.
        name, unit: of the measure, and of a difference.
        better: +1 where more is better, -1 where less is.
        flat: a smaller gain than this over the last fifth of training is called flat.
        decimals: in text.
    """

    key: str
    name: str
    unit: str
    better: int
    flat: float
    decimals: int


OF_IMAGES = Followed("acc1", "top-1 accuracy", "points", better=1, flat=0.5, decimals=1)
# BLEU takes a translation of the whole set. 0.02 bits are 1.4 % of perplexity.
OF_TRANSLATION = Followed("val_nll", "negative log-likelihood", "bits per word piece", better=-1, flat=0.02, decimals=2)


def followed(study: Study) -> Followed:
    """What the training curves of a study show."""
    return OF_TRANSLATION if study.is_translation else OF_IMAGES


@dataclass(frozen=True)
class Choice:
    """One way to train the student.

    Attributes:
        name: for use inside a sentence.
        kind: of its teacher, or of its labels.
        temperature: None on labels alone.
        scores: {seed: score}.
    """

    name: str
    kind: Kind
    temperature: float | None
    scores: BySeed

    @property
    def interval(self) -> Interval:
        return statistics.mean_interval(list(self.scores.values()))


def choices(comparison: Comparison) -> list[Choice]:
    """All cells that have a score, the best mean first; of equal ones the plainer."""
    names = short_names(comparison.kinds)
    found = [
        Choice(f"the {names[kind]} teacher at T = {temperature:g}", kind, temperature, scores_of(cell))
        for (kind, temperature), cell in comparison.students.items()
    ]
    found += [Choice(labels_name(kind), kind, None, scores_of(cell)) for kind, cell in comparison.baselines.items()]
    return sorted(
        (choice for choice in found if choice.scores), key=lambda choice: (-choice.interval.mean, choice.kind)
    )


def ranked(comparison: Comparison) -> list[Choice]:
    """``choices`` that have at least half as many seeds as the best covered one: one lucky early seed does not lead."""
    found = choices(comparison)
    most = max((len(choice.scores) for choice in found), default=0)
    return [choice for choice in found if 2 * len(choice.scores) >= most]


def answer(study: Study, comparison: Comparison, claims: Sequence[Claim]) -> list[str]:
    """The sentences, the most important first."""
    best, *others = ranked(comparison) or [None]
    if best is None:
        return ["No student has finished: there is nothing to answer yet."]
    equals = [other for other in others if not _is_told_apart(best, other, 1 + len(others))]
    sentences = [_what_to_do(study, best, others, equals), *_gains(study, best, others, equals)]
    sentences += _claims(claims)
    sentences += _reason(study, comparison)
    return sentences[:4] + _caveat(study, comparison)


def _is_told_apart(best: Choice, other: Choice, ways: int) -> bool:
    """Whether the paired difference's interval leaves zero out, though ``best`` was picked as the best of ``ways``.

    Picked from its results, it looks better than it is. As any two of the ways might have come to be compared, the
    interval is widened so that those of all pairs together hold at 95 % (Bonferroni).
    """
    differences = statistics.paired_differences(best.scores, other.scores)
    confidence = 1 - (1 - statistics.CONFIDENCE) / (ways * (ways - 1) / 2)
    return bool(differences) and statistics.leaves_zero_out(list(differences.values()), confidence)


def _what_to_do(study: Study, best: Choice, others: Sequence[Choice], equals: Sequence[Choice]) -> str:
    interval, unit = best.interval, "" if study.is_translation else " %"
    score = f"{study.score_name} {wording.level(interval)}{unit}"
    score += f" (95 %, n = {interval.n})" if interval.is_bounded else " (one seed)"
    tried = wording.counted(1 + len(others), "way")
    if not others:
        return f"One way has been tried, {best.name}: {score}."
    if len(equals) == len(others):
        return f"Undecided: of {tried} tried {best.name} has the highest mean, {score}, and none is told apart from it."
    do = f"Distil from {best.name}" if best.temperature is not None else f"Do not distil, train on {best.name}"
    return f"{do}: {score}, the highest of {tried} tried."


def _gains(study: Study, best: Choice, others: Sequence[Choice], equals: Sequence[Choice]) -> list[str]:
    """What the best gains over labels alone and over the next best, and what cannot be told apart from it."""
    gains = []
    labels_only = next((other for other in others if other.temperature is None), None)
    compared = [("", labels_only)] if labels_only else []
    if others and others[0] is not labels_only:
        compared.append(("the next best, ", others[0]))
    for role, other in compared:
        differences = statistics.paired_differences(best.scores, other.scores)
        if differences:
            interval = statistics.mean_interval(list(differences.values()))
            gains.append(f"{wording.difference(interval)} {study.unit} over {role}{other.name} (n = {interval.n})")
    if not gains:
        return []
    sentence = f"That is {wording.listed(gains)}"
    corrected = f" (corrected for picking the best of {1 + len(others)})" if len(others) > 1 else ""
    if len(best.scores) == 1:
        return [f"{sentence}; one seed cannot tell ways apart."]
    if not equals:
        return [f"{sentence}; every other way is told apart from it{corrected}."]
    if len(equals) == len(others):
        return [f"{sentence}."]
    names = [other.name for other in equals]
    shown = names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"]
    return [f"{sentence}; not told apart from it{corrected}: {wording.listed(shown)}."]


def _claims(claims: Sequence[Claim]) -> list[str]:
    """One sentence on all claims, grouped by verdict."""
    groups = []
    for verdict in (SUPPORTED, CONTRADICTED, LEANING, UNDECIDED, EXPLORATORY, NOT_TESTED):
        concerned = [claim for claim in claims if claim.verdict == verdict]
        if concerned:
            after = ", as an earlier one is open" if verdict == EXPLORATORY else ""
            groups.append(f"{verdict}{after}: {wording.listed(_mention(claim) for claim in concerned)}")
    if not any(claim.finding for claim in claims):
        return []
    return [f"The paper's claims, in the order of testing. {_capital('; '.join(groups))}."]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _mention(claim: Claim) -> str:
    finding = claim.finding
    if finding is None or claim.verdict in (NOT_TESTED, EXPLORATORY):
        return f"({claim.number})"
    details = []
    if claim.verdict == LEANING:
        details.append("towards it" if finding.direction > 0 else "against it")
    if claim.verdict in (LEANING, UNDECIDED):
        details.append(needed_seeds(claim))
    return f"({claim.number}) {BRIEFLY[claim.number]}" + (f" ({', '.join(details)})" if details else "")


BRIEFLY = {
    1: "raising T costs more with the smoothed teacher",
    2: "the smoothed teacher is better at the low T",
    3: "at the low T the smoothed teacher is the better one",
    4: "the smoothed teacher beats labels alone",
    5: "what is similar is drawn together",
}


def needed_seeds(claim: Claim) -> str:
    """How many seeds would settle an open claim, in words."""
    if claim.finding is None or claim.finding.interval.n == 1:
        return "one seed shows no spread"
    needed = claim.finding.seeds_needed
    if needed is None:
        return f"more than {statistics.MOST_SEEDS:,} seeds would be needed"
    return f"about {needed} seeds would settle it"


def _reason(study: Study, comparison: Comparison) -> list[str]:
    """What the diffusion index says, where it was measured for both kinds of teacher."""
    compared, smoothed = temperatures_of(study, comparison), comparison.smoothed
    if compared is None or smoothed is None:
        return []
    low, high = compared
    eta = [analysis_by_seed(study, comparison, "eta", "eta", kind, high, low) for kind in (smoothed, comparison.plain)]
    if not all(eta):
        return []
    told = [wording.difference(statistics.mean_interval(list(values.values()))) for values in eta]
    what = "words" if study.is_translation else "classes"
    return [
        f"Raising T from {low:g} to {high:g} moved {what} towards their similar ones by {told[0]} % "
        f"under the smoothed teacher and {told[1]} % under the plain one (eta)."
    ]


def _caveat(study: Study, comparison: Comparison) -> list[str]:
    """The reservation that weighs most, in one sentence."""
    parts = []
    if study.is_unfinished:
        parts.append(
            f"the study is not finished ({len(study.runs)} of {study.facts['planned']} jobs), so all this may change"
        )
    if study.shares_teachers:
        parts.append(
            "all seeds share one teacher of each kind, so this is about these teachers and not about smoothing"
        )
    measure = followed(study)
    gain = final_gain([run for run in comparison.runs if run.role == STUDENT], measure)
    if gain is not None and gain.mean > measure.flat:
        amount = f"{wording.number(gain.mean, measure.decimals)} {measure.unit}"
        parts.append(
            f"students still gained {amount} in the last fifth of their training, so longer training may change the "
            "order"
        )
    if not parts:
        return []
    return [f"{_capital('; '.join(parts))}."]


def score_curve(run: Run, measure: Followed) -> tuple[np.ndarray, np.ndarray]:
    """Epochs of a run and what was measured after them, where that is finite."""
    points = []
    for index, entry in enumerate(run.curve):
        score = entry.get(measure.key)
        if isinstance(score, (int, float)) and np.isfinite(score):
            points.append((float(entry.get("epoch", index)), float(score)))
    epochs, scores = zip(*points, strict=True) if points else ((), ())
    return np.array(epochs), np.array(scores)


def rise_at_end(epochs: np.ndarray, scores: np.ndarray) -> float | None:
    """What was gained over the last fifth of training: the slope of a straight line through it, times its length.

    None where the last fifth has fewer than two epochs.
    """
    count = max(round(TAIL * len(epochs)), 2)
    if len(epochs) < count + 1:
        return None
    tail = slice(len(epochs) - count, None)
    slope = np.polyfit(epochs[tail], scores[tail], 1)[0]
    return float(slope * (epochs[-1] - epochs[-1 - count]))


def final_gain(runs: Sequence[Run], measure: Followed) -> Interval | None:
    """Mean over runs of what the last fifth of training brought; above 0 where it made them better."""
    rises = [rise for run in runs if (rise := rise_at_end(*score_curve(run, measure))) is not None]
    return statistics.mean_interval([measure.better * rise for rise in rises]) if rises else None

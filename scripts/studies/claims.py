"""The paper's claims, put to a study: what each compares, in which order they are tested, and what came out.

Chandrasegaran et al. 2022 (arXiv 2206.14532): smooth the teacher and distil at T = 1, because a higher T lets the
smoothed teacher's student mix similar classes up. The temperatures compared are chosen by the grid alone
(``statistics.compared_temperatures``), before any result.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.studies import statistics
from scripts.studies.results import Cell, Comparison, Kind, Study, kind_of, scores_of
from scripts.studies.statistics import NOT_TESTED, UNDECIDED, BySeed, Finding, Interval

ETA_UNIT, SHARE_UNIT = "% of eta", "points of share"


@dataclass(frozen=True)
class Part:
    """One comparison that a claim needs: ``differences`` {seed: value} shall be greater than zero.

    Attributes:
        name: what is subtracted from what.
        unit: of the differences.
        noise: what another test set of this size might give for the mean, None where outcomes are not kept.
    """

    name: str
    unit: str
    differences: BySeed
    finding: Finding
    noise: Interval | None = None


@dataclass(frozen=True)
class Claim:
    """A claim and what the study says about it.

    Attributes:
        number: its place in the order of testing, from 1.
        statement: in words, with this study's temperatures.
        parts: comparisons that must all hold.
        deciding: index of the part whose numbers stand for the claim, the weakest.
        finding: all parts together; None where nothing could be compared.
        verdict: supported, contradicted, leaning, undecided, exploratory or not tested.
        missing: why there is no finding, or which part could not be compared; empty where nothing is missing.
    """

    number: int
    statement: str
    parts: Sequence[Part]
    deciding: int
    finding: Finding | None
    verdict: str
    missing: str = ""

    @property
    def part(self) -> Part:
        """The part whose numbers stand for the claim."""
        return self.parts[self.deciding]


@dataclass(frozen=True)
class _Draft:
    """A claim before its verdict; ``is_partial``: what there is of its parts does not make the claim."""

    statement: str
    parts: Sequence[Part]
    missing: str = ""
    is_partial: bool = False


def claims_of(study: Study, comparison: Comparison) -> list[Claim]:
    """The five claims in the order of testing, with verdicts in fixed sequence."""
    drafts = [_draft(study, comparison) for _draft in (_interaction, _lower_is_better, _smoothing, _labels, _diffusion)]
    findings = [
        statistics.judge_together([part.finding for part in draft.parts]) if draft.parts else None for draft in drafts
    ]
    # What is planned and not there yet keeps later claims from a verdict; what was never planned does not.
    without = UNDECIDED if study.is_unfinished else NOT_TESTED

    def reading(draft: _Draft, finding: Finding | None) -> str:
        if finding and not draft.is_partial:
            return finding.reading
        return NOT_TESTED if draft.missing == ONE_TEMPERATURE else without

    verdicts = statistics.verdicts_in_sequence(list(map(reading, drafts, findings)))
    return [
        Claim(
            number,
            draft.statement,
            draft.parts,
            statistics.weakest([part.finding for part in draft.parts]) if draft.parts else 0,
            finding,
            verdict,
            draft.missing,
        )
        for number, (draft, finding, verdict) in enumerate(zip(drafts, findings, verdicts, strict=True), start=1)
    ]


def temperatures_of(study: Study, comparison: Comparison) -> tuple[float, float] | None:
    """The two temperatures that the claims compare, from the planned grid where it is known."""
    return statistics.compared_temperatures(study.planned_temperatures or comparison.temperatures)


def _interaction(study: Study, comparison: Comparison) -> _Draft:
    compared = temperatures_of(study, comparison)
    if compared is None:
        return _Draft("Raising T costs more with the smoothed teacher than with the plain one", (), ONE_TEMPERATURE)
    low, high = compared
    statement = f"Raising T from {low:g} to {high:g} costs more with the smoothed teacher than with the plain one"
    cells = _cells(comparison, ("plain", high), ("plain", low), ("smoothed", high), ("smoothed", low))
    name = f"(T = {high:g} minus T = {low:g}, plain) minus (the same, smoothed)"
    return _compare(study, statement, [(name, cells, (1, -1, -1, 1))])


def _lower_is_better(study: Study, comparison: Comparison) -> _Draft:
    compared = temperatures_of(study, comparison)
    if compared is None:
        return _Draft("With the smoothed teacher a low T beats a higher one", (), ONE_TEMPERATURE)
    low, high = compared
    cells = _cells(comparison, ("smoothed", low), ("smoothed", high))
    name = f"smoothed teacher, T = {low:g} minus T = {high:g}"
    return _compare(study, f"With the smoothed teacher T = {low:g} beats T = {high:g}", [(name, cells, (1, -1))])


def _smoothing(study: Study, comparison: Comparison) -> _Draft:
    low = _lowest(study, comparison)
    cells = _cells(comparison, ("smoothed", low), ("plain", low))
    name = f"smoothed minus plain teacher, T = {low:g}"
    return _compare(
        study, f"At T = {low:g} the smoothed teacher teaches better than the plain one", [(name, cells, (1, -1))]
    )


def _labels(study: Study, comparison: Comparison) -> _Draft:
    low = _lowest(study, comparison)
    statement = f"The smoothed teacher at T = {low:g} beats labels alone, smoothed or not"
    (taught,) = _cells(comparison, ("smoothed", low))
    baselines = {kind: cell for kind, cell in comparison.baselines.items() if not kind.max_suppression}
    wanted = [
        (f"smoothed teacher at T = {low:g} minus {labels_name(kind)}", [taught, cell], (1, -1))
        for kind, cell in sorted(baselines.items())
    ]
    draft = _compare(study, statement, wanted)
    if not baselines:
        return _Draft(statement, (), "no student was trained on labels alone")
    if draft.parts and len({bool(kind.alpha) for kind in baselines}) == 1:
        lacking = "without smoothing" if next(iter(baselines)).alpha else "with smoothing"
        has = "has finished" if study.is_unfinished else "was trained"
        return _Draft(statement, draft.parts, f"no student {has} on labels alone {lacking}", is_partial=True)
    return draft


def _diffusion(study: Study, comparison: Comparison) -> _Draft:
    compared = temperatures_of(study, comparison)
    what = "words" if study.is_translation else "classes"
    statement = f"Raising T draws similar {what} together under the smoothed teacher, more than under the plain one"
    smoothed = comparison.smoothed
    if compared is None:
        return _Draft(statement, (), ONE_TEMPERATURE)
    low, high = compared
    statement = (
        f"Raising T from {low:g} to {high:g} draws similar {what} together under the smoothed teacher "
        f"(eta > 0{'' if study.is_translation else '; errors within groups'}), more than under the plain one"
    )
    eta = {
        kind: analysis_by_seed(study, comparison, "eta", "eta", kind, high, low)
        for kind in (smoothed, comparison.plain)
        if kind is not None
    }
    parts = []
    if smoothed and eta[smoothed]:
        parts.append(_part(f"eta, smoothed teacher, T = {high:g}", ETA_UNIT, eta[smoothed]))
        more = statistics.paired_differences(eta[smoothed], eta[comparison.plain])
        if more:
            parts.append(_part("eta, smoothed minus plain teacher", ETA_UNIT, more))
    if not parts:
        return _Draft(statement, (), "the features of the students were not analysed")
    if study.is_translation:
        return _Draft(statement, parts, "which errors stay within groups of similar words is not counted")
    share = [error_shares(study, comparison, smoothed, temperature) for temperature in (high, low)]
    moved = statistics.paired_differences(*share)
    if not moved:
        return _Draft(statement, parts, "errors within groups of similar classes were not counted")
    name = f"share of errors within groups, smoothed teacher, T = {high:g} minus T = {low:g}"
    return _Draft(statement, [*parts, _part(name, SHARE_UNIT, moved)])


ONE_TEMPERATURE = "the grid has one temperature"


def labels_name(kind: Kind) -> str:
    """What a student without a teacher learned from."""
    if kind.max_suppression:
        return "MaxSup labels alone"
    return "smoothed labels alone" if kind.alpha else "labels alone"


def _lowest(study: Study, comparison: Comparison) -> float:
    compared = temperatures_of(study, comparison)
    if compared:
        return compared[0]
    return next(iter(study.planned_temperatures or comparison.temperatures), 1.0)


def _cells(comparison: Comparison, *places: tuple[str, float]) -> list[Cell]:
    kinds = {"plain": comparison.plain, "smoothed": comparison.smoothed}
    return [comparison.students.get((kinds[kind], temperature), {}) for kind, temperature in places]  # type: ignore[arg-type]


def _compare(study: Study, statement: str, wanted: Sequence[tuple[str, Sequence[Cell], Sequence[int]]]) -> _Draft:
    """A claim whose parts are signed sums of cells."""
    parts = []
    for name, cells, signs in wanted:
        differences = statistics.paired(_signed_sum(signs), *map(scores_of, cells))
        if not differences:
            return _Draft(statement, (), f"no seed has all runs of “{name}”")
        parts.append(_part(name, study.unit, differences, noise_of(cells, signs)))
    return _Draft(statement, parts)


def _signed_sum(signs: Sequence[int]) -> Callable[..., float]:
    return lambda *scores: sum(sign * score for sign, score in zip(signs, scores, strict=True))


def _part(name: str, unit: str, differences: BySeed, noise: Interval | None = None) -> Part:
    return Part(name, unit, differences, statistics.judge(list(differences.values())), noise)


def noise_of(cells: Sequence[Cell], signs: Sequence[int]) -> Interval | None:
    """The test set's own noise in a signed sum of cells; None where a run that counts has not kept its outcomes."""
    seeds = set(cells[0]).intersection(*cells[1:])
    signed: list[tuple[int, Mapping[int, np.ndarray]]] = []
    for cell, sign in zip(cells, signs, strict=True):
        outcomes = {seed: found for seed in seeds if (found := cell[seed].load_outcomes()) is not None}
        if not outcomes or len(outcomes) < len(seeds):
            return None
        signed.append((sign, outcomes))
    try:
        return statistics.image_noise(statistics.outcome_difference(signed))
    except ValueError:  # no seed in common, or test sets of different sizes, which are no pairs
        return None


def analysis_by_seed(
    study: Study,
    comparison: Comparison,
    analysis: str,
    value: str,
    kind: Kind,
    temperature: float,
    reference: float | None = None,
) -> dict[int, float]:
    """{seed: value} of an analysis of the students of one cell."""
    return {
        int(record.get("seed") or 0): float(record[value])
        for record in study.analyses.get(analysis, ())
        if kind_of(record) == kind
        and record.get("temperature") == temperature
        and (reference is None or record.get("reference", reference) == reference)
        and is_about(record, comparison)
        and isinstance(record.get(value), (int, float))
        and np.isfinite(record[value])
    }


def is_about(record: Mapping[str, Any], comparison: Comparison) -> bool:
    """Whether an analysis is of this comparison's students; one that does not say is of all."""
    return record.get("network", comparison.network) == comparison.network and record.get(
        "settings", comparison.settings
    ) == dict(comparison.settings)


def error_shares(study: Study, comparison: Comparison, kind: Kind | None, temperature: float) -> dict[int, float]:
    """{seed: percent of the errors of the students of one cell that stay within a group of similar classes}."""
    if kind is None:
        return {}
    inside, errors = (
        analysis_by_seed(study, comparison, "confusions", name, kind, temperature) for name in ("inside", "errors")
    )
    return {seed: 100 * inside[seed] / count for seed, count in errors.items() if count and seed in inside}

"""What a study has found so far, read from its folder and put in order: runs, cells of the grid, analyses.

A study's folder holds ``results.jsonl`` (one object for each finished training, and such with a ``kind`` as
``analysis/*.json`` has them), ``study.json`` (its name, data, networks, configuration, failed jobs) and
``analysis/*.json``. Anything may be missing: a page is wanted of half a study too.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vision_reference.errors import UserError

TEACHER, STUDENT, BASELINE = "teacher", "student", "baseline"
USUAL_ALPHA = 0.1  # the smoothing of the paper's teachers: with several, the claims are about the one nearest to it


@dataclass(frozen=True, order=True)
class Kind:
    """How a teacher (or a student on labels alone) treated its labels.

    Attributes:
        alpha: its label smoothing.
        max_suppression: weight of MaxSup (arXiv 2502.15798) in its training, 0 without.
    """

    alpha: float = 0.0
    max_suppression: float = 0.0

    @property
    def is_plain(self) -> bool:
        return not self.alpha and not self.max_suppression


def kind_of(record: Mapping[str, Any]) -> Kind:
    """The ``Kind`` that a line of results or of an analysis is about."""
    return Kind(float(record.get("alpha") or 0), float(record.get("max_suppression") or 0))


@dataclass(frozen=True)
class Run:
    """One finished job.

    Attributes:
        score: top-1 accuracy in percent, or BLEU (mean over the language pairs); None where it is not finite.
        scores: what else was measured, {name: value}: acc1, acc5, or BLEU of each language pair.
        curve: one mapping for each epoch.
        record: the line of ``results.jsonl``.
    """

    job: str
    role: str
    seed: int
    kind: Kind
    temperature: float | None
    network: str
    settings: Mapping[str, Any]
    score: float | None
    scores: Mapping[str, float]
    outcomes: Path | None
    curve: Sequence[Mapping[str, Any]]
    seconds: float | None
    record: Mapping[str, Any]

    def load_outcomes(self) -> np.ndarray | None:
        """(images,) of 0 and 1, whether each validation image was classified rightly; None where that is not kept."""
        if self.outcomes is None or not self.outcomes.is_file():
            return None
        try:
            outcomes = np.load(self.outcomes, allow_pickle=False)
        except (OSError, ValueError):
            return None
        return outcomes if outcomes.ndim == 1 and outcomes.size else None


Cell = dict[int, Run]  # {seed: run}


@dataclass(frozen=True)
class Comparison:
    """The runs that answer one question: one student network in one setting, taught by every kind of teacher at all T.

    Attributes:
        settings: what sets it apart from the study's other comparisons; empty where there is only one.
        students: {(kind of teacher, T): {seed: run}}.
        baselines: {kind of labels: {seed: run}}, the same student on labels alone.
        teachers: {kind: {seed: run}}; the experts of one seed, each of its language pair, count as one.
        teacher_runs: every teacher by itself.
    """

    network: str
    settings: Mapping[str, Any]
    students: Mapping[tuple[Kind, float], Cell]
    baselines: Mapping[Kind, Cell]
    teachers: Mapping[Kind, Cell]
    teacher_runs: Sequence[Run]

    @cached_property
    def temperatures(self) -> list[float]:
        return sorted({temperature for _, temperature in self.students})

    @cached_property
    def kinds(self) -> list[Kind]:
        """Kinds of teacher: plain, smoothed, others."""
        return sorted({kind for kind, _ in self.students} | set(self.teachers), key=kind_order)

    @property
    def plain(self) -> Kind:
        return Kind()

    @cached_property
    def smoothed(self) -> Kind | None:
        """The smoothed teacher that the claims are about: of the study's alphas the one nearest to 0.1."""
        smoothed = [kind for kind in self.kinds if kind.alpha and not kind.max_suppression]
        return min(smoothed, key=lambda kind: (abs(math.log(kind.alpha / USUAL_ALPHA)), kind.alpha), default=None)

    def expert(self, kind: Kind, seed: int, pair: str) -> Run | None:
        """The teacher of a seed's students for one language pair; shared teachers are those of every seed."""
        experts = {run.seed: run for run in self.teacher_runs if run.kind == kind and pair in run.scores}
        return experts.get(seed, next(iter(experts.values())) if len(experts) == 1 else None)

    @cached_property
    def runs(self) -> list[Run]:
        cells = [*self.teachers.values(), *self.baselines.values(), *self.students.values()]
        return [run for cell in cells for run in cell.values()]


def kind_order(kind: Kind) -> tuple[bool, float, float]:
    """Sorts plain, smoothed by rising alpha, MaxSup."""
    return bool(kind.max_suppression), kind.alpha, kind.max_suppression


def scores_of(cell: Mapping[int, Run], metric: str | None = None) -> dict[int, float]:
    """{seed: score} of a cell, or of one of the ``metric``s in ``Run.scores``; runs without it are left out."""
    found = {seed: run.score if metric is None else run.scores.get(metric) for seed, run in sorted(cell.items())}
    return {seed: score for seed, score in found.items() if score is not None}


def short_names(kinds: Sequence[Kind]) -> dict[Kind, str]:
    """What each kind is called beside the others: plain, smoothed, MaxSup; with their numbers where two are alike."""
    smoothed = {kind.alpha for kind in kinds if kind.alpha}
    suppressed = {kind.max_suppression for kind in kinds if kind.max_suppression}
    names = {}
    for kind in kinds:
        parts = []
        if kind.alpha:
            parts.append("smoothed" if len(smoothed) == 1 else f"smoothed {kind.alpha:g}")
        if kind.max_suppression:
            parts.append("MaxSup" if len(suppressed) == 1 else f"MaxSup {kind.max_suppression:g}")
        names[kind] = " + ".join(parts) or "plain"
    return names


def column_name(kind: Kind, name: str) -> str:
    """``name`` of ``short_names`` with the numbers behind it."""
    numbers = []
    if not kind.max_suppression or kind.alpha:
        numbers.append(f"alpha = {kind.alpha:g}")
    if kind.max_suppression:
        numbers.append(f"weight {kind.max_suppression:g}")
    return f"{name} ({', '.join(numbers)})"


@dataclass(frozen=True)
class Study:
    """A study's folder, read.

    Attributes:
        facts: ``study.json``.
        runs: every finished job of today's configuration, its last result.
        analyses: {kind: records} of ``analysis/*.json``.
        notes: what could not be read, in words.
    """

    folder: Path
    facts: Mapping[str, Any]
    runs: Sequence[Run]
    analyses: Mapping[str, Sequence[Mapping[str, Any]]]
    notes: Sequence[str] = field(default_factory=tuple)

    @cached_property
    def is_translation(self) -> bool:
        return any("bleu" in run.record.get("metrics", {}) for run in self.runs)

    @property
    def score_name(self) -> str:
        return "BLEU" if self.is_translation else "top-1 accuracy"

    @property
    def unit(self) -> str:
        """Unit of a difference between two scores."""
        return "BLEU" if self.is_translation else "points"

    @cached_property
    def pairs(self) -> list[str]:
        """Language pairs of a translation study."""
        return sorted({name for run in self.runs for name in run.scores}) if self.is_translation else []

    @property
    def shares_teachers(self) -> bool:
        return self.facts.get("teachers") == "shared"

    @property
    def is_unfinished(self) -> bool:
        """Whether jobs are planned that have not finished; False where the number of planned jobs is not known."""
        planned = self.facts.get("planned")
        return isinstance(planned, int) and planned > len(self.runs)

    @cached_property
    def planned_temperatures(self) -> list[float]:
        """The temperatures of the plan, finished or not; empty where the plan does not say."""
        grid = self.facts.get("temperatures") or []
        return sorted({float(temperature) for temperature in grid}) if isinstance(grid, list) else []

    @cached_property
    def failed(self) -> list[Mapping[str, Any]]:
        failed = self.facts.get("failed") or []
        return [job if isinstance(job, Mapping) else {"job": str(job)} for job in failed]

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """One for each student network and setting, in the order in which their first runs finished."""
        students = [run for run in self.runs if run.role == STUDENT and run.temperature is not None]
        baselines = [run for run in self.runs if run.role == BASELINE]
        keys = {_setting_key(run): run for run in reversed(students)}
        if not keys:  # no student yet: what there is of baselines and teachers is shown all the same
            keys = {_setting_key(run): run for run in reversed(baselines)} or dict.fromkeys([""])
        varied = _varied([run.settings for run in keys.values() if run])
        comparisons = []
        for key, first in reversed(keys.items()):
            settings = first.settings if first else {}
            own = [run for run in students if _setting_key(run) == key]
            labels_only = [run for run in baselines if first and _fits(run, first)]
            teachers = [run for run in self.runs if run.role == TEACHER and _teaches(run, settings)]
            comparisons.append(
                Comparison(
                    first.network if first else "",
                    {name: settings[name] for name in varied if name in settings},
                    _cells((run.kind, run.temperature, run) for run in own),  # type: ignore[arg-type]
                    {kind: cell for (kind, _), cell in _cells((run.kind, 0.0, run) for run in labels_only).items()},
                    _teacher_cells(teachers, self.facts.get("pairs") or self.pairs),
                    teachers,
                )
            )
        return comparisons

    @cached_property
    def unplaced(self) -> list[Run]:
        """Runs that no comparison shows: their settings fit none, or another run has their place."""
        shown = {run.job for one in self.comparisons for run in (*one.runs, *one.teacher_runs)}
        return [run for run in self.runs if run.job not in shown]


def _setting_key(run: Run) -> str:
    return json.dumps([run.network, run.settings], sort_keys=True, default=str)


def _varied(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of settings that are not the same everywhere."""
    names = dict.fromkeys(name for some in settings for name in some)
    return [name for name in names if len({json.dumps(some.get(name), default=str) for some in settings}) > 1]


def _agrees(some: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    return all(others[name] == value for name, value in some.items() if name in others)


def _teaches(teacher: Run, student: Mapping[str, Any]) -> bool:
    """Whether students of these settings may be the teacher's: they name theirs with ``teacher-`` before them."""
    own = {f"teacher-{name}": value for name, value in teacher.settings.items()}
    return _agrees({"teacher-network": teacher.network, **own}, student)


def _fits(baseline: Run, student: Run) -> bool:
    return baseline.network == student.network and _agrees(baseline.settings, student.settings)


def _cells(placed: Iterator[tuple[Kind, float, Run]]) -> dict[tuple[Kind, float], Cell]:
    cells: dict[tuple[Kind, float], Cell] = {}
    for kind, temperature, run in placed:
        cells.setdefault((kind, temperature), {})[run.seed] = run
    return cells


def _teacher_cells(teachers: Sequence[Run], pairs: Sequence[str]) -> dict[Kind, Cell]:
    """{kind: {seed: run}}; experts of one seed, each of its own language pair, count as one teacher of all ``pairs``,
    which has no score of its own until all of them have."""
    cells: dict[Kind, Cell] = {}
    for run in teachers:
        cell = cells.setdefault(run.kind, {})
        if "bleu" in run.record.get("metrics", {}):
            scores = {**(cell[run.seed].scores if run.seed in cell else {}), **run.scores}
            run = replace(
                run, scores=scores, score=sum(scores.values()) / len(scores) if set(pairs) <= {*scores} else None
            )
        cell[run.seed] = run
    return cells


def read_study(folder: Path) -> Study:
    """Read what the study in ``folder`` has found so far.

    Raises:
        UserError: the folder holds no study, or a file of it is damaged beyond a last line cut short.
    """
    facts_file, results_file = folder / "study.json", folder / "results.jsonl"
    if not facts_file.is_file() and not results_file.is_file():
        raise UserError(f"{folder} holds no study (no study.json, no results.jsonl); give the --output of study.py run")
    facts = _read_json(facts_file) if facts_file.is_file() else {}
    if not isinstance(facts, dict):
        raise UserError(f"{facts_file} holds no JSON object")
    if not facts and not results_file.is_file():
        raise UserError(f"{folder} holds no study (nothing in study.json); give the --output of study.py run")
    notes: list[str] = []
    runs: dict[str, Run] = {}
    analyses: dict[str, list[Mapping[str, Any]]] = {}
    for number, record in _json_lines(results_file, notes):
        if isinstance(record, dict) and isinstance(record.get("kind"), str):
            analyses.setdefault(record["kind"], []).append(record)
            continue
        try:
            run = _run(record, folder)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{results_file}, line {number}: no finished job ({error!r})") from None
        runs.pop(run.job, None)
        runs[run.job] = run
    current = facts.get("jobs")
    if isinstance(current, (list, dict)):
        runs = {job: run for job, run in runs.items() if job in current}
    notes += [f"{run.job} ended without a finite score." for run in runs.values() if run.score is None]
    outdated = 0
    for kind, records in _read_analyses(folder / "analysis", notes).items():
        current = [record for record in records if _is_current(record, runs)]
        analyses.setdefault(kind, []).extend(current)
        outdated += len(records) - len(current)
    if outdated:
        notes.append(
            f"{outdated} measurements of networks that were trained anew since are left out; "
            f"python scripts/studies/mechanism.py {folder} measures again."
        )
    return Study(folder, facts, list(runs.values()), analyses, notes)


def stamp(run: Run) -> str:
    """What tells this result of a job from any other of the same job: when it was finished."""
    return str(run.record.get("finished"))


def _is_current(record: Mapping[str, Any], runs: Mapping[str, Run]) -> bool:
    """Whether the networks that an analysis was made of (``of``, {job: stamp}) are those of the results."""
    of = record.get("of")
    return not isinstance(of, Mapping) or all(job in runs and stamp(runs[job]) == made for job, made in of.items())


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _json_lines(path: Path, notes: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(number, object) of each line; a last line without its end was being written and is left out."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            if number == len(lines):
                notes.append("The last line of results.jsonl is cut short and was left out.")
                return
            raise UserError(f"{path}, line {number}: not JSON; repair or remove the line") from None
        yield number, record


def _run(record: Mapping[str, Any], folder: Path) -> Run:
    metrics = record.get("metrics") or {}
    measured = metrics.get("bleu", metrics)
    if not isinstance(measured, Mapping):
        measured = {"BLEU": measured}
    scores = {str(name): float(value) for name, value in measured.items() if _is_finite(value)}
    if "bleu" in metrics:  # a mean over some of the language pairs would be compared with a mean over all
        score = sum(scores.values()) / len(scores) if scores and len(scores) == len(measured) else None
    else:
        score = scores.get("acc1")
    temperature, outcomes = record.get("temperature"), record.get("outcomes")
    return Run(
        job=str(record["job"]),
        role=str(record["role"]),
        seed=int(record.get("seed") or 0),
        kind=kind_of(record),
        temperature=None if temperature is None else float(temperature),
        network=str(record.get("network") or ""),
        settings=record.get("settings") or {},
        score=score,
        scores=scores,
        outcomes=folder / outcomes if outcomes else None,
        curve=record.get("curve") or [],
        seconds=float(record["seconds"]) if _is_finite(record.get("seconds")) else None,
        record=record,
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _read_analyses(folder: Path, notes: list[str]) -> dict[str, list[Mapping[str, Any]]]:
    """{kind: records} of all ``*.json`` in the folder, each one object or a list of them; others are passed over."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            content = _read_json(path)
        except UserError as error:
            notes.append(f"analysis/{path.name} cannot be read ({error}).")
            continue
        for record in content if isinstance(content, list) else [content]:
            if isinstance(record, Mapping) and isinstance(record.get("kind"), str):
                found.setdefault(record["kind"], []).append(record)
    return found

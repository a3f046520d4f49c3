"""What a study's page says, section by section, computed from its results."""

import base64
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scripts.lib.alpha_t_table import PAPER, PAPER_BLEU, TEACHER, temperature_row
from scripts.studies import figures, statistics, wording
from scripts.studies.answer import (
    STILL_RISING,
    answer,
    final_rise,
    needed_seeds,
    ranked,
    score_curve,
)
from scripts.studies.claims import (
    Claim,
    Part,
    analysis_by_seed,
    claims_of,
    error_shares,
    is_about,
    labels_name,
    noise_of,
    temperatures_of,
)
from scripts.studies.content import Block, Cell, Code, Fold, Lead, Panel, Picture, Row, Section, Table, Text
from scripts.studies.figures import Curve, Drawing, Level, Look, Reliability, Series
from scripts.studies.results import (
    BASELINE,
    STUDENT,
    Comparison,
    Kind,
    Run,
    Study,
    kind_of,
    kind_order,
    scores_of,
    short_names,
)
from scripts.studies.statistics import EXPLORATORY, BySeed, Interval
from scripts.studies.wording import DASH

QUESTION = "Should the teacher be trained with label smoothing, and at which temperature should it teach?"
CITATION = (
    "Chandrasegaran, Tran, Zhao, Cheung: Revisiting Label Smoothing and Knowledge Distillation Compatibility: "
    "What was Missing? ICML 2022, arXiv 2206.14532"
)
LARGEST_PANEL = 4_000_000  # bytes of one picture that is put into the page
FEW_ROWS = 8  # of a table that is not folded away
_GREY_LINES = (
    "Thin grey lines below them: what another test set of this size might change, a bootstrap over its images. "
)
_DOTTED = (0, (1, 1.6))


def title_of(study: Study) -> str:
    """Data, teacher to student: the study's own title, or one made from what it holds."""
    if study.facts.get("title"):
        return str(study.facts["title"])
    data = Path(str(study.facts.get("data") or study.facts.get("name") or study.folder.resolve())).name
    networks = study.facts.get("networks") or {}
    students = networks.get("student") or wording.listed(dict.fromkeys(c.network for c in study.comparisons))
    if isinstance(students, list):
        students = wording.listed(map(str, students))
    teacher = networks.get("teacher")
    if isinstance(teacher, list):
        teacher = wording.listed(map(str, teacher))
    return f"{data}: {teacher} to {students}" if teacher and students else f"{data}"


def subtitle_of(study: Study) -> str:
    """How many seeds, how far, of which day."""
    seeds = {run.seed for run in study.runs if run.role != "teacher"} or {run.seed for run in study.runs}
    parts = [wording.counted(len(seeds), "seed")]
    if study.runs:
        parts.append("one teacher of each kind" if study.shares_teachers else "a teacher of each kind for each seed")
    planned = study.facts.get("planned")
    finished = wording.counted(len(study.runs), "run")
    parts.append(f"{len(study.runs)} of {planned} runs finished" if study.is_unfinished else finished)
    if study.failed:
        parts.append(f"{len(study.failed)} failed")
    days = sorted(str(run.record.get("finished") or "")[:10] for run in study.runs)
    if days and days[-1]:
        parts.append(days[-1])
    return ", ".join(parts)


def sections_of(study: Study) -> list[Section]:
    """The page from top to bottom."""
    comparisons = study.comparisons
    claims = [claims_of(study, comparison) for comparison in comparisons]
    several = len(comparisons) > 1
    sections = [_answer(study, comparisons, claims)]
    for index, (comparison, own) in enumerate(zip(comparisons, claims, strict=True), start=1):
        tail = f": {comparison_name(comparison, comparisons)}" if several else ""
        suffix = f"-{index}" if several else ""
        for section in (
            _scores(study, comparison, suffix),
            _claims(study, own, suffix),
            _table(study, comparison, suffix),
            _mechanism(study, comparison, suffix),
            _curves(study, comparison, suffix),
        ):
            if section.blocks:
                sections.append(Section(section.anchor + suffix, section.title + tail, section.blocks))
    teachers = _teachers(study)
    if not several and sections[-1].anchor == "curves":  # teachers come before the curves
        sections.insert(-1, teachers)
    else:
        sections.append(teachers)
    return [*sections, _cost(study), _runs(study), _repeat(study)]


def comparison_name(comparison: Comparison, all_of_them: Sequence[Comparison]) -> str:
    """What sets one comparison apart from the others: its student, its settings."""
    parts = [comparison.network] if len({other.network for other in all_of_them}) > 1 else []
    parts += [f"{name} {_short(value)}" for name, value in comparison.settings.items()]
    return ", ".join(parts) or comparison.network


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


# --- answer -------------------------------------------------------------------------------------------------------


def _answer(study: Study, comparisons: Sequence[Comparison], claims: Sequence[Sequence[Claim]]) -> Section:
    blocks: list[Block] = []
    for comparison, own in zip(comparisons, claims, strict=True):
        if len(comparisons) > 1:
            blocks.append(Text(f"{comparison_name(comparison, comparisons)}:"))
        blocks.append(Lead(answer(study, comparison, own)))
    if len(comparisons) > 1:
        blocks.append(Text("Claims are tested in sequence within each of these comparisons, not across them."))
    blocks += [Text(note) for note in study.notes]
    return Section("answer", "Answer", blocks)


# --- scores -------------------------------------------------------------------------------------------------------


def _scores(study: Study, comparison: Comparison, suffix: str) -> Section:
    title = f"{_capital(study.score_name)} against T"
    if not any(scores_of(cell) for cell in comparison.students.values()):
        return Section("scores", title, [Text("No student has finished yet.")])
    names, look = short_names(comparison.kinds), figures.looks(comparison.kinds, comparison.smoothed)
    series = [
        Series(names[kind], look[kind], {t: scores for t, scores in _by_temperature(comparison, kind) if scores})
        for kind in comparison.kinds
    ]
    series = [line for line in series if line.points]
    bands = [
        Level(labels_name(kind), interval, dash=_DOTTED if kind.alpha or kind.max_suppression else "-")
        for kind, interval in _intervals(comparison.baselines)
    ]
    marks = [Level(names[kind], interval, look[kind]) for kind, interval in _intervals(comparison.teachers)]
    unit = "" if study.is_translation else ", %"
    draw = figures.against_temperature(series, f"{study.score_name}{unit}", bands=bands, marks=marks, links=True)
    caption = (
        f"{_capital(study.score_name)} of the student against the temperature of the "
        "distillation. Every small dot is a seed; thin grey lines join the runs of one seed under different teachers; "
        "large marks are means, bars their 95 % t-intervals over seeds. Horizontal lines with bands: the same student "
        "on labels alone. Short marks on the left: the teachers."
    )
    blocks: list[Block] = [
        Picture(Drawing(f"scores{suffix}", draw), caption, _say_series(series, study.score_name) + _say_levels(bands))
    ]
    differences = _teacher_differences(comparison, names, look)
    if differences:
        draw = figures.against_temperature(differences, f"difference, {study.unit}", zero=True, height=330)
        caption = (
            "What another kind of teacher brings over the plain one at the same T, seed by seed, with 95 % "
            "t-intervals. Above the line: better than the plain teacher."
        )
        alt = _say_series(differences, f"difference to the plain teacher in {study.unit}")
        blocks.append(Picture(Drawing(f"differences{suffix}", draw), caption, alt))
    blocks += _all_differences(study, comparison, names)
    return Section("scores", title, blocks)


def _by_temperature(comparison: Comparison, kind: Kind) -> list[tuple[float, BySeed]]:
    return [(t, scores_of(comparison.students.get((kind, t), {}))) for t in comparison.temperatures]


def _intervals(cells: Mapping[Kind, Mapping[int, Run]]) -> list[tuple[Kind, Interval]]:
    """(kind, interval) of every cell that has a score."""
    found = []
    for kind in sorted(cells, key=kind_order):
        scores = scores_of(cells[kind])
        if scores:
            found.append((kind, statistics.mean_interval(list(scores.values()))))
    return found


def _teacher_differences(comparison: Comparison, names: Mapping[Kind, str], look: Mapping[Kind, Look]) -> list[Series]:
    plain = dict(_by_temperature(comparison, comparison.plain))
    series = []
    for kind in comparison.kinds:
        if kind.is_plain:
            continue
        points = {
            t: differences
            for t, scores in _by_temperature(comparison, kind)
            if (differences := statistics.paired_differences(scores, plain.get(t, {})))
        }
        if points:
            series.append(Series(f"{names[kind]} {wording.MINUS} plain", look[kind], points))
    return series


def _all_differences(study: Study, comparison: Comparison, names: Mapping[Kind, str]) -> list[Block]:
    """Every teacher against the plain one at each T, and every T against the lowest for each teacher."""
    rows: list[Row] = []
    temperatures = comparison.temperatures
    wanted = [
        (f"{names[kind]} minus plain, T = {t:g}", (kind, t), (comparison.plain, t))
        for kind in comparison.kinds
        if not kind.is_plain
        for t in temperatures
    ]
    wanted += [
        (f"{names[kind]}, T = {t:g} minus T = {temperatures[0]:g}", (kind, t), (kind, temperatures[0]))
        for kind in comparison.kinds
        for t in temperatures[1:]
    ]
    for name, first, second in wanted:
        cells = [comparison.students.get(place, {}) for place in (first, second)]
        differences = statistics.paired_differences(*map(scores_of, cells))
        if differences:
            rows.append([name, *_finding_cells(statistics.judge(list(differences.values())), noise_of(cells, (1, -1)))])
    if not rows:
        return []
    unit = "" if study.unit == study.score_name else f", {study.unit}"
    caption = (
        f"Differences in {study.score_name}{unit}. All but those of the claims are exploratory: of so many, "
        "some leave zero out by chance."
    )
    head = ["difference", "mean", "95 % over seeds", "p (one-sided)", "n", "test set's noise, 95 %"]
    return [Fold("All differences, in numbers", [Table(caption, head, rows)])]


def _finding_cells(finding: statistics.Finding, noise: Interval | None) -> list[str | Cell]:
    decimals = wording.decimals_for([finding.interval.half_width])
    return [
        wording.signed(finding.interval.mean, decimals),
        wording.brackets(finding.interval, decimals),
        wording.p_value(min(finding.p, finding.p_against)),
        str(finding.interval.n),
        wording.brackets(noise, decimals) if noise else DASH,
    ]


def _say_series(series: Sequence[Series], what: str) -> str:
    """What a figure against T shows, in words."""
    said = []
    for line in series:
        means = [
            f"{wording.level(statistics.mean_interval(list(values.values())))} at T = {t:g}"
            for t, values in sorted(line.points.items())
        ]
        said.append(f"{line.name}: {', '.join(means)}")
    return f"Line chart of {what} against T. {'. '.join(said)}."


def _say_levels(levels: Sequence[Level]) -> str:
    return "".join(f" {level.name}: {wording.level(level.interval)}." for level in levels)


# --- claims -------------------------------------------------------------------------------------------------------


def _claims(study: Study, claims: Sequence[Claim], suffix: str) -> Section:
    blocks: list[Block] = [
        Text(
            "The paper's claims in the order in which they are tested. A verdict needs a 95 % interval that leaves "
            "zero out and a sign-flip p of at most 0.05; after the first claim without one, later ones are exploratory "
            "(in brackets: how they would read alone). A claim of several parts stands on its weakest."
        )
    ]
    if any(claim.finding for claim in claims):
        caption = (
            "Claims. Diamonds are means, filled where there is a verdict; dots are seeds; thick lines 95 % t-intervals "
            f"over seeds. {'' if study.is_translation else _GREY_LINES}Right of zero: as the paper claims."
        )
        alt = "Forest plot. " + " ".join(_say_claim(claim) for claim in claims if claim.finding)
        blocks.append(Picture(Drawing(f"claims{suffix}", figures.forest(claims)), caption, alt))
    head = ["claim", "estimate", "95 % over seeds", "p", "smallest p", "n", "test set's noise", "verdict"]
    blocks.append(Table("The claims in numbers", head, [_claim_row(claim) for claim in claims], words=(7,)))
    missing = [f"Claim {claim.number}: {claim.missing}." for claim in claims if claim.missing]
    if missing:
        blocks.append(Text(" ".join(missing)))
    parts = [(claim, part) for claim in claims if len(claim.parts) > 1 for part in claim.parts]
    if parts:
        rows = [_part_row(claim, part) for claim, part in parts]
        head = ["part", "mean", "95 % over seeds", "p (one-sided)", "n", "test set's noise, 95 %", "alone"]
        caption = "What claims of several parts rest on; each part must be greater than zero"
        blocks.append(Fold("Parts of the claims", [Table(caption, head, rows, words=(6,))]))
    if suffix in ("", "-1"):  # of several comparisons the first: students of all are compared with each other
        blocks += _sentence_noise(study)
    return Section("claims", "Claims", blocks)


def verdict_words(claim: Claim) -> str:
    """The verdict with what belongs to it: which way it leans, seeds needed, how an exploratory claim would read."""
    if claim.finding is None:
        return claim.verdict
    reading, towards = claim.finding.reading, "towards it" if claim.finding.direction > 0 else "against it"
    leans = f"{statistics.LEANING} {towards}"
    if claim.verdict == EXPLORATORY:
        return f"{EXPLORATORY} ({leans if reading == statistics.LEANING else reading})"
    if claim.verdict == statistics.LEANING:
        return f"{leans}; {needed_seeds(claim)}"
    return f"{claim.verdict}; {needed_seeds(claim)}" if claim.verdict == statistics.UNDECIDED else claim.verdict


def _say_claim(claim: Claim) -> str:
    assert claim.finding is not None
    estimate = wording.difference(claim.finding.interval)
    return f"{claim.number}, {claim.statement}: {estimate} {claim.part.unit}, {verdict_words(claim)}."


def _claim_row(claim: Claim) -> Row:
    name = f"{claim.number}. {claim.statement}"
    if claim.finding is None:
        return [name, *[DASH] * 6, Cell(verdict_words(claim), mark=claim.verdict)]
    finding, noise = claim.finding, claim.part.noise
    decimals = wording.decimals_for([finding.interval.half_width])
    return [
        name,
        Cell(wording.signed(finding.interval.mean, decimals), note=claim.part.unit),
        wording.brackets(finding.interval, decimals),
        wording.p_value(finding.p),
        wording.p_value(finding.smallest_p),
        str(finding.interval.n),
        wording.brackets(noise, decimals) if noise else DASH,
        Cell(verdict_words(claim), mark=claim.verdict),
    ]


def _part_row(claim: Claim, part: Part) -> Row:
    return [f"({claim.number}) {part.name}", *_finding_cells(part.finding, part.noise), part.finding.reading]


def _sentence_noise(study: Study) -> list[Block]:
    """sacrebleu's paired bootstrap over sentences, where the evaluation made one."""
    records = [
        record
        for record in study.analyses.get("bootstrap", ())
        if isinstance(record.get("difference"), (int, float)) and isinstance(record.get("p"), (int, float))
    ]
    rows: list[Row] = [
        [
            str(record.get("name", "")),
            str(record.get("pair", "")),
            wording.signed(float(record["difference"]), 1),
            wording.p_value(float(record["p"])),
        ]
        for record in records
    ]
    if not rows:
        return []
    caption = (
        "The test set's own noise: sacrebleu's paired bootstrap over sentences (p: two-sided, 1,000 resamples). It "
        "says nothing about other seeds, and is no verdict"
    )
    table = Table(caption, ["difference", "pair", "BLEU", "p"], rows, words=(1,))
    return [table] if len(rows) <= FEW_ROWS else [Fold("The test set's own noise, sentence by sentence", [table])]


# --- the paper's table --------------------------------------------------------------------------------------------


def _table(study: Study, comparison: Comparison, suffix: str) -> Section:
    name = study.score_name if study.is_translation else f"{study.score_name} in percent"
    if study.is_translation and len(study.pairs) > 1:
        name = f"BLEU, mean over {wording.listed(study.pairs)}"
    blocks: list[Block] = [_one_table(study, comparison, name, None)]
    best = ranked(comparison)
    if best:
        blocks.append(
            Text(
                "Mean, half-width of the 95 % t-interval over seeds, and number of seeds. Bold: the best T of its "
                "column, where its paired difference to the next leaves zero out. The best of many means is a little "
                "too good: it was picked for its luck as well."
            )
        )
    if study.is_translation and study.facts.get("paper") in PAPER_BLEU:
        blocks.append(
            Text("The paper's BLEU is of lower-case text tokenized otherwise: compare differences, not levels.")
        )
    others = study.pairs if study.is_translation and len(study.pairs) > 1 else []
    if not study.is_translation and any("acc5" in run.scores for run in comparison.runs):
        others = ["acc5"]
    if others:
        tables = [
            _one_table(study, comparison, "top-5 accuracy in percent" if metric == "acc5" else f"BLEU {metric}", metric)
            for metric in others
        ]
        blocks.append(Fold("Top-5 accuracy" if others == ["acc5"] else "Each language pair", tables))
    return Section("table", "The paper's table", blocks)


def _one_table(study: Study, comparison: Comparison, name: str, metric: str | None) -> Table:
    names = short_names(comparison.kinds)
    kinds = [*comparison.kinds, *sorted(set(comparison.baselines) - set(comparison.kinds), key=kind_order)]
    names |= {kind: n for kind, n in short_names(kinds).items() if kind not in names}
    rows_of_cells: list[tuple[str, str, dict[Kind, BySeed]]] = [
        ("teacher", TEACHER, {kind: scores_of(cell, metric) for kind, cell in comparison.teachers.items()}),
        ("labels alone", "", {kind: scores_of(cell, metric) for kind, cell in comparison.baselines.items()}),
    ]
    for t in comparison.temperatures:
        cells = {kind: scores_of(comparison.students.get((kind, t), {}), metric) for kind in kinds}
        rows_of_cells.append((temperature_row(t), temperature_row(t), cells))
    intervals = {
        (row, kind): statistics.mean_interval(list(scores.values()))
        for row, _, cells in rows_of_cells
        for kind, scores in cells.items()
        if scores
    }
    decimals = wording.decimals_for(interval.half_width for interval in intervals.values())
    best = {kind: _clear_best({row: cells.get(kind, {}) for row, _, cells in rows_of_cells[2:]}) for kind in kinds}
    rows: list[Row] = []
    for row, paper_row, cells in rows_of_cells:
        if not any(cells.values()):
            continue
        shown: list[str | Cell] = [row]
        for kind in kinds:
            interval = intervals.get((row, kind))
            if interval is None:
                shown.append(DASH)
                continue
            note = f"n = {interval.n}"
            published = _published(study, comparison, paper_row, kind, metric)
            if published is not None:
                note += f"; paper {published:.2f}"
            shown.append(Cell(wording.level(interval, decimals), note, is_best=best[kind] == row))
        rows.append(shown)
    return Table(
        f"{_capital(name)}, by temperature and kind of teacher",
        ["", *(_column(kind, names[kind]) for kind in kinds)],
        rows,
    )


def _column(kind: Kind, name: str) -> str:
    numbers = []
    if not kind.max_suppression or kind.alpha:
        numbers.append(f"alpha = {kind.alpha:g}")
    if kind.max_suppression:
        numbers.append(f"weight {kind.max_suppression:g}")
    return f"{name} ({', '.join(numbers)})"


def _clear_best(column: Mapping[str, BySeed]) -> str | None:
    """The row whose mean is highest, if its paired difference to the next leaves zero out."""
    means = {row: statistics.mean_interval(list(s.values())).mean for row, s in column.items() if s}
    if len(means) < 2:
        return None
    first, second = sorted(means, key=lambda row: -means[row])[:2]
    differences = statistics.paired_differences(column[first], column[second])
    if not differences or not statistics.mean_interval(list(differences.values())).low > 0:
        return None
    return first


def _published(study: Study, comparison: Comparison, row: str, kind: Kind, metric: str | None) -> float | None:
    """The paper's own number, where the study says that its configuration is the paper's."""
    name = str(study.facts.get("paper"))
    if study.is_translation:
        table = PAPER_BLEU.get(name, {})
        found = [table.get(pair, {}).get((row, kind.alpha)) for pair in ([metric] if metric else study.pairs)]
        known = [value for value in found if value is not None]
        return sum(known) / len(known) if known and len(known) == len(found) else None
    if kind.max_suppression or metric not in (None, "acc5"):
        return None
    numbers = PAPER.get(name, {}).get(comparison.network, {}).get((row, kind.alpha))
    return numbers[1 if metric == "acc5" else 0] if numbers else None


# --- mechanism ----------------------------------------------------------------------------------------------------


def _mechanism(study: Study, comparison: Comparison, suffix: str) -> Section:
    blocks: list[Block] = [*_panels(study, comparison), *_eta(study, comparison, suffix)]
    blocks += _shares(study, comparison, suffix)
    blocks += _moved(study, comparison)
    if not blocks:
        blocks.append(
            Text("Not analysed: the study's folder holds no measurements of the students' features (analysis/*.json).")
        )
    return Section("mechanism", "Mechanism", blocks)


def _panels(study: Study, comparison: Comparison) -> list[Block]:
    blocks: list[Block] = []
    for record in study.analyses.get("panels", ()):
        if not is_about(record, comparison):
            continue
        file = _inside(study.folder / "analysis", str(record.get("image", "")))
        if file is None or file.suffix not in (".svg", ".png") or file.stat().st_size > LARGEST_PANEL:
            blocks.append(Text(f"A picture is missing or too large for the page: analysis/{record.get('image')}."))
            continue
        kind = "svg+xml" if file.suffix == ".svg" else "png"
        source = f"data:image/{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
        caption = str(record.get("caption") or "Penultimate-layer features of three classes.")
        relative = file.relative_to(study.folder.resolve()).as_posix()
        blocks.append(Panel(source, relative, caption, str(record.get("alt") or caption)))
    return blocks


def _inside(folder: Path, name: str) -> Path | None:
    """The file of that name, if it lies in the folder."""
    try:
        path = (folder / name).resolve()
    except (OSError, ValueError):
        return None
    return path if path.is_file() and path.is_relative_to(folder.resolve()) else None


def _eta(study: Study, comparison: Comparison, suffix: str) -> list[Block]:
    names, look = short_names(comparison.kinds), figures.looks(comparison.kinds, comparison.smoothed)
    series = []
    for value, name, is_control in (("eta", "{}", False), ("control", "{}, control", True)):
        for kind in comparison.kinds:
            points = {
                t: found
                for t in comparison.temperatures
                if (found := analysis_by_seed(study, comparison, "eta", value, kind, t))
            }
            if points:
                series.append(Series(name.format(names[kind]), look[kind], points, is_control))
    if not series:
        return []
    reference = temperatures_of(study, comparison)
    low = f"T = {reference[0]:g}" if reference else "the lowest T"
    caption = (
        f"Diffusion index eta: by how many percent raising T from {low} moved a class's features towards those of its "
        "most similar classes, relative to all others; mean over classes, 95 % t-interval over seeds. Hollow: the same "
        "for as many of the least similar classes, a control. Above zero: similar classes drew together."
    )
    draw = figures.against_temperature(series, "eta, %", zero=True, height=370)
    return [Picture(Drawing(f"eta{suffix}", draw), caption, _say_series(series, "the diffusion index eta in percent"))]


def _shares(study: Study, comparison: Comparison, suffix: str) -> list[Block]:
    names, look = short_names(comparison.kinds), figures.looks(comparison.kinds, comparison.smoothed)
    series = []
    for kind in comparison.kinds:
        points = {t: s for t in comparison.temperatures if (s := error_shares(study, comparison, kind, t))}
        if points:
            series.append(Series(names[kind], look[kind], points))
    if not series:
        return []
    records = study.analyses.get("confusions", ())
    groups = next((str(record["groups"]) for record in records if record.get("groups")), "groups of similar classes")
    chances = [float(r["chance"]) for r in records if isinstance(r.get("chance"), (int, float))]
    chance = (
        f" Errors that fell evenly on all classes would stay inside in {100 * np.mean(chances):.0f} % of cases."
        if chances
        else ""
    )
    caption = f"Share of the students' errors that stay within a group of similar classes ({groups}).{chance}"
    draw = figures.against_temperature(series, "errors inside groups, %", height=330)
    alt = _say_series(series, "the share of errors inside groups in percent")
    return [Picture(Drawing(f"shares{suffix}", draw), caption, alt)]


def _moved(study: Study, comparison: Comparison) -> list[Block]:
    names = short_names(comparison.kinds)
    records = [
        record
        for record in study.analyses.get("moved", ())
        if all(isinstance(record.get(name), (int, float)) for name in ("before", "after", "temperature"))
        and is_about(record, comparison)
    ]
    records.sort(key=lambda record: -abs(record["after"] - record["before"]))
    rows: list[Row] = [
        [
            f"{record.get('right')} taken for {record.get('taken_for')}",
            names.get(kind_of(record), "other"),
            f"{float(record.get('reference') or 1):g} to {record['temperature']:g}",
            wording.number(record["before"], 1),
            wording.number(record["after"], 1),
            wording.signed(record["after"] - record["before"], 1),
        ]
        for record in records[:3]
    ]
    if not rows:
        return []
    head = ["confusion", "teacher", "T", "errors before", "after", "change"]
    return [Table("The confusions that moved most, errors of one student (mean over seeds)", head, rows, words=(1,))]


# --- teachers -----------------------------------------------------------------------------------------------------

_MEASURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("acc1", "top-1, %", lambda x: f"{x:.1f}"),
    ("bleu", "BLEU", lambda x: f"{x:.1f}"),
    ("ece", "ECE, %", lambda x: f"{100 * x:.1f}"),
    ("ace", "ACE, %", lambda x: f"{100 * x:.2f}"),
    ("calibrating_temperature", "calibrating T", lambda x: f"{x:.2f}"),
    ("aurc", "AURC", lambda x: f"{x:.3f}"),
    ("tightness", "tightness", lambda x: f"{x:.2f}"),
)


def _teachers(study: Study) -> Section:
    records = study.analyses.get("teacher", ())
    by_kind: dict[Kind, list[Mapping[str, Any]]] = {}
    for record in records:
        by_kind.setdefault(kind_of(record), []).append(record)
    kinds = sorted(by_kind, key=kind_order)
    if not kinds:
        text = "Not inspected: the study's folder holds no measurements of the teachers (analysis/*.json)."
        return Section("teachers", "Teachers", [Text(text)])
    names = short_names(kinds)
    smoothed = next((comparison.smoothed for comparison in study.comparisons), None)
    look = figures.looks(kinds, smoothed)
    blocks: list[Block] = []
    diagrams = [d for kind in kinds if (d := _diagram(names[kind], look[kind], by_kind[kind])) is not None]
    if diagrams:
        caption = (
            "Reliability of the teachers on the validation images: how often they are right against how sure they are. "
            "Above the diagonal: less sure than right. Marks grow with the number of images; all seeds together."
        )
        alt = "Reliability diagrams. " + " ".join(f"{d.name}: {d.note}." for d in diagrams)
        blocks.append(Picture(Drawing("reliability", figures.reliability(diagrams)), caption, alt))
    measured = [(key, head, tell) for key, head, tell in _MEASURES if any(_numbers(records, key))]
    rows: list[Row] = []
    for kind in kinds:
        own = by_kind[kind]
        cells = [_mean_of(own, key, tell) for key, _, tell in measured]
        rows.append([_column(kind, names[kind]), *cells, _looks(own), str(len(own))])
    head = ["teacher", *(name for _, name, _ in measured), "looks smoothed", "n"]
    blocks.append(Table("Teachers: means over seeds ± standard deviation", head, rows, words=(len(head) - 2,)))
    blocks.append(
        Text(
            "ECE, ACE: expected and adaptive calibration error. Calibrating T: the temperature that would calibrate "
            "the teacher. AURC: area under risk against coverage, low where its confidence tells right from wrong. "
            "Tightness: spread within classes over spread between them."
        )
    )
    return Section("teachers", "Teachers", blocks)


def _looks(records: Sequence[Mapping[str, Any]]) -> str:
    """How teachers of one kind look, "smoothed, alpha about 0.1 to 0.12"."""
    says = wording.listed(dict.fromkeys(str(record.get("looks_smoothed", DASH)) for record in records), last="or")
    alphas = [f"{alpha:.2g}" for alpha in sorted(_numbers(records, "looks_alpha"))]
    return f"{says}, alpha about {' to '.join(dict.fromkeys([alphas[0], alphas[-1]]))}" if alphas else says


def _numbers(records: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    return [
        float(record[key])
        for record in records
        if isinstance(record.get(key), (int, float)) and np.isfinite(record[key])
    ]


def _mean_of(records: Iterable[Mapping[str, Any]], key: str, tell: Callable[[float], str]) -> str | Cell:
    values = _numbers(records, key)
    if not values:
        return DASH
    return Cell(tell(float(np.mean(values))), f"± {tell(float(np.std(values, ddof=1)))}" if len(values) > 1 else "")


def _diagram(name: str, look: Look, records: Sequence[Mapping[str, Any]]) -> Reliability | None:
    """The bins of all seeds of one kind of teacher, put together."""
    pooled: dict[int, np.ndarray] = {}
    for record in records:
        for entry in record.get("reliability") or ():
            values = [entry.get(key) for key in ("confidence", "accuracy", "count")]
            if all(isinstance(value, (int, float)) and np.isfinite(value) for value in values) and values[2] > 0:
                confidence, accuracy, count = map(float, values)
                row = min(int(confidence * 15), 14)
                pooled[row] = pooled.get(row, np.zeros(3)) + count * np.array([confidence, accuracy, 1])
    if not pooled:
        return None
    sums = np.array([pooled[row] for row in sorted(pooled)])
    errors = _numbers(records, "ece")
    note = f"ECE {100 * np.mean(errors):.1f} %" if errors else ""
    return Reliability(name, look, sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2], sums[:, 2], note)


# --- curves -------------------------------------------------------------------------------------------------------


def _curves(study: Study, comparison: Comparison, suffix: str) -> Section:
    look = figures.looks(comparison.kinds, comparison.smoothed)
    names = short_names(comparison.kinds)
    panels: dict[str, list[Curve]] = {}
    key: dict[str, Curve] = {}

    def add(title: str, name: str, runs: Iterable[Run], of: Look | None, dash: Any = "-") -> None:
        for run in runs:
            epochs, scores = score_curve(run)
            if len(epochs) > 1:
                curve = key.setdefault(name, Curve(of, epochs, scores, dash))
                panels.setdefault(title, []).append(replace(curve, epochs=epochs, scores=scores))

    for kind in comparison.kinds:
        add("teachers", names[kind], comparison.teachers.get(kind, {}).values(), look[kind])
    for kind in sorted(comparison.baselines, key=kind_order):
        dash = "-" if kind.is_plain else _DOTTED
        add("labels alone", labels_name(kind), comparison.baselines[kind].values(), None, dash)
    for t in comparison.temperatures:
        for kind in comparison.kinds:
            add(f"T = {t:g}", names[kind], comparison.students.get((kind, t), {}).values(), look[kind])
    title = "Training curves"
    if not panels:
        return Section("curves", title, [Text("No run has kept a validation score for each epoch.")])
    said = _flatness(study, comparison)
    unit = "" if study.is_translation else ", %"
    caption = (
        f"{_capital(study.score_name)} on the validation data after each epoch, one line a run; "
        "the first epochs lie below the picture."
    )
    alt = f"Training curves of {', '.join(panels)}. {said}"
    draw = figures.curves(panels, f"{study.score_name}{unit}", key)
    return Section("curves", title, [Text(said), Picture(Drawing(f"curves{suffix}", draw), caption, alt)])


def _flatness(study: Study, comparison: Comparison) -> str:
    """Whether training had come to rest, by what its last fifth brought."""
    groups = {
        "teachers": [run for cell in comparison.teachers.values() for run in cell.values()],
        "students on labels alone": [run for cell in comparison.baselines.values() for run in cell.values()],
        "distilled students": [run for cell in comparison.students.values() for run in cell.values()],
    }
    said = []
    for name, runs in groups.items():
        rise = final_rise(runs)
        if rise is not None:
            state = "still rising" if rise.mean > STILL_RISING else "falling" if rise.mean < -STILL_RISING else "flat"
            said.append(f"{name} {wording.difference(rise, 1)} {study.unit} ({state})")
    if not said:
        return "Too few epochs to say whether training had come to rest."
    return (
        f"In the last fifth of training, by a straight line through it: {'; '.join(said)}. "
        f"Flat: less than {STILL_RISING:g} {study.unit} either way. Intervals are over runs."
    )


# --- cost ---------------------------------------------------------------------------------------------------------


def _cost(study: Study) -> Section:
    rows: list[Row] = []
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in study.runs:
        source = str(run.settings.get("answers") or study.facts.get("teacher_answers") or "")
        source = source if run.role == STUDENT else ""
        groups.setdefault((run.role, run.network, source), []).append(run)
    for (role, network, source), runs in groups.items():
        seconds = [run.seconds for run in runs if run.seconds is not None]
        speeds = [speed for run in runs if (speed := _speed(run)) is not None]
        name = {BASELINE: "on labels alone", STUDENT: "distilled student"}.get(role, role)
        rows.append(
            [
                " ".join(part for part in (name, network, f"({source} teacher)" if source else "") if part),
                str(len(runs)),
                wording.duration(float(np.mean(seconds))) if seconds else DASH,
                wording.duration(sum(seconds)) if seconds else DASH,
                f"{np.mean(speeds):,.0f}" if speeds else DASH,
            ]
        )
    unit = "words/s" if study.is_translation else "images/s"
    head = ["runs", "n", "one run", "all runs", unit]
    blocks: list[Block] = [Table("Time, added up over runs whether or not they ran side by side", head, rows)]
    said = []
    for name, what in (("stores_bytes", "the teachers' stored answers"), ("disk_bytes", "the whole study")):
        size = study.facts.get(name)
        if isinstance(size, (int, float)) and size > 0:
            said.append(f"On disk: {what} {wording.size(size)}.")
    if machine := study.facts.get("machine"):
        said.append(f"Machine: {machine}.")
    if said:
        blocks.append(Text(" ".join(said)))
    return Section("cost", "What it cost", blocks)


def _speed(run: Run) -> float | None:
    names = ("images_per_second", "images_per_s", "words_per_second", "words_per_s")
    speeds = [entry[name] for entry in run.curve for name in names if isinstance(entry.get(name), (int, float))]
    return float(np.mean(speeds)) if speeds else None


# --- every run ----------------------------------------------------------------------------------------------------


def _runs(study: Study) -> Section:
    folds = [
        Fold(
            f"failed: {job.get('job', '?')}",
            [Code(text) for text in (_command(job), _last_lines(job)) if text],
            is_failed=True,
        )
        for job in study.failed
    ]
    common = _common(run.settings for run in study.runs)
    order = {role: index for index, role in enumerate(("teacher", BASELINE, STUDENT))}
    runs = sorted(
        study.runs,
        key=lambda run: (order.get(run.role, 3), run.network, kind_order(run.kind), run.temperature or 0, run.seed),
    )
    folds += [_fold(study, run, common) for run in runs]
    if not folds:
        return Section("runs", "Every run", [Text("No job has finished.")])
    count = f"{len(runs)} finished, {len(study.failed)} failed." if study.failed else f"{len(runs)} finished."
    text = Text(f"{count} Each opens to its command, settings, scores, time and versions.")
    return Section("runs", "Every run", [text, *folds])


def _common(settings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Settings that all runs have with the same value."""
    all_of_them = list(settings)
    if not all_of_them:
        return {}
    return {name: value for name, value in all_of_them[0].items() if all(s.get(name) == value for s in all_of_them)}


def _fold(study: Study, run: Run, common: Mapping[str, Any]) -> Fold:
    shown = (
        "no finite score"
        if run.score is None
        else f"{wording.number(run.score, 2)}{'' if study.is_translation else ' %'}"
    )
    what = [run.role, run.network]
    if not run.kind.is_plain or run.role != BASELINE:
        what.append("MaxSup" if run.kind.max_suppression else f"alpha {run.kind.alpha:g}")
    if run.temperature is not None:
        what.append(f"T = {run.temperature:g}")
    what.append(f"seed {run.seed}")
    record = run.record
    rows: list[Row] = [[f"{name}", wording.number(value, 3)] for name, value in run.scores.items()]
    rows += [[f"{name} (setting)", _short(value)] for name, value in run.settings.items() if name not in common]
    if run.seconds is not None:
        rows.append(["time", wording.duration(run.seconds)])
    for name in ("folder", "host", "commit", "finished"):
        if record.get(name):
            rows.append([name, str(record[name])])
    versions = record.get("versions") or {}
    if isinstance(versions, Mapping) and versions:
        rows.append(["versions", ", ".join(f"{name} {value}" for name, value in versions.items())])
    blocks: list[Block] = [Code(command)] if (command := _command(record)) else []
    return Fold(f"{', '.join(part for part in what if part)}: {shown}", [*blocks, Table(run.job, ["", ""], rows, (1,))])


def _command(record: Mapping[str, Any]) -> str:
    """The job's command as a reader would give it: paths from the clone's root, DIR for the study's folder, DATA for
    the data; of other absolute paths the last part."""
    command = record.get("command")
    if not isinstance(command, list):
        return str(command) if command else ""
    words = [str(word) for word in command]
    inside = str(record.get("folder") or f"runs/{record.get('job')}")
    home = next((head for word in words for head, found, _ in [word.partition(f"/{inside}")] if found and head), None)
    shown = []
    for before, word in zip(["", *words], words, strict=False):
        if home:
            word = word.replace(f"{home}/", "DIR/")
        if re.fullmatch(r"/\S*/python[\d.]*", word):
            word = "python"
        elif word.startswith("/"):
            code = re.search(r"/((?:vision_reference|scripts|fairseq_plugins)(?:/.*)?)$", word)
            name = Path(word).name
            word = code[1] if code else "DATA" if before == "--data-path" else f"\N{HORIZONTAL ELLIPSIS}/{name}"
        shown.append(word)
    return " ".join(map(_quoted, shown))


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[\w@%+=:,./\N{HORIZONTAL ELLIPSIS}-]+", word) else shlex.quote(word)


def _last_lines(job: Mapping[str, Any]) -> str:
    lines = job.get("lines") or job.get("error") or ""
    return "\n".join(map(str, lines)) if isinstance(lines, list) else str(lines)


# --- how to repeat it ---------------------------------------------------------------------------------------------


def _repeat(study: Study) -> Section:
    blocks: list[Block] = []
    config = f"{study.facts['name']}.yaml" if study.facts.get("name") else "CONFIG.yaml"
    command = study.facts.get("repeat") or f"python scripts/study.py run {config} --output DIR"
    blocks += [Text("The whole study again, or what of it is missing:"), Code(str(command))]
    said = []
    commits = list(dict.fromkeys(str(r.record["commit"]) for r in study.runs if r.record.get("commit")))
    if commits:
        said.append(f"Commit: {wording.listed(commits)}.")
    versions: dict[str, dict[str, None]] = {}
    for run in study.runs:
        for name, value in (run.record.get("versions") or {}).items():
            versions.setdefault(str(name), {})[str(value)] = None
    if versions:
        told = [f"{name} {wording.listed(values, last='or')}" for name, values in versions.items()]
        said.append(f"Versions: {', '.join(told)}.")
    signatures = dict.fromkeys(str(s) for run in study.runs if (s := run.record.get("metrics", {}).get("signature")))
    if signatures:
        said.append(f"BLEU: {wording.listed(signatures)}.")
    hosts = list(dict.fromkeys(str(r.record["host"]) for r in study.runs if r.record.get("host")))
    if hosts:
        said.append(f"Host: {wording.listed(hosts)}.")
    if licence := study.facts.get("licence"):
        said.append(f"Licence of the data: {licence}.")
    blocks += [Text(text) for text in said]
    if config := study.facts.get("config"):
        text = config if isinstance(config, str) else json.dumps(config, indent=2, default=str, ensure_ascii=False)
        blocks.append(Fold("Configuration", [Code(text)]))
    blocks.append(Text(f"What is being reproduced: {CITATION}."))
    return Section("repeat", "How to repeat it", blocks)

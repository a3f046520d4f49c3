"""How well the students do, against T."""

from collections.abc import Mapping

from scripts.studies import figures, statistics, wording
from scripts.studies.claims import labels_name, noise_of
from scripts.studies.content import Block, Fold, Picture, Row, Section, Table, Text
from scripts.studies.figures import Drawing, Level, Look, Series
from scripts.studies.results import Comparison, Kind, Run, Study, kind_order, scores_of, short_names
from scripts.studies.statistics import BySeed, Interval


def scores_section(study: Study, comparison: Comparison, suffix: str) -> Section:
    title = f"{wording.capital(study.score_name)} against T"
    if not any(scores_of(cell) for cell in comparison.students.values()):
        return Section("scores", title, [Text("No student has finished yet.")])
    names, look = short_names(comparison.kinds), figures.looks(comparison.kinds, comparison.smoothed)
    series = [
        Series(names[kind], look[kind], {t: scores for t, scores in _by_temperature(comparison, kind) if scores})
        for kind in comparison.kinds
    ]
    series = [line for line in series if line.points]
    bands = [
        Level(labels_name(kind), interval, dash=figures.DOTTED if kind.alpha or kind.max_suppression else "-")
        for kind, interval in _intervals(comparison.baselines)
    ]
    marks = [Level(names[kind], interval, look[kind]) for kind, interval in _intervals(comparison.teachers)]
    unit = "" if study.is_translation else ", %"
    draw = figures.against_temperature(series, f"{study.score_name}{unit}", bands=bands, marks=marks, links=True)
    caption = (
        f"{wording.capital(study.score_name)} of the student against the temperature of the "
        "distillation. Every small dot is a seed; thin grey lines join the runs of one seed under different teachers; "
        "large marks are means, bars their 95 % t-intervals over seeds. Horizontal lines with bands: the same student "
        "on labels alone. Short marks on the left: the teachers."
    )
    alt = figures.series_in_words(series, study.score_name) + figures.levels_in_words(bands)
    blocks: list[Block] = [Picture(Drawing(f"scores{suffix}", draw), caption, alt)]
    differences = _teacher_differences(comparison, names, look)
    if differences:
        draw = figures.against_temperature(differences, f"difference, {study.unit}", zero=True, height=330)
        caption = (
            "What another kind of teacher brings over the plain one at the same T, seed by seed, with 95 % "
            "t-intervals. Above the line: better than the plain teacher."
        )
        alt = figures.series_in_words(differences, f"difference to the plain teacher in {study.unit}")
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
            judged = statistics.judge(list(differences.values()))
            p = min(judged.p, judged.p_against)
            rows.append([name, *wording.finding_cells(judged, noise_of(cells, (1, -1)), p=p)])
    if not rows:
        return []
    unit = "" if study.unit == study.score_name else f", {study.unit}"
    caption = (
        f"Differences in {study.score_name}{unit}. All but those of the claims are exploratory: of so many, "
        "some leave zero out by chance."
    )
    head = ["difference", "mean", "95 % over seeds", "p (one-sided, of its sign)", "n", "test set's noise, 95 %"]
    return [Fold("All differences, in numbers", [Table(caption, head, rows)])]

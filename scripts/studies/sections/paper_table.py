"""The paper's table with this study's numbers."""

from collections.abc import Mapping

from scripts.lib.alpha_t_table import PAPER, PAPER_BLEU, TEACHER, temperature_row
from scripts.studies import statistics, wording
from scripts.studies.answer import ranked
from scripts.studies.content import Block, Cell, Fold, Row, Section, Table, Text
from scripts.studies.results import Comparison, Kind, Study, column_name, kind_order, scores_of, short_names
from scripts.studies.statistics import BySeed
from scripts.studies.wording import DASH


def table_section(study: Study, comparison: Comparison, suffix: str) -> Section:
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
        f"{wording.capital(name)}, by temperature and kind of teacher",
        ["", *(column_name(kind, names[kind]) for kind in kinds)],
        rows,
    )


def _clear_best(column: Mapping[str, BySeed]) -> str | None:
    """The row whose mean is highest, if its paired difference to the next leaves zero out."""
    means = {row: statistics.mean_interval(list(s.values())).mean for row, s in column.items() if s}
    if len(means) < 2:
        return None
    first, second = sorted(means, key=lambda row: -means[row])[:2]
    differences = statistics.paired_differences(column[first], column[second])
    values = list(differences.values())
    return first if values and sum(values) > 0 and statistics.leaves_zero_out(values) else None


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

"""What the teachers are like."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from scripts.studies import figures, wording
from scripts.studies.content import Block, Cell, Picture, Row, Section, Table, Text
from scripts.studies.figures import Drawing, Look, Reliability
from scripts.studies.results import Kind, Study, column_name, kind_of, kind_order, short_names
from scripts.studies.wording import DASH

_MEASURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("acc1", "top-1, %", lambda x: f"{x:.1f}"),
    ("bleu", "BLEU", lambda x: f"{x:.1f}"),
    ("token_accuracy", "tokens right, %", lambda x: f"{x:.1f}"),
    ("perplexity", "perplexity", lambda x: f"{x:.2f}"),
    ("ece", "ECE, %", lambda x: f"{100 * x:.1f}"),
    ("ace", "ACE, %", lambda x: f"{100 * x:.2f}"),
    ("calibrating_temperature", "calibrating T", lambda x: f"{x:.2f}"),
    ("aurc", "AURC", lambda x: f"{x:.3f}"),
    ("tightness", "tightness", lambda x: f"{x:.2f}"),
)


def teachers_section(study: Study) -> Section:
    """Calibration, confidence and features of each kind of teacher; of a translation study's for each language pair."""
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
    case, group = ("token", "word pieces") if study.is_translation else ("image", "classes")
    pooled = "seeds and language pairs" if len(study.pairs) > 1 else "seeds"
    blocks: list[Block] = []
    diagrams = [d for kind in kinds if (d := _diagram(names[kind], look[kind], by_kind[kind])) is not None]
    if diagrams:
        caption = (
            f"Reliability of the teachers on the validation {case}s: how often they are right against how sure they "
            f"are. Above the diagonal: less sure than right. Marks grow with the number of {case}s; all {pooled} "
            "together."
        )
        alt = "Reliability diagrams. " + " ".join(f"{d.name}: {d.note}." for d in diagrams)
        blocks.append(Picture(Drawing("reliability", figures.reliability(diagrams)), caption, alt))
    measured = [(key, head, tell) for key, head, tell in _MEASURES if any(_numbers(records, key))]
    rows: list[Row] = []
    for kind in kinds:
        for pair in dict.fromkeys(record.get("pair") for record in by_kind[kind]):
            own = [record for record in by_kind[kind] if record.get("pair") == pair]
            name = f"{column_name(kind, names[kind])}{f', {pair}' if pair else ''}"
            rows.append([name, *(_mean_of(own, key, tell) for key, _, tell in measured), _looks(own), str(len(own))])
    head = ["teacher", *(name for _, name, _ in measured), "looks smoothed", "n"]
    blocks.append(Table("Teachers: means over seeds ± standard deviation", head, rows, words=(len(head) - 2,)))
    errors = "ECE: expected" if study.is_translation else "ECE, ACE: expected and adaptive"
    blocks.append(
        Text(
            f"{errors} calibration error. Calibrating T: the temperature that would calibrate the teacher. AURC: area "
            "under risk against coverage, low where its confidence tells right from wrong. "
            f"Tightness: spread within {group} over spread between them."
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

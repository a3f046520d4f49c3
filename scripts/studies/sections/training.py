"""How training went, and what it cost."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from scripts.studies import figures, wording
from scripts.studies.answer import final_gain, followed, score_curve
from scripts.studies.claims import labels_name
from scripts.studies.content import Block, Picture, Row, Section, Table, Text
from scripts.studies.figures import Curve, Drawing, Look
from scripts.studies.results import BASELINE, STUDENT, Comparison, Run, Study, kind_order, short_names
from scripts.studies.wording import DASH


def curves_section(study: Study, comparison: Comparison, suffix: str) -> Section:
    look = figures.looks(comparison.kinds, comparison.smoothed)
    names = short_names(comparison.kinds)
    measure = followed(study)
    panels: dict[str, list[Curve]] = {}
    key: dict[str, Curve] = {}

    def add(title: str, name: str, runs: Iterable[Run], of: Look | None, dash: Any = "-") -> None:
        for run in runs:
            epochs, scores = score_curve(run, measure)
            if len(epochs) > 1:
                curve = key.setdefault(name, Curve(of, epochs, scores, dash))
                panels.setdefault(title, []).append(replace(curve, epochs=epochs, scores=scores))

    for kind in comparison.kinds:
        add("teachers", names[kind], (run for run in comparison.teacher_runs if run.kind == kind), look[kind])
    for kind in sorted(comparison.baselines, key=kind_order):
        dash = "-" if kind.is_plain else figures.DOTTED
        add("labels alone", labels_name(kind), comparison.baselines[kind].values(), None, dash)
    for t in comparison.temperatures:
        for kind in comparison.kinds:
            add(f"T = {t:g}", names[kind], comparison.students.get((kind, t), {}).values(), look[kind])
    title = "Training curves"
    if not panels:
        return Section("curves", title, [Text("No run has kept a validation score for each epoch.")])
    said = _flatness(study, comparison)
    unit = f" ({measure.unit})" if study.is_translation else ""
    outside = "below" if measure.better > 0 else "above"
    caption = (
        f"{wording.capital(measure.name)}{unit} on the validation data after each epoch, one line a run; "
        f"the first epochs lie {outside} the picture."
    )
    alt = f"Training curves of {', '.join(panels)}. {said}"
    y_label = measure.unit if study.is_translation else f"{measure.name}, %"  # on phones there is no room for both
    draw = figures.curves(panels, y_label, key, fall=measure.better < 0)
    return Section("curves", title, [Text(said), Picture(Drawing(f"curves{suffix}", draw), caption, alt)])


def _flatness(study: Study, comparison: Comparison) -> str:
    """Whether training had come to rest, by what its last fifth brought."""
    groups = {
        "teachers": comparison.teacher_runs,
        "students on labels alone": [run for cell in comparison.baselines.values() for run in cell.values()],
        "distilled students": [run for cell in comparison.students.values() for run in cell.values()],
    }
    measure, said = followed(study), []
    for name, runs in groups.items():
        gain = final_gain(runs, measure)
        if gain is not None:
            state = "still gaining" if gain.mean > measure.flat else "losing" if gain.mean < -measure.flat else "flat"
            said.append(f"{name} {wording.difference(gain, measure.decimals)} {measure.unit} ({state})")
    if not said:
        return "Too few epochs to say whether training had come to rest."
    return (
        f"Gained in the last fifth of training, by a straight line through it: {'; '.join(said)}. "
        f"Flat: less than {measure.flat:g} {measure.unit} either way. Intervals are over runs."
    )


def cost_section(study: Study) -> Section:
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

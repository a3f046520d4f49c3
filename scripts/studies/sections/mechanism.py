"""What raising T did to the students' features and errors."""

import base64
from pathlib import Path

import numpy as np

from scripts.studies import figures, wording
from scripts.studies.claims import (
    analysis_by_seed,
    error_shares,
    is_about,
    temperatures_of,
)
from scripts.studies.content import Block, Panel, Picture, Row, Section, Table, Text
from scripts.studies.figures import Drawing, Series
from scripts.studies.results import (
    Comparison,
    Study,
    kind_of,
    short_names,
)

LARGEST_PANEL = 4_000_000  # bytes of one picture that is put into the page


def mechanism_section(study: Study, comparison: Comparison, suffix: str) -> Section:
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
    one, some = ("frequent word piece", "pieces") if study.is_translation else ("class", "classes")
    means = f"{some} and language pairs" if len(study.pairs) > 1 else some
    caption = (
        f"Diffusion index eta: by how many percent raising T from {low} moved a {one}'s features towards those of its "
        f"most similar {some}, relative to all others; mean over {means}, 95 % t-interval over seeds. Hollow: the same "
        f"for as many of the least similar {some}, a control. Above zero: similar {some} drew together."
    )
    draw = figures.against_temperature(series, "eta, %", zero=True, height=370)
    alt = figures.series_in_words(series, "the diffusion index eta in percent")
    return [Picture(Drawing(f"eta{suffix}", draw), caption, alt)]


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
    alt = figures.series_in_words(series, "the share of errors inside groups in percent")
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

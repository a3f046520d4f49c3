"""Every run with its command, and how to repeat all."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scripts.lib.jobs import ROOT
from scripts.studies import wording
from scripts.studies.content import Block, Code, Fold, Row, Section, Table, Text
from scripts.studies.results import (
    BASELINE,
    STUDENT,
    Run,
    Study,
    kind_order,
)

CITATION = (
    "Chandrasegaran, Tran, Zhao, Cheung: Revisiting Label Smoothing and Knowledge Distillation Compatibility: "
    "What was Missing? ICML 2022, arXiv 2206.14532"
)


def runs_section(study: Study) -> Section:
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
    if study.is_translation and len(run.scores) < len(study.pairs):
        what += run.scores
    if not run.kind.is_plain or run.role != BASELINE:
        what.append("MaxSup" if run.kind.max_suppression else f"alpha {run.kind.alpha:g}")
    if run.temperature is not None:
        what.append(f"T = {run.temperature:g}")
    what.append(f"seed {run.seed}")
    record = run.record
    rows: list[Row] = [[f"{name}", wording.number(value, 3)] for name, value in run.scores.items()]
    rows += [
        [f"{name} (setting)", wording.setting(value)] for name, value in run.settings.items() if name not in common
    ]
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


def repeat_section(study: Study) -> Section:
    blocks: list[Block] = []
    config, data = Path("scripts/studies/configs") / f"{study.facts.get('name')}.yaml", study.facts.get("data")
    if not (ROOT / config).is_file() or (ROOT / config).read_text(encoding="utf-8") != study.facts.get("config"):
        config = Path("DIR/config.yaml")
    given = "" if data in (None, "builtin") else " --data DATA"
    command = study.facts.get("repeat") or f"python scripts/study.py run {config} --output DIR{given}"
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

"""Finished jobs whose names have changed: a grid that gets a second value of a setting names it in all of its jobs."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from scripts.lib import jobs
from scripts.lib.jobs import Job
from vision_reference.errors import UserError


def renamed(plan: Iterable[Job]) -> dict[str, Path]:
    """{name of a job that has no folder: the folder of no job of the plan, beside its own, that has its result}.

    Args:
        plan: each job after those it depends on.
    """
    plan = list(plan)
    folders = {job.folder for job in plan}
    strangers = sorted({record.parent for job in plan for record in job.folder.parent.glob("*/run.json")} - folders)
    records = {folder: record for folder in strangers if (record := _finished_record(folder))}
    found: dict[str, Path] = {}
    made: dict[str, str | None] = {}
    for job in plan:
        inputs = {name: made.get(name) for name in job.after}
        if job.folder.exists():
            made[job.name] = _made(job, inputs)
            continue
        for folder, record in records.items():
            told = with_new_names(record, {old.name: new for new, old in found.items()})
            if jobs.judge(job, inputs, told, folder).kind == "finished":
                found[job.name] = folder
                made[job.name] = told.get("made", "before")
                del records[folder]
                break
    return found


def adopt(plan: Iterable[Job]) -> dict[str, Path]:
    """Give the results that ``renamed`` finds their new names; returns these."""
    plan = list(plan)
    by_name, found = {job.name: job for job in plan}, renamed(plan)
    new_names = {old.name: new for new, old in found.items()}
    for name, folder in found.items():
        job = by_name[name]
        record = with_new_names(jobs.load_record(job, folder) or {}, new_names)
        # First the record: whoever is stopped between the two finds the folder again by it.
        jobs.save_record(Job(name, folder, job.command), record | {"name": name})
        os.rename(folder, job.folder)
    return found


def with_new_names(record: Mapping, new_names: Mapping[str, str]) -> dict:
    """A record of a job that has read folders which are called otherwise now.

    Args:
        new_names: {name then: name now}.
    """
    changed = dict(record)
    changed["inputs"] = {new_names.get(name, name): made for name, made in record.get("inputs", {}).items()}
    if new_names:
        names = re.compile(f"(?<=/)({'|'.join(map(re.escape, new_names))})(?=/|$)")
        changed["command"] = [names.sub(lambda match: new_names[match[1]], word) for word in record["command"]]
    return changed


def _finished_record(folder: Path) -> dict | None:
    try:
        record = jobs.load_record(Job(folder.name, folder, ()))
    except UserError:
        return None
    return record if record and record["finished"] and not jobs.in_use(folder) else None


def _made(job: Job, inputs: dict[str, str | None]) -> str | None:
    try:
        return jobs.state_of(job, inputs).made
    except UserError:
        return None

"""What a study's page says from top to bottom, computed from its results."""

from collections.abc import Sequence
from pathlib import Path

from scripts.studies import wording
from scripts.studies.answer import answer
from scripts.studies.claims import Claim, claims_of
from scripts.studies.content import Block, Lead, Section, Text
from scripts.studies.results import Comparison, Study
from scripts.studies.sections.claims import claims_section
from scripts.studies.sections.mechanism import mechanism_section
from scripts.studies.sections.paper_table import table_section
from scripts.studies.sections.runs import repeat_section, runs_section
from scripts.studies.sections.scores import scores_section
from scripts.studies.sections.teachers import teachers_section
from scripts.studies.sections.training import cost_section, curves_section

MOST_NAMED = 5  # runs in a sentence
QUESTION = "Should the teacher be trained with label smoothing, and at which temperature should it teach?"


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
            scores_section(study, comparison, suffix),
            claims_section(study, own, suffix),
            table_section(study, comparison, suffix),
            mechanism_section(study, comparison, suffix),
            curves_section(study, comparison, suffix),
        ):
            if section.blocks:
                sections.append(Section(section.anchor + suffix, section.title + tail, section.blocks))
    teachers = teachers_section(study)
    if not several and sections[-1].anchor == "curves":  # teachers come before the curves
        sections.insert(-1, teachers)
    else:
        sections.append(teachers)
    return [*sections, cost_section(study), runs_section(study), repeat_section(study)]


def comparison_name(comparison: Comparison, all_of_them: Sequence[Comparison]) -> str:
    """What sets one comparison apart from the others: its student, its settings."""
    parts = [comparison.network] if len({other.network for other in all_of_them}) > 1 else []
    parts += [f"{name} {wording.setting(value)}" for name, value in comparison.settings.items()]
    return ", ".join(parts) or comparison.network


def _answer(study: Study, comparisons: Sequence[Comparison], claims: Sequence[Sequence[Claim]]) -> Section:
    blocks: list[Block] = []
    for comparison, own in zip(comparisons, claims, strict=True):
        if len(comparisons) > 1:
            blocks.append(Text(f"{comparison_name(comparison, comparisons)}:"))
        blocks.append(Lead(answer(study, comparison, own)))
    if len(comparisons) > 1:
        blocks.append(Text("Claims are tested in sequence within each of these comparisons, not across them."))
    blocks += [Text(note) for note in study.notes]
    if study.unplaced:
        names = wording.listed(run.job for run in study.unplaced[:MOST_NAMED])
        more = f" and {len(study.unplaced) - MOST_NAMED} more" if len(study.unplaced) > MOST_NAMED else ""
        blocks.append(Text(f"In none of the tables, as no student has their settings: {names}{more}."))
    return Section("answer", "Answer", blocks)

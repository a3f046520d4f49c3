"""The benchmark of a study plans the grid that it names, and its ratios are those of its jobs' seconds."""

import json
from pathlib import Path

import pytest

from scripts.bench import study as bench
from scripts.studies.plan import STORE, STUDENT, TEACHER, make_plan
from scripts.studies.schema import read_study


def planned(tmp_path: Path, views: int, answers: list[str]):
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps(bench.configuration(False, 2, views, answers)))
    return make_plan(read_study(file), tmp_path / "study")


def test_a_round_is_two_teachers_two_stores_and_eight_students_of_each_way_in_turns(tmp_path):
    plan = planned(tmp_path, bench.EPOCHS, ["running", "stored"])
    for seed in (0, 1):
        roles = [job.role for job in plan if job.seed == seed]
        assert {role: roles.count(role) for role in (TEACHER, STORE, STUDENT)} == {TEACHER: 2, STORE: 2, STUDENT: 16}
        ways = ["--soft-labels" in job.job.command for job in plan if job.seed == seed and job.role == STUDENT]
        assert ways == [False, True] * 8
    views = {word for job in plan if job.role == STORE for word in job.job.command[-40:] if "same-views" in word}
    assert views == {"--same-views-as"}


def test_a_quarter_of_the_views_is_stored_for_the_same_epochs(tmp_path):
    plan = planned(tmp_path, bench.EPOCHS // 4, ["stored"])
    first = next(job for job in plan if job.role == STORE).job.command
    assert first[first.index("--views") + 1] == "1"
    student = next(job for job in plan if job.role == STUDENT).job.command
    assert student[student.index("--epochs") + 1] == "4"


def test_seconds_are_those_of_students_and_stores_alone(tmp_path):
    jobs = {
        "teacher_alpha0_seed0": (99.0, []),
        "data": (9.0, []),
        "store_alpha0_seed0": (1.5, []),
        "store_alpha0.1_seed0": (2.0, []),
        "student_distilled_alpha0_T1_running_seed0": (10.0, ["--teacher", "resnet50"]),
        "student_distilled_alpha0_T1_stored_seed0": (6.0, ["--soft-labels", "s"]),
        "student_distilled_alpha0_T2_stored_seed1": (7.0, ["--soft-labels", "s"]),
    }
    for name, (seconds, command) in jobs.items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"command": command, "seconds": seconds}))
    assert bench.seconds_of(tmp_path) == {"running": {0: 10.0}, "stored": {0: 6.0, 1: 7.0}, "store": {0: 3.5}}


def test_ratios_are_formed_within_a_round():
    whole = {"running": {0: 10.0, 1: 20.0}, "stored": {0: 5.0, 1: 12.0}, "store": {0: 1.0, 1: 2.0}}
    quarter = {"stored": {0: 5.0, 1: 11.0}, "store": {0: 0.5, 1: 1.0}}
    summary = bench.summarize(whole, quarter)
    assert summary["ratios"]["stored"] == pytest.approx({"median": 0.65, "min": 0.6, "max": 0.7})
    assert summary["ratios"]["quarter"] == pytest.approx({"median": 0.575, "min": 0.55, "max": 0.6})
    text = bench.report(summary)
    assert "0.600 to 0.700, aim: at most 0.70" in text
    assert "the baseline" in text

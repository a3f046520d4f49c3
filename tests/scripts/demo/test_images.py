"""The image part of the demo, in small: its files, and that a second run repeats nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo")

    def run(*flags):
        command = [sys.executable, str(ROOT / "scripts" / "demo" / "images.py"), "--output", str(output), *flags]
        return subprocess.run(command, capture_output=True, text=True)

    done = run("--teacher-epochs", "1", "--student-epochs", "1")
    assert done.returncode == 0, done.stderr
    return output, run, done.stdout


def test_summary_has_a_record_for_each_run(demo):
    output, _, _ = demo
    records = json.loads((output / "summary.json").read_text())
    cells = [(record["role"], record["alpha"], record["temperature"]) for record in records]
    assert cells == [
        ("teacher", 0.0, None),
        ("teacher", 0.1, None),
        ("student", 0.0, 1.0),
        ("student", 0.0, 3.0),
        ("student", 0.1, 1.0),
        ("student", 0.1, 3.0),
        ("baseline", 0.0, None),
    ]
    for record in records:
        assert record.keys() == {
            "role", "model", "alpha", "temperature", "seed", "acc1", "acc5", "epochs", "seconds", "checkpoint",
        }  # fmt: skip
        assert record["epochs"] == 1
        assert 0 <= record["acc1"] <= record["acc5"] <= 100
        assert (ROOT / record["checkpoint"]).is_file()


def test_each_student_was_taught_by_the_teacher_of_its_alpha(demo):
    output, _, _ = demo
    for folder in (output / "runs").glob("student*"):
        flags = json.loads((folder / "flags.json").read_text())
        alpha, temperature = folder.name.removeprefix("student_alpha").split("_T")
        assert f"teacher_alpha{alpha}/" in flags[flags.index("--teacher-weights") + 1]
        assert float(flags[flags.index("--kd-temperature") + 1]) == float(temperature)


def test_table_has_the_papers_shape(demo):
    output, _, printed = demo
    text = (output / "summary.md").read_text()
    assert text in printed
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert rows == ["", "---", "teacher", "T = 1", "T = 3"]


def test_finished_runs_are_not_repeated(demo):
    output, run, _ = demo
    checkpoints = {path: path.stat().st_mtime_ns for path in (output / "runs").glob("*/checkpoint.pth")}
    again = run("--teacher-epochs", "1", "--student-epochs", "1")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in checkpoints} == checkpoints


def test_a_failing_run_is_told_in_one_line_with_its_log(demo):
    output, run, _ = demo
    broken = output / "digits" / "val" / "3"
    hidden = broken.rename(output / "hidden")
    try:
        failed = run("--teacher-epochs", "2", "--student-epochs", "1")
    finally:
        hidden.rename(broken)
    assert failed.returncode == 1
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith("demo: teacher alpha=0")
    assert "only in train/: 3" in last
    assert "log.txt" in last

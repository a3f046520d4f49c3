"""The image part of the demo: its summary and table, and that a second run repeats nothing. A script that takes no time
stands for the trainings; tests/scripts/test_study.py has a real one."""

import json
import re
import sys

import pytest

from scripts.demo import images
from scripts.lib import jobs
from scripts.studies import plan as planning
from vision_reference.errors import run_command

TRAIN = """
import json, pathlib, sys
def value(flag): return sys.argv[sys.argv.index(flag) + 1]
folder = pathlib.Path(value("--output-dir"))
if "FAILS" in sys.argv: sys.exit("the reason")
(folder / "checkpoint.pth").touch()
acc1 = 90.0 + int(value("--seed"))
epoch = {"lr": 1, "train_loss": 1, "val_loss": 1, "val_acc1": acc1, "val_acc5": 99.0, "seconds": 1}
lines = [json.dumps({"epoch": number} | epoch) for number in range(int(value("--epochs")))]
(folder / "metrics.jsonl").write_text("\\n".join(lines) + "\\n")
"""
STORE = """
import pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--output-dir") + 1])
folder.mkdir()
(folder / "manifest.json").touch()
"""
DIGITS = "import pathlib, sys; pathlib.Path(sys.argv[2]).mkdir()"


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """How to call images.py on made-up trainings; its folder is tmp_path / "out"."""
    monkeypatch.setattr(planning, "ROOT", tmp_path)
    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(images.studies, "write_report", lambda folder: folder / "report.html")
    for name, text in (("train", TRAIN), ("store_soft_labels", STORE)):
        (tmp_path / "vision_reference").mkdir(exist_ok=True)
        (tmp_path / "vision_reference" / f"{name}.py").write_text(text)
    (tmp_path / "scripts" / "demo").mkdir(parents=True)
    (tmp_path / "scripts" / "demo" / "digits.py").write_text(DIGITS)

    def call(*words, fails="nothing"):
        (tmp_path / "vision_reference" / "train.py").write_text(TRAIN.replace("FAILS", fails))
        monkeypatch.setattr(sys, "argv", ["images.py", "--output", str(tmp_path / "out"), *words])
        try:
            run_command("demo", images.main)
        except SystemExit as ended:
            return ended.code
        return 0

    return call


def test_summary_table_and_page_and_nothing_is_repeated(demo, tmp_path, capsys):
    assert demo("--student-epochs", "2") == 0
    printed = capsys.readouterr().out
    records = json.loads((tmp_path / "out" / "summary.json").read_text())
    cells = {(record["role"], record["alpha"], record["temperature"], record["seed"]) for record in records}
    assert len(cells) == len(records) == 2 + 3 * (4 + 2)
    assert {("teacher", 0.1, None, 0), ("student", 0.1, 4.0, 2), ("baseline", 0.1, None, 1)} <= cells
    for record in records:
        assert record.keys() == {
            "role", "model", "alpha", "temperature", "seed", "acc1", "acc5", "epochs", "seconds", "checkpoint",
        }  # fmt: skip
        assert record["epochs"] == (8 if record["role"] == "teacher" else 2)
        assert (images.ROOT / record["checkpoint"]).is_file()
    text = (tmp_path / "out" / "summary.md").read_text()
    assert text in printed
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert rows == ["", "---", "teacher", "T = 1", "T = 4"]
    assert "labels alone: 91.00 / 99.00 (alpha = 0); 91.00 / 99.00 (smoothed, alpha = 0.1)." in text
    assert f"the page: {tmp_path}/out/report.html" in printed
    made = {file: file.read_text() for file in (tmp_path / "out" / "runs").glob("*/run.json")}
    assert demo("--student-epochs", "2") == 0
    assert {file: file.read_text() for file in made} == made
    assert all("student" in file.parent.name for file in made if "--soft-labels" in made[file])


def test_a_failing_run_is_told_in_one_line_with_its_log(demo, capsys):
    assert demo(fails="resnet18") == 1
    complaint = capsys.readouterr().err.splitlines()
    # Of two that run side by side either may be the first to fail.
    assert re.match(r"demo: teacher_alpha0(\.1)?_seed0 failed \(exit status 1\): the reason; see ", complaint[0])
    assert complaint[-1] == "demo: 14 more jobs depend on these and were not run"


def test_fresh_keeps_a_folder_that_is_no_study(demo, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    assert demo("--fresh") == 2
    assert "holds no study" in capsys.readouterr().err
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"

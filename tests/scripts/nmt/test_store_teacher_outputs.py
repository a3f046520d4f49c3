"""Storing an expert's predictions and training from them, by the command lines."""

import json

import pytest


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--top-k", 0], "argument --top-k: '0' is not an integer from 1"),
        (["--max-tokens", -1], "argument --max-tokens: '-1' is not an integer from 1"),
        (["--temperatures", "1,0"], "argument --temperatures: '0' is not a number from 0.01 to 1000"),
        (["--lang-pair", "en-de,en-ru"], "name one"),
    ],
)
def test_options_that_make_no_sense_are_one_line(refused, tmp_path, flags, said):
    given = ["--data-bin", tmp_path, "--lang-pair", "en-de", "--teacher", "t.pt", "--output", tmp_path / "out", *flags]
    assert said in refused("store_teacher_outputs.py", *given)


def test_student_trains_from_outputs_that_were_stored_once(pipeline, run_script, tiny, tmp_path):
    outputs, student = tmp_path / "outputs", tmp_path / "student"
    settings = {**tiny, "DATA": pipeline / "data", "PAIRS": "en-de", "TEACHER_OUTPUTS": outputs, "MAX_EPOCH": 1}
    done = run_script("train_student.sh", EXPERTS=pipeline / "experts", OUT=student, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MB on disk" in done.stdout
    assert f"stored {outputs / 'en-de'}" in done.stdout
    assert (student / "checkpoint_best.pt").exists()
    assert '"train_kd_loss"' in (student / "train.log").read_text()
    manifest = json.loads((outputs / "en-de" / "manifest.json").read_text())
    assert manifest["data"]["sentences"] == 400
    assert manifest["labels"] == {"top_k": 8, "temperatures": [1, 2, 3, 64]}

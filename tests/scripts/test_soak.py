"""The soak: three kills of a real training, and whether it finds what it is there to find."""

import json
import sys

import numpy as np
import pytest
import torch

from scripts import soak

# Counts to six in a file, a line each 50 ms, after which it writes what it has come to. Started again it goes on.
COUNTER = """
import os, pathlib, sys, time
out = pathlib.Path("out")
out.mkdir(exist_ok=True)
lines = out / "count"
start = {start}
for number in range(start, 6):
    with lines.open("a") as file:
        file.write(f"{{number}}\\n")
    time.sleep(0.05)
(out / "sum.json").write_text('{{"sum": %d, "seconds": %f}}' % (sum(map(int, lines.read_text().split())), time.time()))
{end}
"""
GOES_ON = "len(lines.read_text().splitlines()) if lines.exists() else 0"


def kind(script):
    return soak.Kind((sys.executable, "-c", script), 1, own_statuses=False)


def test_a_command_that_goes_on_where_it_was_is_found_to_do_so(tmp_path):
    kinds = {"good": kind(COUNTER.format(start=GOES_ON, end=""))}
    row = soak.soak(tmp_path / "soak", kinds, seed=1, kills=6, each=2)["good"]
    assert row["kills"] == 6
    assert row["found"] == []
    assert not list((tmp_path / "soak/runs").iterdir())
    again = soak.soak(tmp_path / "soak", kinds, seed=1, kills=6, each=2)["good"]  # nothing is left to do
    assert again == row


@pytest.mark.parametrize(
    ("script", "found"),
    [
        (COUNTER.format(start="0", end=""), "count differs"),  # begins anew, in the file of before
        (
            COUNTER.format(start=GOES_ON, end="sys.exit(3 if start else 0)"),
            "ended with status 3: no output",
        ),
        (COUNTER.format(start=GOES_ON, end="if start: (out / 'x.partial').touch()"), "x.partial is left over"),
    ],
)
def test_a_command_that_does_not_is_found_out(tmp_path, script, found):
    rows = soak.soak(tmp_path / "soak", {"bad": kind(script)}, seed=2, kills=4, each=2)
    assert any(found in each for each in rows["bad"]["found"]), rows
    assert "| all | 4 |" in soak.table(rows)


def test_a_process_left_behind_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "wait_for_end", lambda token, seconds: soak.marked(token))
    end = "import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True)"
    row = soak.soak(tmp_path / "soak", {"bad": kind(COUNTER.format(start=GOES_ON, end=end))}, seed=1, kills=1, each=1)
    assert row["bad"]["found"] == ["run 0: 1 processes were left behind"]
    assert soak.marked(str(tmp_path / "soak/runs/bad-0")) == []


def test_one_bit_is_a_difference_and_the_time_is_none(tmp_path):
    for name, bit, seconds in (("one", 0.0, 1), ("other", -0.0, 2)):
        out = tmp_path / name / "out"
        out.mkdir(parents=True)
        torch.save({"model": {"weight": torch.tensor([1.0, bit])}, "time": seconds}, out / "checkpoint.pth")
        (out / "metrics.jsonl").write_text(json.dumps({"epoch": 0, "seconds": seconds}) + "\n")
        (out / "args.json").write_text(json.dumps({"output_dir": str(tmp_path / name / "out")}))
        np.save(out / "outcomes.npy", np.arange(3))
    found = soak.differences(tmp_path / "one", tmp_path / "other")
    assert found == ["checkpoint.pth differs in 1 of 1 parts: /model/weight"]


def test_three_kills_of_a_training(tmp_path):
    soak.prepare(tmp_path / "inputs", ["training-none-0"])
    whole = soak.all_kinds(tmp_path / "inputs")["training-none-0"]
    shorter = soak.Kind((*whole.command, "--epochs", "2"), 1)
    row = soak.soak(tmp_path / "soak", {"training-none-0": shorter}, seed=4, kills=3, each=3)["training-none-0"]
    assert (row["kills"], row["found"]) == (3, [])

"""The step benchmark measures all three ways and forms its ratios within rounds."""

import json
import sys
from pathlib import Path

import pytest

from scripts.bench import vision_step as bench

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "bench" / "vision_step.py"


def test_ratios_are_formed_within_a_round_so_that_a_slow_round_does_not_count():
    setting = bench.Setting(image_size=32, batch_size=6, steps=1, rounds=3)
    seconds = {"authors": [3.0, 30.0, 3.3], "ours": [1.0, 10.0, 1.1], "floor": [0.8, 10.0, 1.0]}
    summary = bench.summarize(setting, seconds)
    assert summary["ours_over_authors_speed"] == pytest.approx({"median": 3.0, "min": 3.0, "max": 3.0})
    assert summary["ours_over_floor_time"] == pytest.approx({"median": 1.1, "min": 1.0, "max": 1.25})
    assert summary["images_per_second"]["authors"] == pytest.approx({"median": 6 / 3.3, "min": 0.2, "max": 2.0})
    report = bench.report(setting, True, summary)
    assert "3.00 times as fast" in report
    assert "+10.0 % time" in report


def test_every_way_really_trains_its_student(monkeypatch):
    steps = []
    original = bench.torch.optim.SGD.step
    monkeypatch.setattr(bench.torch.optim.SGD, "step", lambda self, *args: (steps.append(id(self)), original(self))[1])
    by_way = bench.turns(bench.Setting(image_size=32, batch_size=2, steps=2, rounds=1), "cpu", amp=False)
    assert tuple(by_way) == bench.WAYS
    for turn in by_way.values():
        assert bench.timed(turn) > 0
    assert len(steps) == 6
    assert len(set(steps)) == 3


def test_the_command_writes_every_measurement(monkeypatch, tmp_path, capsys):
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", f"bench --quick --batch-size 2 --rounds 2 --json {file}".split())
    bench.main()
    record = json.loads(file.read_text())
    assert record["setting"] == {"image_size": 64, "batch_size": 2, "steps": 4, "rounds": 2}
    assert {way: len(values) for way, values in record["seconds_per_step"].items()} == dict.fromkeys(bench.WAYS, 2)
    assert record["amp"] is True
    assert record["machine"]["bf16_speed"] > 0
    assert "ours against the authors' way" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--batch-size", "--rounds"])
def test_impossible_sizes_are_refused_in_one_line(flag, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", flag, "0"])
    with pytest.raises(SystemExit) as exit_status:
        bench.main()
    assert exit_status.value.code == 2
    assert "must be 1 or more" in capsys.readouterr().err

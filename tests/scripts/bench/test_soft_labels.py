"""The benchmarks of stored soft labels and of the teacher measure what they say, in real runs of tiny size."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(params=["soft_labels", "teacher"])
def bench(request):
    return importlib.import_module(f"scripts.bench.{request.param}")


@pytest.fixture
def soft():
    return importlib.import_module("scripts.bench.soft_labels")


@pytest.fixture
def teacher():
    return importlib.import_module("scripts.bench.teacher")


def test_every_way_trains_and_only_the_stored_one_reads_the_store(soft, tmp_path, monkeypatch):
    store = soft.write_store(tmp_path, 1500)
    assert store.damage(store.blocks) is None
    steps, reads = [], []
    real_step, real_read = torch.optim.SGD.step, soft.SoftLabels.logits
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *a: (steps.append(id(self)), real_step(self, *a))[1])
    monkeypatch.setattr(soft.SoftLabels, "logits", lambda self, *a: (reads.append(a), real_read(self, *a))[1])
    setting = soft.Setting(image_size=32, batch_size=2, steps=2, rounds=1)
    by_way = soft.turns(setting, "resnet18", store, "cpu", amp=False)
    assert tuple(by_way) == soft.WAYS
    for way, turn in by_way.items():
        before = len(reads)
        turn()
        assert len(reads) - before == (2 if way == "stored" else 0)
    assert len(steps) == 8
    assert len(set(steps)) == 4


def test_ratios_are_formed_within_a_round(soft):
    setting = soft.Setting(image_size=32, batch_size=6, steps=1, rounds=3)
    seconds = {
        "plain": [1.0, 10.0, 1.0],
        "stored": [1.0, 10.0, 2.0],
        "online": [2.0, 30.0, 2.0],
        "floor": [1.9, 30.0, 2.0],
    }
    summary = soft.summarize(setting, seconds)
    assert summary["stored_over_plain"] == pytest.approx({"median": 1.0, "min": 0.5, "max": 1.0})
    assert summary["online_over_floor"] == pytest.approx({"median": 1.0, "min": 0.95, "max": 1.0})
    assert summary["stored_over_online"] == pytest.approx({"median": 2.0, "min": 1.0, "max": 3.0})
    text = soft.report(setting, "resnet18", False, summary)
    assert "stored trains 1.000 times as fast as plain (rounds: 0.500 to 1.000, aim 0.97)" in text


def test_every_row_of_the_teachers_table_runs_its_network_once_per_batch(teacher, monkeypatch):
    passes = []

    class Counted(torch.nn.Conv2d):
        def forward(self, images):
            passes.append(images.dtype)
            return super().forward(images)

    def network(name, classes):
        return torch.nn.Sequential(Counted(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())

    monkeypatch.setattr(teacher, "build_model", network)
    setting = teacher.Setting(image_size=32, batch_size=2, steps=3, rounds=1)
    rows = teacher.turns(setting, "cpu", amp=True, compiled=False)
    assert list(rows) == [
        "contiguous fp32", "channels-last", "batch norm folded", "inference mode", "bf16 autocast", "weights in bf16",
    ]  # fmt: skip
    for turn in rows.values():
        turn()
    assert len(passes) == 18


def test_factors_of_the_teachers_table_are_formed_within_a_round(teacher):
    setting = teacher.Setting(image_size=32, batch_size=4, steps=1, rounds=2)
    summary = teacher.summarize(setting, {"a": [4.0, 40.0], "b": [2.0, 20.0], "c": [1.0, 20.0]})
    assert summary["b"]["over_first_row"]["median"] == 2
    assert summary["c"]["over_row_above"] == {"median": 1.5, "min": 1.0, "max": 2.0}
    assert summary["a"]["over_row_above"]["median"] == 1
    assert "over row above" in teacher.report(setting, summary)


def test_the_commands_write_every_measurement(bench, monkeypatch, tmp_path, capsys):
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", f"bench --quick --batch-size 2 --rounds 2 --json {file}".split())
    if "soft_labels" in bench.__name__:
        sys.argv += ["--students", "mobilenet_v2"]
    bench.main()
    record = json.loads(file.read_text())
    measured = record.get("seconds_per_batch") or record["students"]["mobilenet_v2"]["seconds_per_step"]
    assert all(len(values) == 2 for values in measured.values())
    assert "images/s" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--batch-size", "--rounds"])
def test_impossible_sizes_are_refused_in_one_line(flag, bench, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", flag, "0"])
    with pytest.raises(SystemExit) as exit_status:
        bench.main()
    assert exit_status.value.code == 2
    assert "must be 1 or more" in capsys.readouterr().err

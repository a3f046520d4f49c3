"""The training benchmark runs real training, and forms its ratios within rounds."""

import json
from argparse import Namespace

import pytest

from scripts.bench import translation as bench_training


def run(words_per_second, peak_mb=100.0):
    return bench_training.Run(words=1000, seconds=1000 / words_per_second, cpu_seconds=1.0, peak_mb=peak_mb)


def test_ratios_are_formed_within_a_round_so_that_a_slow_round_does_not_count():
    speeds = {"plain": [100, 10, 100], "online": [50, 5, 40], "stored": [98, 9.9, 96], "teacher": [100, 10, 100]}
    summary = bench_training.summarize({way: [run(speed) for speed in rounds] for way, rounds in speeds.items()})
    assert summary["stored_over_plain"] == pytest.approx({"median": 0.98, "min": 0.96, "max": 0.99})
    assert summary["online_over_plain"] == pytest.approx({"median": 0.5, "min": 0.4, "max": 0.5})
    # plain and teacher one after the other do 50 words a second
    assert summary["online_over_allowed"] == pytest.approx({"median": 1.0, "min": 0.8, "max": 1.0})
    assert summary["words_per_second"]["plain"] == pytest.approx({"median": 100, "min": 10, "max": 100})
    report = bench_training.report(summary, Namespace(rounds=3, updates=2, warmup=1))
    assert "| stored | 96 (10 to 98) | 0.980 (0.960 to 0.990) | 100 |" in report
    assert "stored over plain: 0.980 (0.960 to 0.990), aim 0.97: reached" in report


def test_each_way_is_a_real_training_run(pipeline, run_script, tiny, tmp_path):
    folders = [
        "--data",
        pipeline / "data",
        "--experts",
        pipeline / "experts",
        "--teacher-outputs",
        tmp_path / "outputs",
    ]
    turns = ["--rounds", 1, "--updates", 2, "--warmup", 1, "--json", tmp_path / "figures.json"]
    done = run_script("bench/translation.py", *folders, *turns, "--clip-norm", 1, **tiny, PAIRS="en-ru")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "online over plain and teacher in turn" in done.stdout
    record = json.loads((tmp_path / "figures.json").read_text())
    assert {way: len(runs) for way, runs in record["runs"].items()} == dict.fromkeys(bench_training.WAYS, 1)
    (words,) = {runs[0]["words"] for runs in record["runs"].values()}
    assert 0 < words <= 2 * 512
    assert all(runs[0]["seconds"] > 0 and runs[0]["peak_mb"] > 0 for runs in record["runs"].values())
    assert "--teacher-outputs en-ru=" in record["commands"]["stored"]
    assert record["commands"]["plain"].endswith("--clip-norm 1")


def test_what_cannot_be_measured_is_one_line(refused, tmp_path):
    folders = ["--data", tmp_path, "--experts", tmp_path, "--teacher-outputs", tmp_path]
    assert "--rounds 0 is below 1" in refused("bench/translation.py", *folders, "--rounds", 0)
    assert "is no prepared folder" in refused("bench/translation.py", *folders)

"""The loader benchmark measures what it says, and its table shows medians, ranges and the two ratios."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.bench import loader as bench_loader

ROOT = Path(__file__).resolve().parents[3]


def test_every_way_goes_through_all_images_each_round(tmp_path):
    pytest.importorskip("nvidia.dali.plugin.pytorch")
    generator = np.random.default_rng(0)
    samples = []
    for number in range(10):
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
        samples.append((str(path), number))
    makers = bench_loader.ways(samples, batch=4, workers=1)
    made = {name: make() for name, make in makers.items()}
    for _ in range(2):
        assert {name: sum(batches) for name, batches in made.items()} == dict.fromkeys(made, 10)
    assert {"decoding alone", "bare DALI pipeline, CPU", "ours, DALI CPU"} <= set(made)


def test_only_the_middle_of_a_round_is_timed(monkeypatch):
    clock = iter([0.0, 5.0, 6.0, 7.0, 9.0, 100.0])
    monkeypatch.setattr(bench_loader.time, "perf_counter", lambda: next(clock))
    # 24 images in batches of 4: the clock runs from image 4 (at 0 s) to image 20 (at 9 s).
    assert bench_loader.steady_rate([4] * 6, margin=4) == pytest.approx(16 / 9)
    clock = iter([0.0, 5.0, 6.0, 7.0, 9.0, 100.0])
    assert bench_loader.steady_rate([4] * 6, margin=8) == pytest.approx(8 / (7 - 5))


def test_too_few_images_for_a_round_are_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "cat" / "0.jpg")
    command = [sys.executable, str(ROOT / "scripts" / "bench" / "loader.py"), "--data-path", str(tmp_path)]
    command += ["--batch-size", "4", "--images", "39"]
    done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--images 39 is too few for batches of 4; give at least 40" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_table_has_medians_ranges_and_ratios_round_by_round():
    rates = {
        "torchvision's recipe, PIL": [100.0, 110.0, 300.0],
        "ours, torchvision PIL": [100.0, 110.0, 300.0],
        "ours, torchvision tensor": [100.0, 110.0, 300.0],
        "bare DALI pipeline, CPU": [200.0, 220.0, 900.0],
        "ours, DALI CPU": [200.0, 231.0, 600.0],
    }
    text = bench_loader.report(bench_loader.summarize(rates))
    assert "| torchvision's recipe, PIL | 110 | 100 to 300 |" in text
    assert "| ours, DALI CPU | bare DALI pipeline, CPU | 1.00 | 0.67 to 1.05 | 0.95 |" in text
    assert "| ours, DALI CPU | torchvision's recipe, PIL | 2.00 | 2.00 to 2.10 | 2.0 |" in text


def test_the_command_writes_what_it_measured(tmp_path):
    pytest.importorskip("nvidia.dali.plugin.pytorch")
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(tmp_path / "data" / name / "0.jpg")
    flags = ["--batch-size", "2", "--images", "24", "--rounds", "1", "--workers", "1"]
    flags += ["--data-path", str(tmp_path / "data"), "--json", str(tmp_path / "figures.json")]
    command = [sys.executable, str(ROOT / "scripts" / "bench" / "loader.py"), *flags]
    done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "figures.json").read_text())
    assert record["setting"] == {"images": 24, "batch_size": 2, "workers": 1, "rounds": 1}
    assert all(len(rates) == 1 and rates[0] > 0 for rates in record["rates"].values())
    assert bench_loader.report(record) in done.stdout

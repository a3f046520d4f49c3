"""The loader benchmark measures what it says, and its table shows medians, ranges and the two ratios."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.bench import loader as bench_loader
from vision_reference.errors import UserError
from vision_reference.networks.by_name import build_model
from vision_reference.networks.checkpoints import save_atomically
from vision_reference.networks.description import describe_run
from vision_reference.predict import Predictor

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


def test_a_checkpoint_goes_through_every_loader(tmp_path, capsys, monkeypatch):
    pytest.importorskip("nvidia.dali.plugin.pytorch")
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "val" / ("cat", "dog", "eel")[number % 3] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC).save(path)
    network = build_model("resnet8", 3).eval()
    run = {"preset": "cifar10", "interpolation": "bilinear", "train_crop_size": 32, "val_resize_size": 40}
    run |= {"val_crop_size": 32, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3]}
    # logits far apart, so that no rounding of pixels decides between two classes
    network.fc.weight.data *= 50
    content = {"model": network.state_dict(), "arch": "resnet8"}
    content["description"] = describe_run(run, ["cat", "dog", "eel"], {"acc1": 0.0}, [])
    save_atomically(content, tmp_path / "net.pth")
    flags = [
        "--accuracy",
        tmp_path / "net.pth",
        tmp_path,
        "--batch-size",
        5,
        "--workers",
        1,
        "--json",
        tmp_path / "o.json",
    ]
    monkeypatch.setattr(sys, "argv", ["loader.py", *map(str, flags)])
    bench_loader.main()
    rows = {row["way"]: row for row in json.loads((tmp_path / "o.json").read_text())["ways"]}
    assert {"torchvision, PIL", "torchvision, tensor", "DALI, CPU", "DALI alone, CPU"} <= rows.keys()
    assert all(row["images"] == 12 for row in rows.values())
    predictor = Predictor.load(str(tmp_path / "net.pth"))
    samples = sorted((tmp_path / "val").glob("*/*.jpg"))
    found = list(predictor.predict(map(str, samples), top=1))
    right = [one.classes[0] == path.parent.name for one, path in zip(found, samples, strict=True)]
    first = rows["torchvision, PIL"]
    assert first["accuracy"] == pytest.approx(100 * np.mean(right))
    assert first["differing"] == first["largest"] == 0
    # the same integer kernel resizes both
    assert rows["torchvision, tensor"]["largest"] == pytest.approx(rows["DALI, CPU"]["largest"], abs=1e-3)
    assert rows["DALI alone, CPU"]["largest"] > 0
    assert f"| torchvision, PIL | 12 | {first['accuracy']:.3f} | 0 | 0 |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["loader.py"])
    with pytest.raises(UserError, match="give --data-path DIR .speed. or --accuracy CHECKPOINT DATA"):
        bench_loader.main()

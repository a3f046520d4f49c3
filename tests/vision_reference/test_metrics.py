"""What a run says of itself: time left, time waited, memory, accuracy of each class."""

import csv
import re

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from vision_reference import loaders, metrics
from vision_reference.loaders import TimedLoader
from vision_reference.machine import memory_in_use
from vision_reference.metrics import Outcomes, ProgressLine, RunClock, SlowProgress, duration


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when a test says so."""
    now = [100.0]
    for module in (metrics, loaders):
        monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_the_time_left_counts_every_epoch_and_its_evaluation():
    run = RunClock(4)
    # 10 s for a quarter of an epoch: 30 s of it and three more of 40 s are left, and nothing is known of evaluation
    assert run.left(0, 10.0, 0.25) == pytest.approx(30 + 3 * 40)
    run.note(45.0, 40.0)
    assert run.left(1, 10.0, 0.25) == pytest.approx(30 + 5 + 2 * 45)
    assert run.left(3, 40.0, 1.0) == pytest.approx(5)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.9, "0:00"), (61, "1:01"), (3599, "59:59"), (3661, "1:01:01"), (90_000, "25:00:00")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_line_says_what_the_time_goes_on(clock):
    line = ProgressLine(1, 200, 10, RunClock(3))
    clock(20)
    averages = {"loss": 1.25, "kd": 0.5, "acc1": 50.0}
    text = line.text(49, 0.1, averages, images=1600, teacher=True, waited=5.0, memory="memory host 0.5 GB")
    assert text == (
        "Epoch 2/3  [ 50/200]  lr 0.1  loss 1.2500  kd 0.5000  top-1 50.00 %  80 images/s  data 25 %  "
        "memory host 0.5 GB  ETA 1:00, run 2:20"
    )


def test_long_evaluations_say_how_far_they_are(clock):
    progress = SlowProgress("Evaluation", 100, every=10)
    lines = []
    for _ in range(25):
        clock(1)
        lines.append(progress.step())
    assert [line for line in lines if line] == [
        "Evaluation  [ 10/100]  ETA 1:30",
        "Evaluation  [ 20/100]  ETA 1:20",
    ]


def test_waiting_is_counted_and_work_is_not(clock):
    class Slow:
        step_sizes = (1, 1, 1)

        def __len__(self):
            return 3

        def epoch(self, number, first):
            for step in range(3):
                clock(2)
                yield step

    timed = TimedLoader(Slow())
    for _ in range(2):
        seen = []
        for step in timed.epoch(0):
            clock(7)  # the step itself
            seen.append(step)
        assert seen == [0, 1, 2]
        assert timed.waited == pytest.approx(6)


def test_memory_is_that_of_this_process():
    kept = np.ones(50_000_000)  # 0.4 GB
    used = memory_in_use(torch.device("cpu"))
    del kept
    assert used.keys() == {"host"}
    assert 0.4 < used["host"] < 20


def test_images_are_counted_by_class():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 4, generator=generator), torch.randint(3, (50,), generator=generator)
    outcomes = Outcomes()
    for start in range(0, 50, 16):
        outcomes.add(logits[start : start + 16], labels[start : start + 16])
    confused = confusion_matrix(labels, logits.argmax(1), labels=range(4))
    assert outcomes.by_class(4).tolist() == np.c_[confused.sum(axis=1), confused.diagonal()].tolist()


def test_a_run_tells_time_memory_and_classes(train, tmp_path, metrics, few_digits):
    flags = ["--model", "shufflenet_v2_x0_5", "--epochs", 2, "--lr", 0.01, "--output-dir", tmp_path]
    table = tmp_path / "deep" / "classes.csv"
    text = train(*flags, "--per-class", table, "--model-ema")
    lines = [line for line in text.splitlines() if line.startswith("Epoch") and "images/s" in line]
    shape = r"  data \d+ %  memory host \d+\.\d GB  ETA \d+:\d\d, run \d+:\d\d$"
    assert all(re.search(shape, line) for line in lines)
    record = metrics(tmp_path)[-1]

    def rows():
        return list(csv.DictReader(table.open()))

    assert [int(row["images"]) for row in rows()] == [
        len(list((few_digits / "val" / row["class"]).iterdir())) for row in rows()
    ]
    total = sum(int(row["right"]) for row in rows())
    assert 100 * total / 37 == pytest.approx(record["ema_val_acc1"])
    table.unlink()
    text = train("--test-only", "--resume", tmp_path / "checkpoint.pth", "--per-class", table)
    assert 100 * sum(int(row["right"]) for row in rows()) / 37 == pytest.approx(record["val_acc1"])
    assert "is a folder; give a file" in train(*flags, "--per-class", tmp_path, expect=2)

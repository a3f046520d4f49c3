"""Runs that are stopped within an epoch go on at the next batch, to the bit, as if they had never been stopped."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vision_reference import train as training
from vision_reference.errors import UserError
from vision_reference.machine import Rank
from vision_reference.networks import by_name, heads
from vision_reference.networks.checkpoints import checksum, load_checkpoint
from vision_reference.runs.pauses import Begun, Pauses, pauses

ROOT = Path(__file__).resolve().parents[3]
WANTED = Pauses.wanted
MODEL = ["--epochs", "2", "--lr", "0.01"]


def network_with_dropout(name, num_classes):
    """Small, with batch normalization and random numbers in every step."""
    layers = [nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(900, num_classes))


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    monkeypatch.setattr(by_name, "build_model", network_with_dropout)
    monkeypatch.setattr(heads, "check_input_sizes", lambda *_: None)


def stop_after(update, number=signal.SIGTERM):
    """Have this process send itself a signal before the update of that number is over, counted from the run's first."""
    updates = [0]

    def wanted(self):
        updates[0] += 1
        if updates[0] == update:
            os.kill(os.getpid(), number)
        return WANTED(self)

    Pauses.wanted = wanted


@pytest.fixture
def stopped_after():
    yield stop_after
    Pauses.wanted = WANTED


def results(folder):
    """What a run leaves, without times and places."""
    found = {}
    for name in ("checkpoint.pth", "best.pth", "model_1.pth"):
        content = load_checkpoint(folder / name)
        for volatile in ("output_dir", "resume", "given"):
            content["args"].pop(volatile)
        content["description"].pop("time")
        found[name] = checksum(content)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = [
        {name: value for name, value in record.items() if name not in ("seconds", "images_per_second")}
        for record in records
    ]
    found["outcomes"] = np.load(folder / "outcomes.npy").tolist()
    assert not (folder / "within_epoch.pth").exists()
    return found


@pytest.fixture
def running(train, tmp_path):
    train("--epochs", 1, "--output-dir", tmp_path / "teacher")
    return ["--teacher", "resnet18", "--teacher-weights", tmp_path / "teacher/checkpoint.pth"]


@pytest.fixture
def stored(store, running, tmp_path):
    store(*running, "--views", 2, "--seed", 1, "--output-dir", tmp_path / "store")
    return ["--soft-labels", tmp_path / "store"]


WAYS = {
    "labels": ["--mixup-alpha", "0.2", "--cutmix-alpha", "1", "--model-ema", "--model-ema-steps", "1"],
    "workers": ["--workers", "2", "--ra-sampler", "--auto-augment", "ta_wide", "--lr-warmup-epochs", "1"],
    "running": ["--accumulate", "2", "--lr-warmup-epochs", "2", "--lr-warmup-per-step"],
    "stored": ["--kd-weight", "0.5", "--workers", "1"],
    "dali": ["--loader", "dali", "--workers", "1"],
}


# Six batches of 83 images an epoch; in the second epoch, in the first, after the last batch of an epoch.
@pytest.mark.parametrize(
    ("way", "update"), [("labels", 8), ("workers", 3), ("running", 5), ("stored", 12), ("dali", 10)]
)
def test_a_stopped_run_goes_on_at_the_next_batch_to_the_bit(way, update, train, stopped_after, request, tmp_path):
    teacher = request.getfixturevalue(way) if way in ("running", "stored") else []
    flags = [*MODEL, *WAYS[way], *teacher]
    if way == "dali":
        pytest.importorskip("nvidia.dali")
    train(*flags, "--output-dir", tmp_path / "straight")
    stopped_after(update)
    text = train(*flags, "--output-dir", tmp_path / "stopped", expect=143)
    assert "train.py: stopped by SIGTERM; the same command with --resume auto goes on after " in text.splitlines()[-1]
    stopped_after(0)
    text = train(*flags, "--output-dir", tmp_path / "stopped", "--resume", "auto")
    assert "going on with epoch" in text
    assert results(tmp_path / "stopped") == results(tmp_path / "straight")


def test_a_run_is_saved_every_so_many_minutes_and_stopped_while_it_evaluates(
    train, stopped_after, monkeypatch, tmp_path
):
    flags = [*MODEL, "--save-every-minutes", "1e-9", "--output-dir", tmp_path / "run"]
    train(*MODEL, "--output-dir", tmp_path / "straight")
    with monkeypatch.context() as patch:
        patch.setattr(Pauses, "wanted", dies_after(3))
        with pytest.raises(KeyError):  # a crash
            train(*flags)
    assert load_checkpoint(tmp_path / "run/within_epoch.pth")["within"]["images"] == 2 * 16
    assert not (tmp_path / "run/checkpoint.pth").exists()
    stopped_after(4, signal.SIGUSR1)  # the last batch: evaluation follows
    text = train(*flags, "--resume", "auto", expect=138)
    assert "stopped by SIGUSR1" in text
    assert "after 83 of the 83 images of epoch 1" in text
    stopped_after(0)
    train(*flags, "--resume", "auto")
    content, straight = results(tmp_path / "run"), results(tmp_path / "straight")
    assert content["metrics"] == straight["metrics"]
    assert content["outcomes"] == straight["outcomes"]


def dies_after(update):
    asked, updates = Pauses.wanted, [0]

    def wanted(self):
        updates[0] += 1
        if updates[0] == update:
            raise KeyError("crash")
        return asked(self)

    return wanted


# Starts three runs of two processes each, forked by a process of its own, which no test before has given threads.
PAIRS = """
import os, sys
from vision_reference import errors, train
from vision_reference.networks import by_name, heads
from vision_reference.runs.pauses import Pauses
sys.path.insert(0, {folder!r})
from test_pauses import network_with_dropout, stop_after

by_name.build_model, heads.check_input_sizes = network_with_dropout, lambda *_: None
for number, (update, *flags) in enumerate({runs!r}):
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            os.environ |= dict(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
            os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str({port} + number))
            if rank == 1:  # one alone is told
                stop_after(update)
            try:
                errors.run_command("train.py", lambda: train.main(train.parse_args(flags)))
            except SystemExit as end:
                os._exit(end.code)
            os._exit(0)
        children.append(child)
    print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children], flush=True)
"""


def test_all_processes_stop_after_the_same_batch(train, tmp_path):
    flags = [*train.flags, *MODEL, "--batch-size", "8", "--model-ema", "--model-ema-steps", "1", "--output-dir"]
    stopped = [*flags, str(tmp_path / "stopped")]
    runs = [(0, *flags, str(tmp_path / "straight")), (2, *stopped), (0, *stopped, "--resume", "auto")]
    script = PAIRS.format(folder=str(Path(__file__).parent), runs=runs, port=os.getpid() % 10_000 + 15_000)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    statuses = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert statuses == ["[0, 0]", "[143, 143]", "[0, 0]"], done.stdout + done.stderr
    assert "after 48 of the 83 images of epoch 1" in done.stderr
    assert results(tmp_path / "stopped") == results(tmp_path / "straight")


BEGUN = Begun(48, torch.arange(6.0).double(), torch.tensor(1.0), 2.5)


def test_what_is_begun_goes_on_with_other_processes_where_a_batch_ends():
    within = BEGUN.gathered()
    back = Begun.of(within, Rank(), torch.device("cpu"), "x")
    assert (back.images, back.seconds, back.sums.tolist(), float(back.misled)) == (48, 2.5, [0, 1, 2, 3, 4, 5], 1)
    assert back.batches([16, 16, 16, 16, 9], 1, "x") == 3
    assert back.batches([24, 24, 24, 1], 2, "x") == 2
    with pytest.raises(UserError, match="after 48 images, where with these batches no update ends"):
        back.batches([16, 16, 16, 16, 9], 2, "x")
    two = {**within, "sums": within["sums"] * 2, "misled": [1.0, 2.0]}
    shares = [Begun.of(two, Rank(rank, 3), torch.device("cpu"), "x") for rank in range(3)]
    assert [share.sums.tolist() for share in shares] == [[0, 2, 4, 6, 8, 10], [0] * 6, [0] * 6]
    assert [float(share.misled) for share in shares] == [3, 0, 0]


@pytest.mark.parametrize("damage", [{"images": "x"}, {"sums": []}, {"sums": [torch.ones(4)]}, {"misled": [1.0, 2.0]}])
def test_damage_is_one_line(damage):
    with pytest.raises(UserError, match="'x' is damaged"):
        Begun.of({**BEGUN.gathered(), **damage}, Rank(), torch.device("cpu"), "x")


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGUSR1)
    with pauses(Rank(), None) as noted:
        assert noted.wanted() == 0
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)  # the last one counts
        assert noted.wanted() == signal.SIGTERM
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.parametrize("after", ["checkpoint.pth", "best.pth", "model_1.pth"])
def test_a_run_killed_between_its_last_files_makes_them_up(after, train, monkeypatch, tmp_path):
    """The third run of a folder has nothing left to do but this."""
    train(*MODEL, "--lr", "0", "--output-dir", tmp_path / "straight")
    real = training.atomic_copy

    def dies(source, target):
        if target.name != after and load_checkpoint(source)["epoch"] == 1:
            raise KeyError("killed")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(training, "atomic_copy", dies)
        with contextlib.suppress(KeyError):
            train(*MODEL, "--lr", "0", "--output-dir", tmp_path / "killed")
    assert "nothing to do" in train(*MODEL, "--lr", "0", "--output-dir", tmp_path / "killed", "--resume", "auto")
    assert results(tmp_path / "killed") == results(tmp_path / "straight")

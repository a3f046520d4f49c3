"""Small real data and the real command line for the tests of the image part."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from vision_reference import store_soft_labels
from vision_reference.arguments import parse_args, parse_store_args
from vision_reference.errors import run_command
from vision_reference.train import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The built-in digits, as the user gets them."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "demo" / "digits.py"), "--output", str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def few_digits(digits, tmp_path_factory):
    """A small part of them: four classes, 83 training and 37 validation images (odd numbers on purpose)."""
    folder = tmp_path_factory.mktemp("data") / "few"
    for split, total in (("train", 83), ("val", 37)):
        for label in range(4):
            files = sorted((digits / split / str(label)).iterdir())[: (total + 3 - label) // 4]
            target = folder / split / str(label)
            target.mkdir(parents=True)
            for file in files:
                shutil.copy(file, target)
    return folder


class TrainCommand:
    """Runs ``train.py`` as a user would: in this process, which saves an interpreter's start, or in several."""

    script = "train.py"

    def __init__(self, data):
        self.flags = ["--data-path", str(data), "--preset", "digits", "--device", "cpu", "--workers", "0"]
        self.flags += ["--batch-size", "16", "--seed", "1", "--lr", "0.05", "--use-deterministic-algorithms"]

    def __call__(self, *flags, processes=None, expect=0):
        """Output of the command with ``flags``; with ``processes``, of so many started by torchrun."""
        flags = [*self.flags, *map(str, flags)]
        status, text = self._start(flags, processes) if processes else self._run_here(flags)
        assert status == expect, text
        assert "Traceback" not in text, text
        return text

    def main(self, flags):
        main(parse_args(flags))

    def _run_here(self, flags):
        output = io.StringIO()
        generator = torch.get_rng_state()
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                run_command(self.script, lambda: self.main(flags))
            status = 0
        except SystemExit as stop:
            status = stop.code
        finally:
            torch.use_deterministic_algorithms(False)
            torch.set_rng_state(generator)
        return status, output.getvalue()

    def _start(self, flags, processes):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += [str(ROOT / "vision_reference" / self.script), *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
        return done.returncode, done.stdout + done.stderr


class StoreCommand(TrainCommand):
    """The same for ``store_soft_labels.py``."""

    script = "store_soft_labels.py"

    def __init__(self, data):
        self.flags = ["--data-path", str(data), "--preset", "digits", "--device", "cpu", "--workers", "0"]
        self.flags += ["--batch-size", "16"]

    def main(self, flags):
        store_soft_labels.main(parse_store_args(flags))


@pytest.fixture(scope="session")
def train(few_digits):
    return TrainCommand(few_digits)


@pytest.fixture(scope="session")
def store(few_digits):
    return StoreCommand(few_digits)


@pytest.fixture
def metrics():
    """Reads the epoch records of an output folder."""
    return lambda folder: [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def blank_images():
    """Makes a folder in ImageFolder layout: {"train/cat": 3, ...} gives so many small images each."""

    def make(root, counts):
        for name, count in counts.items():
            (root / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (32, 32), (number, 0, 0)).save(root / name / f"{number}.png")
        return root

    return make

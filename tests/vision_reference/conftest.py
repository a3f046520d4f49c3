"""Small real data and the real command line for the tests of the image part."""

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
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


class Processes:
    """Starts a command in several processes, placed as torchrun places them, which need not import torch each."""

    def __init__(self):
        self.server = None

    def __call__(self, command, count, output):
        """Their exit statuses; what they print goes to the file ``output``."""
        if self.server is None:
            warm = [sys.executable, str(ROOT / "tests" / "warm_python.py"), "vision_reference.train"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            self.server = subprocess.Popen(
                warm, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        environments = [
            {name: str(value) for name, value in {**os.environ, **places, "RANK": rank, "LOCAL_RANK": rank}.items()}
            for rank in range(count)
        ]
        output.touch()
        request = {"command": list(map(str, command)), "processes": environments, "output": str(output), "cwd": "/"}
        print(json.dumps(request), file=self.server.stdin, flush=True)
        return json.loads(self.server.stdout.readline())

    def close(self):
        if self.server is not None:
            self.server.communicate()  # it ends with its input


@pytest.fixture(scope="session")
def in_processes():
    processes = Processes()
    yield processes
    processes.close()


class TrainCommand:
    """Runs ``train.py`` as a user would: in this process, which saves an interpreter's start, or in several."""

    script = "train.py"

    def __init__(self, data, in_processes):
        self.in_processes = in_processes
        self.flags = ["--data-path", str(data), "--preset", "digits", "--device", "cpu", "--workers", "0"]
        self.flags += ["--batch-size", "16", "--seed", "1", "--lr", "0.05", "--use-deterministic-algorithms"]

    def __call__(self, *flags, processes=None, torchrun=None, expect=0):
        """Output of the command with ``flags``: run here, in so many ``processes``, or started by ``torchrun``."""
        flags = [*self.flags, *map(str, flags)]
        if torchrun:
            status, text = self._torchrun(flags, torchrun)
        else:
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
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "output"
            statuses = self.in_processes([ROOT / "vision_reference" / self.script, *flags], processes, output)
            return max(statuses, key=abs), output.read_text()

    def _torchrun(self, flags, processes):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += [str(ROOT / "vision_reference" / self.script), *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
        return done.returncode, done.stdout + done.stderr


class StoreCommand(TrainCommand):
    """The same for ``store_soft_labels.py``."""

    script = "store_soft_labels.py"

    def __init__(self, data, in_processes):
        self.in_processes = in_processes
        self.flags = ["--data-path", str(data), "--preset", "digits", "--device", "cpu", "--workers", "0"]
        self.flags += ["--batch-size", "16"]

    def main(self, flags):
        store_soft_labels.main(parse_store_args(flags))


@pytest.fixture(scope="session")
def train(few_digits, in_processes):
    return TrainCommand(few_digits, in_processes)


@pytest.fixture(scope="session")
def store(few_digits, in_processes):
    return StoreCommand(few_digits, in_processes)


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

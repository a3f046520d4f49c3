"""A mistake with two processes: the command's line, once and first; through our torchrun nothing but it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TRAIN = [str(ROOT / "vision_reference" / "train.py"), "--lr", "nan"]
LINE = "train.py: error: argument --lr: 'nan' is not a number from 0 to 1e+30 (--help lists all flags)"


def torchrun(*launcher, script=TRAIN):
    command = [sys.executable, *launcher, "--standalone", "--nproc-per-node", "2", *map(str, script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_through_torchrun_the_line_comes_once_and_first():
    done = torchrun("-m", "torch.distributed.run")
    assert done.returncode != 0
    assert done.stderr.count(LINE) == 1
    assert done.stderr.splitlines()[0] == LINE


def test_through_our_torchrun_nothing_but_the_line_comes_and_its_status():
    done = torchrun(ROOT / "scripts" / "lib" / "torchrun.py")
    assert (done.returncode, done.stderr, done.stdout) == (2, f"{LINE}\n", "")


@pytest.mark.parametrize(("program", "status"), [("pass", 0), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_other_ends_keep_their_status(tmp_path, program, status):
    (tmp_path / "program.py").write_text(program)
    done = torchrun(ROOT / "scripts" / "lib" / "torchrun.py", script=[tmp_path / "program.py"])
    assert done.returncode == status
    assert ("Signal 9" in done.stderr) == (status == 137)


PROGRAM = """
import os, signal, sys, time
signal.signal(signal.{name}, lambda *_: sys.exit(128 + signal.{name}))
open(sys.argv[1] + os.environ["RANK"], "w").close()
time.sleep(60)
"""


@pytest.mark.parametrize(("name", "status"), [("SIGUSR1", 138), ("SIGTERM", 143)])
def test_a_signal_reaches_the_processes_and_their_end_is_its_own(tmp_path, name, status):
    (tmp_path / "program.py").write_text(PROGRAM.format(name=name))
    command = [sys.executable, ROOT / "scripts" / "lib" / "torchrun.py", "--standalone", "--nproc-per-node", "2"]
    command += [tmp_path / "program.py", tmp_path / "begun"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True) as process:
        while len(list(tmp_path.glob("begun*"))) < 2:
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(getattr(signal, name))
        _, printed = process.communicate(timeout=60)
    assert (process.returncode, printed) == (status, "")


def test_a_warning_before_there_are_processes_ends_it():
    told = "from scripts.lib import torchrun as t; import os, signal; from torch.distributed import run\n"
    told += "run.run = lambda _: os.kill(os.getpid(), signal.SIGUSR1); t.main(['x.py'])"
    done = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 138
    assert done.stderr == "torchrun: stopped by SIGUSR1 before the processes were started\n"

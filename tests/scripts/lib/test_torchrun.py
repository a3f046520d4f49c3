"""A mistake with two processes: the command's line, once and first; through our torchrun nothing but it."""

import os
import subprocess
import sys
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

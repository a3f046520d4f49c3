"""How a command of the translation scripts ends."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts.nmt.lib.user_error import UserError, run_cli

ROOT = Path(__file__).resolve().parents[4]


def ending(problem, capsys):
    def main():
        raise problem

    with pytest.raises(SystemExit) as end:
        run_cli("x.py", main)
    return end.value.code, capsys.readouterr().err


def test_what_ends_a_command_is_one_line_and_a_status(capsys):
    assert ending(UserError("wrong"), capsys) == (2, "x.py: error: wrong\n")
    assert ending(OSError(28, "No space left on device", "out/f"), capsys) == (
        2,
        "x.py: error: out/f: No space left on device\n",
    )
    assert ending(OSError("odd\nreason"), capsys) == (2, "x.py: error: odd reason\n")
    status, line = ending(MemoryError(), capsys)
    assert (status, line.count("\n")) == (2, 1)
    assert ending(KeyboardInterrupt(), capsys) == (130, "x.py: interrupted; run the same command again to go on\n")
    # what is wrong with the program itself keeps its traceback
    with pytest.raises(ZeroDivisionError):
        run_cli("x.py", lambda: 1 / 0)


def test_a_stop_while_torch_saves_is_a_stop(capsys):
    class Interrupted(io.BytesIO):
        def write(self, data):
            raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run_cli("x.py", lambda: torch.save({"weight": torch.zeros(9999)}, Interrupted()))
    assert end.value.code == 130
    assert capsys.readouterr().err == "x.py: interrupted; run the same command again to go on\n"
    with pytest.raises(RuntimeError, match="another"):
        run_cli("x.py", lambda: (_ for _ in ()).throw(RuntimeError("another")))


def test_sigterm_ends_a_command_with_status_143(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        run_cli("x.py", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert end.value.code == 143
    assert capsys.readouterr().err == "x.py: interrupted; run the same command again to go on\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_debug_shows_the_traceback_and_is_no_argument(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x.py", "--debug", "--more"])
    _, told = ending(UserError("wrong"), capsys)
    assert told.startswith("Traceback")
    assert told.endswith("x.py: error: wrong\n")
    assert sys.argv == ["x.py", "--more"]


def test_a_reader_that_leaves_ends_the_command_without_a_word():
    code = (
        "from scripts.nmt.lib.user_error import run_cli; run_cli('x', lambda: [print('y' * 999) for _ in range(9999)])"
    )
    command = f'{sys.executable} -c "{code}" | head -n1 | wc -l; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (141, "1", "")

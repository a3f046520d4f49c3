"""How a command ends: one line and a status that tells, whatever a user, a disk or a signal may cause."""

import errno
import io
import os
import signal
import subprocess
import sys

import pytest
import torch

from vision_reference.errors import Terminated, UserError, run_command


def end_of(error, capsys, **options):
    def fails():
        raise error

    with pytest.raises(SystemExit) as end:
        run_command("train.py", fails, go_on="do this", **options)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("no such file"), 2, "error: no such file"),
        (OSError(errno.ENOSPC, "No space left on device", "a.pth"), 2,
         "error: 'a.pth': No space left on device; free some space; do this"),
        (OSError(errno.EFBIG, "File too large"), 2,
         "error: File too large; raise the limit on file sizes (ulimit -f); do this"),
        (PermissionError(errno.EACCES, "Permission denied", "/root"), 2,
         "error: '/root': Permission denied; give a place that you may read and write"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/dev/null/x"), 2,
         "error: '/dev/null/x': Not a directory; a part of this path is a file, not a folder; give another place or "
         "move it"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), 2,
         "error: 'a' -> 'b': Invalid cross-device link"),
        (MemoryError(), 2, "error: out of memory; lower --batch-size, --workers or the sizes of the images; do this"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried ..."), 2,
         "error: out of memory; lower --batch-size, --workers or the sizes of the images; do this"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"), 2,
         "error: out of memory; lower --batch-size, --workers or the sizes of the images; do this"),
        (RuntimeError("DataLoader worker (pid 17682) is killed by signal: Killed. "), 2,
         "error: a loader worker has died, as where memory or space in /dev/shm runs out; lower --workers or "
         "--batch-size, or give the container more (docker run --shm-size 8g); do this"),
        (RuntimeError("DataLoader worker (pid(s) 17806) exited unexpectedly"), 2,
         "error: a loader worker has died, as where memory or space in /dev/shm runs out; lower --workers or "
         "--batch-size, or give the container more (docker run --shm-size 8g); do this"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C; do this"),
    ],
)  # fmt: skip
def test_what_a_user_may_cause_ends_in_one_line(error, status, line, capsys):
    assert end_of(error, capsys, debug=False) == (status, f"train.py: {line}\n")


def test_debug_shows_the_traceback_before_the_line(capsys):
    status, text = end_of(UserError("no such file"), capsys, debug=True)
    assert status == 2
    assert text.startswith("Traceback")
    assert text.endswith("train.py: error: no such file\n")


def test_a_fault_of_our_own_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command("train.py", lambda: 1 / 0)


@pytest.mark.parametrize(("stop", "status"), [(KeyboardInterrupt, 130), (Terminated, 143)])
@pytest.mark.parametrize("write", [1, 2, 5])
def test_a_stop_while_torch_saves_is_a_stop(stop, status, write, capsys):
    class Interrupted(io.BytesIO):
        writes = 0

        def write(self, data):
            self.writes += 1
            if self.writes == write:
                raise stop
            return super().write(data)

    with pytest.raises(SystemExit) as end:
        run_command("train.py", lambda: torch.save({"weight": torch.zeros(9999)}, Interrupted()))
    assert end.value.code == status
    assert capsys.readouterr().err.startswith("train.py: stopped by ")


def test_sigterm_lets_files_be_cleaned_up_and_is_told(capsys):
    cleaned = []

    def waits():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        run_command("train.py", waits, go_on="do this")
    assert end.value.code == 143
    assert capsys.readouterr().err == "train.py: stopped by SIGTERM; do this\n"
    assert cleaned
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("rank", [1, 2])
def test_of_several_processes_the_first_speaks_and_another_one_only_if_it_is_left_alone(rank, capsys, monkeypatch):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr("time.sleep", lambda _: os.kill(os.getpid(), signal.SIGTERM) if rank == 1 else None)
    _, text = end_of(UserError("one image is broken"), capsys)
    assert text == ("" if rank == 1 else "train.py: error: one image is broken\n")


def test_a_process_whose_peer_is_gone_says_how_to_go_on(capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(SystemExit) as end:
        run_command(
            "train.py", raises(RuntimeError("[pair.cc:534] Connection closed by peer [::1]:40")), go_on="do this"
        )
    assert end.value.code == 2
    text = capsys.readouterr().err
    assert text == "train.py: error: another process of this run has ended or cannot be reached any more; do this\n"


def test_of_a_lost_process_the_first_of_each_other_machine_speaks_though_torchrun_ends_it(capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    lost = RuntimeError("Connection closed by peer")
    for local, machine in ((0, 2), (1, 2), (0, 4)):
        for name, value in (("RANK", 2), ("WORLD_SIZE", 4), ("LOCAL_RANK", local), ("LOCAL_WORLD_SIZE", machine)):
            monkeypatch.setenv(name, str(value))
        _, text = end_of(lost, capsys)
        assert ("cannot be reached" in text) == (local == 0 and machine == 2)


def raises(error):
    def command():
        raise error

    return command


def test_a_reader_that_goes_away_is_no_error():
    program = "import sys; from vision_reference.errors import run_command\n"
    program += "run_command('train.py', lambda: [print('x' * 100, flush=True) for _ in range(10000)])"
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run.stdout.readline()
    run.stdout.close()
    assert run.stderr.read() == b""
    assert run.wait() == 141


@pytest.mark.parametrize("command", ["train.py", "store_soft_labels.py --teacher resnet18 --teacher-weights x"])
def test_ctrl_c_while_torch_is_imported_is_one_line(command, request, tmp_path):
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    script, *flags = command.split()
    path = request.config.rootpath / "vision_reference" / script
    words = [sys.executable, str(path), "--data-path", "data", "--output-dir", str(tmp_path / "new"), *flags]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == f"{script}: stopped by Ctrl-C\n"


@pytest.mark.parametrize(
    ("last", "status"), [("pass", 0), ("raise UserError('no')", 2), ("raise KeyboardInterrupt", 130)]
)
def test_a_process_of_a_group_ends_without_python_being_taken_apart(last, status, tmp_path, request):
    """In that, a thread of gloo now and then aborted a process that was done. What is registered for exit is done."""
    code = f"""
import atexit
import torch.distributed as dist
from vision_reference.errors import UserError, run_command

class Remains:
    def __del__(self):
        print("taken apart")

remains = Remains()

def command():
    dist.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=0, world_size=1)
    atexit.register(print, "at exit")
    print("done", end=" ")
    {last}

run_command("x", command)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=request.config.rootpath, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, "done at exit\n"), done.stderr

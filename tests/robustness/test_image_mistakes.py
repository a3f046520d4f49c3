"""A user's mistakes with the image part's commands: a row is a mistake and the one line that answers it, status 2.

The rows are in image_mistakes.txt: a command line, which may begin with a situation in brackets and an abbreviation,
and below it a part of the line that answers it. Everything runs in this process, on files made in seconds
(``image_world`` in conftest.py). Nothing that was there is changed or lost; nothing is left that looks like a result.
"""

import contextlib
import ctypes
import errno
import functools
import io
import os
import re
import resource
import shlex
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from scripts import study
from scripts.bench import damaged_files, kd_loss, loader, smoothing_detector, soft_labels, teacher, vision_step
from scripts.demo import digits
from scripts.demo import images as demo
from scripts.lib import alpha_t_table, jobs
from vision_reference import export, predict, store_soft_labels, suggest, train
from vision_reference.analysis import diffusion_index, inspect_teacher, penultimate
from vision_reference.arguments import parse_args, parse_store_args
from vision_reference.errors import run_command

COMMANDS = {
    "train": lambda: train.main(parse_args()),
    "store_soft_labels": lambda: store_soft_labels.main(parse_store_args()),
    "predict": lambda: predict.main(predict.parse_args()),
    "export": lambda: export.main(export.parse_args()),
    "suggest": lambda: suggest.main(suggest.parse_args()),
    "penultimate": lambda: penultimate.main(penultimate.parse_args()),
    "inspect_teacher": lambda: inspect_teacher.main(inspect_teacher.parse_args()),
    "diffusion_index": lambda: diffusion_index.main(diffusion_index.parse_args()),
    "study": study.main,
    "demo": demo.main,
    "digits": digits.main,
    "alpha_t_table": alpha_t_table.main,
    "jobs": jobs.main,
    "bench/loader": loader.main,
    "bench/teacher": teacher.main,
    "bench/soft_labels": soft_labels.main,
    "bench/vision_step": vision_step.main,
    "bench/damaged_files": damaged_files.main,
    "bench/smoothing_detector": smoothing_detector.main,
    "bench/kd_loss": kd_loss.main,
}


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes, as with `ulimit -f`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Whatever is to reach the disk finds no space there."""

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        patch.setattr(os, "posix_fallocate", no_space)
        yield


@contextlib.contextmanager
def a_plain_user() -> Iterator[None]:
    """The permissions of files count, for root too: without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
    before = ctypes.create_string_buffer(24)
    assert libc.capget(header, before) == 0
    effective, *rest = struct.unpack("6I", before.raw)
    assert libc.capset(header, ctypes.create_string_buffer(struct.pack("6I", effective & ~0b110, *rest))) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


@contextlib.contextmanager
def modes(**of: int) -> Iterator[None]:
    """Other permissions of files and folders (``__`` for a slash, ``_DOT_`` for a dot) for a plain user."""
    paths = {Path(name.replace("__", "/").replace("_DOT_", ".")): mode for name, mode in of.items()}
    before = {path: path.stat().st_mode for path in paths}
    for path, mode in paths.items():
        path.chmod(mode)
    try:
        with a_plain_user():
            yield
    finally:
        for path, mode in before.items():
            path.chmod(mode)


@contextlib.contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        yield


@contextlib.contextmanager
def without_package(name: str) -> Iterator[None]:
    """A package that is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, None)
        yield


@contextlib.contextmanager
def folder_that_is_gone() -> Iterator[None]:
    before, gone = Path.cwd(), Path("gone")
    gone.mkdir()
    os.chdir(gone)
    os.rmdir(before / "gone")
    try:
        yield
    finally:
        os.chdir(before)


SITUATIONS = {
    "ulimit -f 0": lambda: files_of_at_most(0),
    "ulimit -f 20": lambda: files_of_at_most(20 << 10),
    "disk full": full_disk,
    "folder read-only": lambda: modes(void=0o555),
    "data unreadable": lambda: modes(data__train__cat=0),
    "train/ unreadable": lambda: modes(data__train=0),
    "image unreadable": lambda: modes(data__train__cat__0_DOT_png=0),
    "val image unreadable": lambda: modes(data__val__cat__0_DOT_png=0),
    "weights unreadable": lambda: modes(run__best_DOT_pth=0),
    "store unreadable": lambda: modes(store__labels_DOT_bin=0),
    "manifest unreadable": lambda: modes(store__manifest_DOT_json=0),
    "run read-only": lambda: modes(run=0o555),
    "study unreadable": lambda: modes(studies__none__study_DOT_json=0),
    "config unreadable": lambda: modes(y__good_DOT_yaml=0),
    "records unreadable": lambda: modes(records__good=0),
    "in a folder that is gone": folder_that_is_gone,
    **{f"without {name}": functools.partial(without_package, name) for name in ("tensorboard", "wandb", "mlflow")},
    "WANDB_MODE=sideways": lambda: variable("WANDB_MODE", "sideways"),
    "MLFLOW_TRACKING_URI=gopher://nowhere": lambda: variable("MLFLOW_TRACKING_URI", "gopher://nowhere"),
}


def answer(world: Path, row: str) -> tuple[int | str | None, list[str], list[str], str]:
    """Run a row in this process: exit status, lines on stderr, paths that were changed, lost or left, stdout."""
    situation, _, words = row[1:].partition("] ") if row.startswith("[") else ("", "", row)
    command, *arguments = shlex.split(words)
    name = f"{command.split('/')[-1]}.py" if command != "demo" else "demo"
    before, generator, threads = _all_files(world), torch.get_rng_state(), torch.get_num_threads()
    here, text, errors = Path.cwd(), io.StringIO(), io.StringIO()
    status: int | str | None = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        patch.setattr(sys, "argv", [name, *arguments])
        patch.setattr(sys, "stdin", io.StringIO(""))
        patch.setenv("XDG_CACHE_HOME", str(world / "cache"))
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(errors):
            try:
                with SITUATIONS[situation]() if situation else contextlib.nullcontext():
                    run_command(name, COMMANDS[command])
            except SystemExit as end:
                status = end.code
            except BaseException as error:
                status = f"{type(error).__name__}: {error}"
    os.chdir(here)
    torch.set_rng_state(generator)
    torch.set_num_threads(threads)
    after = _all_files(world)
    changed = [path for path in before if before[path] != after.get(path) and not path.endswith("log.txt")]
    changed += [path for path in after.keys() - before.keys() if not _harmless(path)]
    for path in sorted(after.keys() - before.keys(), reverse=True):
        target = world / path
        shutil.rmtree(target) if target.is_dir() and not target.is_symlink() else target.unlink(missing_ok=True)
    return status, errors.getvalue().strip().splitlines(), changed, text.getvalue()


def _all_files(world: Path) -> dict[str, tuple[int, int] | None]:
    """Size and time of each file below the folder, None of each folder."""
    found: dict[str, tuple[int, int] | None] = {}
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(world / folder) as entries:
            for entry in entries:
                path = f"{folder}{entry.name}"
                if entry.is_dir():
                    found[path] = None
                    if not entry.is_symlink():
                        folders.append(f"{path}/")
                else:
                    facts = entry.stat(follow_symlinks=False)
                    found[path] = facts.st_size, facts.st_mtime_ns
    return found


RESULTS = (".pth", ".partial", ".onnx", ".safetensors", ".pt", ".csv", ".pdf", "manifest.json", ".html")


def _harmless(path: str) -> bool:
    """What a command that refuses may leave: the folder it was told to make, its log, and caches."""
    return path.startswith(("new", "cache", "run/best.pth.f", "run/checkpoint.pth.f")) and not path.endswith(RESULTS)


@pytest.fixture(scope="module")
def mistakes(read_rows):
    """(command line, part of the answer) of all rows."""
    return read_rows(Path(__file__).with_name("image_mistakes.txt"))


def test_every_mistake_is_answered_in_one_line(image_world, mistakes):
    wrong = []
    for row, expected in mistakes:
        status, told, changed, _ = answer(image_world, row)
        complaints = [line for line in told if not re.match(r"note: |.* %, .* ETA ", line)]  # notes and progress
        if status != 2 or len(complaints) != 1 or changed:
            wrong.append(f"{row}: status {status}, {told}, {changed}")
        elif not re.match(r"(\w+\.py|demo)( \w+)?: error: ", complaints[0]) or expected not in complaints[0]:
            wrong.append(f"{row}: {complaints[0]}, not {expected}")
    assert not wrong, "\n".join(wrong)


def test_the_rows_are_many_and_of_every_command(mistakes):
    assert len({row for row, _ in mistakes}) == len(mistakes) >= 700
    assert {re.sub(r"^\[.*?\] ", "", row).split()[0] for row, _ in mistakes} == set(COMMANDS)
    assert all(len(expected) > 8 for _, expected in mistakes)

"""The folder of a training run: one run at a time, nothing of another run's replaced unasked, a record of what ran.

================  ===================================================================================================
checkpoint.pth    the last epoch (``networks.checkpoints`` tells what is in it)
within_epoch.pth  the next one as far as it came, in a run that was stopped, or with --save-every-minutes
best.pth          the epoch of the best evaluation
model_<N>.pth     the last epochs, as many as --keep-checkpoints says
metrics.jsonl     one record per epoch
outcomes.npy      which validation images the last epoch's model gets right
args.json         the command line, every flag with its value
environment.json  code, libraries, machine and time of the last start
tracking.json     with --track: names of the run at the services (``runs.tracking``)
log.txt           what the run printed, all starts one after the other
================  ===================================================================================================
"""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TextIO

import torch

from vision_reference.errors import UserError, some
from vision_reference.files import remove_partials, try_lock, write_atomically
from vision_reference.networks.checkpoints import WITHIN_EPOCH
from vision_reference.networks.description import made_here
from vision_reference.runs.metrics_file import last_epoch

RESULTS = ("checkpoint.pth", WITHIN_EPOCH, "best.pth", "model_*.pth", "metrics.jsonl", "outcomes.npy")


@contextmanager
def open_run_folder(folder: Path, resume: str, *, overwrite: bool) -> Iterator[None]:
    """Hold the folder of a run, made where it is missing, and copy into its log.txt what is printed meanwhile.

    Args:
        folder: --output-dir.
        resume: --resume: the checkpoint that the run goes on from, "auto" or "".
        overwrite: another run's results in the folder may be replaced.

    Raises:
        UserError: another run is writing there, or has left results there that this one would replace.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        if not try_lock(log):
            raise UserError(f"another run is writing to '{folder}'; wait for its end or give another --output-dir")
        if not overwrite:
            _refuse_another_runs_results(folder, resume)
        for path in (path for pattern in RESULTS for path in folder.glob(pattern)):
            if path.is_dir():
                raise UserError(
                    f"'{path}' is a folder, where the run is to write a file; move it or give another place"
                )
        remove_partials(folder, *RESULTS, "args.json", "environment.json")
        log.write(f"# {_now()}  {shlex.join(sys.argv)}\n")
        with redirect_stdout(_Copying(sys.stdout, log)), redirect_stderr(_Copying(sys.stderr, log)):
            try:
                yield
            except BaseException as error:
                log.write(f"# ended by {type(error).__name__}: {error}\n")
                raise


def begin_epochs(folder: Path, args: dict, start_epoch: int, source: Path | None) -> None:
    """Make way for the results of the epochs from ``start_epoch`` on, and note what makes them.

    Results that a run started anew is to replace go now and not before, when all is ready to train.

    Args:
        args: the command line.
        source: the checkpoint that the run goes on from; where it lies in this folder, results of earlier epochs are
            the run's own.
    """
    resumed = source is not None and source.resolve().parent == folder.resolve()
    for pattern in RESULTS:
        for path in folder.glob(pattern):
            epoch = path.stem.removeprefix("model_")
            later = epoch.isdecimal() and int(epoch) >= start_epoch
            other = path.name == WITHIN_EPOCH and (source is None or source.name != WITHIN_EPOCH)
            if not resumed or later or other:
                path.unlink()
    _write_json(folder / "args.json", args)
    environment = {
        **made_here(),
        "time": _now(),
        "command": sys.argv,
        "folder": os.getcwd(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
    }
    _write_json(folder / "environment.json", environment)


def goes_back(folder: Path, start_epoch: int) -> bool:
    """Whether a run that begins with ``start_epoch`` would replace results of later epochs.

    One record may be ahead: a run that is stopped between an epoch's record and its checkpoint repeats that epoch.
    """
    return last_epoch(folder / "metrics.jsonl") > start_epoch


def _refuse_another_runs_results(folder: Path, resume: str) -> None:
    # A run that ended in its first epoch leaves an empty metrics.jsonl.
    found = sorted(path for pattern in RESULTS for path in folder.glob(pattern) if path.stat().st_size)
    weights = [path for path in found if path.suffix == ".pth"]
    # A run that was stopped before its first checkpoint leaves a record at most.
    auto = not weights or bool({"checkpoint.pth", WITHIN_EPOCH}.intersection(path.name for path in weights))
    own = auto if resume == "auto" else bool(resume) and Path(resume).resolve().parent == folder.resolve()
    if not found or own:
        return
    start = "auto" if auto else max(weights, key=lambda path: path.stat().st_mtime_ns)
    raise UserError(
        f"'{folder}' holds the results of a run ({some([path.name for path in found], 4)}): go on with it (--resume "
        f"{start}), replace them (--overwrite), or give another --output-dir"
    )


def _write_json(path: Path, content: dict) -> None:
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class _Copying:
    """A text stream that also writes into a log; a log that cannot be written any more does not end the run."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self.stream = stream
        self.log = log

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self.log.write(text)
        return self.stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self.log.flush()
        self.stream.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)

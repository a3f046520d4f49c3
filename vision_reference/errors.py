"""The one exception that stands for a user's mistake, and how command lines end: in one line, with a status that tells.

========  =============================================================================================
status 0  done
status 2  a mistake of the user's, a full disk, too little memory
130, 143  stopped by Ctrl-C or by SIGTERM
138       stopped by SIGUSR1, a scheduler's warning, where a command knows it
141       whoever read the output has gone
========  =============================================================================================
"""

import argparse
import atexit
import errno
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import NoReturn

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # what ends a run that was right
_HINTS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n) or lower --workers",
    errno.EACCES: "give a place that you may read and write",
    errno.EROFS: "give a place that can be written",
    errno.EEXIST: "this is a file where a folder is needed; give another place or move it",
    errno.ENOTDIR: "a part of this path is a file, not a folder; give another place or move it",
}


# How gloo and nccl say that a process they wait for is no more.
_LOST = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|Socket (closed|Timeout)|Timed out waiting|connectFullMesh"
    r"|failed to (recv|send)|NCCL.*(remote|timeout|abort)",
    re.IGNORECASE | re.DOTALL,
)

_WORKER_DIED = re.compile(r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly)", re.DOTALL)


class UserError(Exception):
    """A mistake of the user's, told in one line: what was given, what is allowed, what to do.

    Command lines print the message and exit with status 2; a traceback would only hide it.
    """

    @property
    def line(self) -> str:
        """The line; without the traceback that a loader process wraps around an error it passes on."""
        text = str(self)
        if "Original Traceback" in text:
            text = text.strip().splitlines()[-1].partition(": ")[2]
        return " ".join(text.splitlines())


class Parser(argparse.ArgumentParser):
    """An ``argparse`` parser that tells a mistake in one line; the list of all flags would only hide it."""

    def error(self, message: str) -> NoReturn:
        line = f"{self.prog}: error: {' '.join(message.split())} (--help lists all flags)\n"
        self.exit(2, line if _speaks_for_all(UserError(message)) else None)


class Terminated(BaseException):
    """SIGTERM, as Ctrl-C is ``KeyboardInterrupt``: files in the making are removed on the way out.

    Args:
        number: of the signal, where it is another one.
        go_on: how to go on, where that is not what the command says.
    """

    def __init__(self, number: int = signal.SIGTERM, go_on: str = "") -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.go_on = number, go_on


def some(names: Sequence[str], most: int = 5) -> str:
    """A list of names for such a line: the first of them, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def run_command(name: str, command: Callable[[], object], *, go_on: str = "", debug: bool | None = None) -> None:
    """Run ``command``; what a user may cause ends the process with one line and the status above.

    Args:
        name: of the command, begins the line.
        go_on: how to go on after a stop, such as "the same command with --resume auto goes on".
        debug: show the traceback instead; None: where --debug is on the command line.
    """
    debug = "--debug" in sys.argv if debug is None else debug
    try:
        with _sigterm_raises():
            command()
    except (Exception, KeyboardInterrupt, Terminated) as caught:
        error = _behind(caught)
        status, line = _ending(error, go_on)
        if status is None:  # nobody's mistake but ours
            raise
        if debug:
            traceback.print_exc()
        if line and _speaks_for_all(error):
            _print_last(f"{name}: {line}")
        if isinstance(error, BrokenPipeError):  # Python would try to write what is left, and fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _end_of_several(status)
        sys.exit(status)
    _end_of_several(0)


def _end_of_several(status: int) -> None:
    """End a process that belongs to a process group; does nothing elsewhere.

    Python is not taken apart: now and then that aborted a process that was done, with a status of -6, most likely
    because a thread of gloo still held a tensor, asked for the interpreter's lock and was ended for it within C++.
    Leaving the group first has made processes wait for ever.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        atexit._run_exitfuncs()
        with suppress(OSError):  # nobody listens
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def answer_at_once(name: str, parse_args: Callable[[], object]) -> None:
    """Before imports that take seconds: answer --help and mistakes in the flags, and let Ctrl-C meanwhile be one line.

    Args:
        name: of the command, begins the line.
        parse_args: parses the command line; it is called again when all is imported.
    """
    run_command(name, parse_args)

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, KeyboardInterrupt):
            return sys.__excepthook__(kind, error, trace)
        if _speaks_for_all(error):
            _print_last(f"{name}: {_ending(error, '')[1]}")
        sys.exit(130)

    sys.excepthook = uncaught


def _behind(error: BaseException) -> BaseException:
    """Ctrl-C or SIGTERM where it is what ``error`` came of: torch.save, interrupted, fails at closing its archive."""
    cause: BaseException | None = error
    while isinstance(cause, RuntimeError):
        cause = cause.__context__
    return cause if isinstance(cause, KeyboardInterrupt | Terminated) else error


def _ending(error: BaseException, go_on: str) -> tuple[int | None, str]:
    """Exit status and line for ``error``; no status if it is none that a user may cause."""
    after = f"; {go_on}" if go_on else ""
    if isinstance(error, UserError):
        return 2, f"error: {error.line}"
    if isinstance(error, KeyboardInterrupt):
        return 130, f"stopped by Ctrl-C{after}"
    if isinstance(error, Terminated):
        after = f"; {error.go_on}" if error.go_on else after
        return 128 + error.number, f"stopped by {error}{after}"
    if isinstance(error, BrokenPipeError):
        return 141, ""
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "can't allocate memory" in str(error):
        return 2, f"error: out of memory; lower --batch-size, --workers or the sizes of the images{after}"
    if isinstance(error, RuntimeError) and _WORKER_DIED.search(str(error)):
        remedy = "lower --workers or --batch-size, or give the container more (docker run --shm-size 8g)"
        return 2, f"error: a loader worker has died, as where memory or space in /dev/shm runs out; {remedy}{after}"
    if isinstance(error, RuntimeError) and _LOST.search(str(error)):
        return 2, f"error: another process of this run has ended or cannot be reached any more{after}"
    if isinstance(error, OSError):
        files = " -> ".join(f"'{str(file)[-300:]}'" for file in (error.filename, error.filename2) if file is not None)
        hint = _HINTS.get(error.errno or 0)
        reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
        hint = f"; {hint}" if hint else ""
        return 2, "error: " + (f"{files}: " if files else "") + reason + hint + after * (error.errno in _FULL)
    return None, ""


def _speaks_for_all(error: BaseException) -> bool:
    """Whether this process of several says why the run ends.

    The first does. Another one may be alone with its mistake (an image that only it reads): if nobody has ended it
    after a while, it is. Of a process that is lost on another machine, the first on each of the others speaks at once:
    torchrun may lose sight of the others at the same moment, and end without a word that tells.
    """
    lost = isinstance(error, RuntimeError) and bool(_LOST.search(str(error)))
    machines = os.environ.get("LOCAL_WORLD_SIZE", "1") != os.environ.get("WORLD_SIZE", "1")
    if lost and machines and os.environ.get("LOCAL_RANK", "0") == "0":
        return True
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0" and not lost:
        return True
    if isinstance(error, KeyboardInterrupt | Terminated):
        return False
    try:
        with _sigterm_raises():
            time.sleep(2 if lost else 10)
    except (KeyboardInterrupt, Terminated):
        return False
    return True


def _print_last(line: str) -> None:
    with suppress(OSError):  # nobody listens
        print(line, file=sys.stderr, flush=True)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def raise_terminated(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

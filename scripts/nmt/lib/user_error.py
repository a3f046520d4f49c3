"""How the translation scripts report a user's mistake: with the plugin's `UserError`, whose reason they keep.

What the two halves share (`vision_reference/analysis`, the writer of stores) has an exception of its own, told alike.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable

from fairseq_plugins.errors import UserError as UserError
from vision_reference.errors import UserError as SharedUserError

_MISTAKES = (UserError, SharedUserError)


def run_cli(name: str, main: Callable[[], None]) -> None:
    """Run `main`; what a user or the machine did becomes one line on stderr instead of a traceback.

    The exit status is 2 for a mistake and for what the system refuses (files, disk, memory), 130 and 143 for Ctrl-C and
    SIGTERM, 141 where nobody reads the output any more. With `--debug` among the arguments the traceback is shown, too.
    """
    debug = "--debug" in sys.argv[1:]
    if debug:
        sys.argv.remove("--debug")
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        main()
        sys.stdout.flush()
    except (*_MISTAKES, OSError, MemoryError, KeyboardInterrupt, RuntimeError) as caught:
        problem = _behind(caught)
        if isinstance(problem, RuntimeError):  # nobody's mistake but ours
            raise
        if debug:
            traceback.print_exc()
        status, line = _told(problem)
        if line:
            print(f"{name}: {line}", file=sys.stderr)
        if isinstance(problem, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would complain when it closes the output
        sys.exit(status)
    finally:
        signal.signal(signal.SIGTERM, before)


class _Terminated(KeyboardInterrupt):
    pass


def _terminated(number: int, frame: object) -> None:
    raise _Terminated


def _behind(problem: BaseException) -> BaseException:
    """Ctrl-C or SIGTERM where it is what `problem` came of: torch.save, interrupted, fails at closing its archive."""
    cause: BaseException | None = problem
    while isinstance(cause, RuntimeError):
        cause = cause.__context__
    return cause if isinstance(cause, KeyboardInterrupt) else problem


def _told(problem: BaseException) -> tuple[int, str]:
    """Exit status, and the line without the command's name."""
    if isinstance(problem, _MISTAKES):
        return 2, f"error: {problem}"
    if isinstance(problem, KeyboardInterrupt):
        return 143 if isinstance(problem, _Terminated) else 130, "interrupted; run the same command again to go on"
    if isinstance(problem, BrokenPipeError):
        return 141, ""
    if isinstance(problem, MemoryError):
        return 2, "error: there is not enough memory for this; give less at a time, or use a larger machine"
    reason = " ".join(str(getattr(problem, "strerror", None) or problem or type(problem).__name__).split())
    file = getattr(problem, "filename", None)
    return 2, f"error: {file}: {reason}" if file else f"error: {reason}"

"""The one exception that stands for a user's mistake, and how command lines show it."""

import sys
from collections.abc import Callable


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
        return text


def run_command(name: str, command: Callable[[], None]) -> None:
    """Run ``command``; a user's mistake in it ends the process with one line and status 2."""
    try:
        command()
    except UserError as error:
        print(f"{name}: error: {error.line}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)

"""A user's mistake, and how the translation scripts report one."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """One line that says what was given, what is allowed and what to do."""


def run_cli(name: str, main: Callable[[], None]) -> None:
    """Run `main`; a UserError or Ctrl-C becomes one line on stderr and exit status 2 or 130 instead of a traceback."""
    try:
        main()
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)

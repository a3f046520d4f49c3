"""How the translation scripts report a user's mistake: with the plugin's `UserError`, whose reason they keep."""

import sys
from collections.abc import Callable

from fairseq_plugins.errors import UserError as UserError


def run_cli(name: str, main: Callable[[], None]) -> None:
    """Run `main`; a UserError or Ctrl-C becomes one line on stderr and exit status 2 or 130 instead of a traceback."""
    try:
        main()
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)

"""The one exception that stands for a user's mistake."""

from __future__ import annotations

import sys
from pathlib import Path


class UserError(SystemExit):
    """A mistake of the user's, told in one line: what was given, what is allowed, what to do.

    `str(error)` is that line. Uncaught, it ends the program as argparse does: `fairseq-train: error: LINE` on stderr,
    status 2. It derives from `SystemExit` because fairseq's and hydra's command lines catch ordinary exceptions, or let
    them end in a traceback that would bury the line.

    Args:
        message: the line; line breaks inside are folded into spaces.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
        self._said = False

    @property
    def code(self) -> int:  # type: ignore[override]
        """Status 2, asked for by whatever ends the process; the line is printed at the first time.

        Python itself prints the reason of a `SystemExit` only together with status 1.
        """
        if not self._said:
            self._said = True
            program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
            print(f"{program}: error: {self}", file=sys.stderr, flush=True)
        return 2

"""Settings of the shell recipes that would be ignored: misspelt ones, and those of another script.

    python scripts/lib/environment.py SCRIPT NAME... [-- NAME_OF_ANOTHER...]

ends with one line and status 2 where a variable such as TEMPRATURE or STUDENT is set and the names are TEMPERATURES,
STUDENTS, of this script or of another. A variable that is right for another script alone gets a note.
"""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from vision_reference.errors import UserError, run_command

# What shells and systems set, one letter away from a recipe's name or not.
_OF_THE_SYSTEM = {
    "PATH",
    "HOME",
    "USER",
    "TERM",
    "LANG",
    "PWD",
    "OLDPWD",
    "SHELL",
    "SHLVL",
    "MAIL",
    "HOST",
    "DATE",
    "_",
}


def check_environment(
    own: Iterable[str], others: Iterable[str] = (), environment: Mapping[str, str] = os.environ
) -> None:
    """Refuses upper-case variables that are up to two letters (short names: one) away from a setting.

    Args:
        own: settings of the script that runs.
        others: of those beside it; one that is set gets a note, because a script that runs both may have set it.

    Raises:
        UserError: there is such a variable.
    """
    own, others = set(own), set(others)
    for name in sorted(environment):
        if name in own | _OF_THE_SYSTEM or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            continue
        if name in others:
            if environment[name]:
                print(f"note: {name} is a setting of another script and does nothing here", file=sys.stderr)
            continue
        close = [each for each in sorted(own | others) if distance(name, each) <= _allowed(each)]
        if close:
            meant = min(close, key=lambda each: (distance(name, each), each not in own))
            whose = "" if meant in own else " (of another script)"
            raise UserError(
                f"{name} is set, which is no setting here; did you mean {meant}{whose}? (else: unset {name})"
            )


def _allowed(name: str) -> int:
    return 2 if len(name) > 5 else 1 if len(name) > 2 else 0


def distance(one: str, other: str) -> int:
    """Letters to insert, remove or replace between two words (Levenshtein)."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, start=1):
        before, row[0] = row[0], number
        for place, opposite in enumerate(other, start=1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (letter != opposite))
    return row[-1]


if __name__ == "__main__":
    script, *names = sys.argv[1:]
    until = names.index("--") if "--" in names else len(names)
    run_command(script, lambda: check_environment(names[:until], names[until + 1 :]))

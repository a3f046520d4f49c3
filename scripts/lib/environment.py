"""Misspelt settings of the shell recipes: what the environment holds that only almost is one of a script's own names.

    python scripts/lib/environment.py SCRIPT NAME...

ends with one line and status 2 where a variable such as TEMPRATURE or STUDENT is set and NAME... has TEMPERATURES,
STUDENTS: it would have been ignored.
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


def check_environment(own: Iterable[str], environment: Mapping[str, str] = os.environ) -> None:
    """Refuses upper-case variables that are up to two letters (short names: one) away from one of `own`.

    Raises:
        UserError: there is such a variable.
    """
    own = sorted(own)
    for name in sorted(environment):
        if name in own or name in _OF_THE_SYSTEM or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            continue
        close = [each for each in own if distance(name, each) <= _allowed(each)]
        if close:
            meant = min(close, key=lambda each: distance(name, each))
            raise UserError(f"{name} is set, which is no setting here; did you mean {meant}? (else: unset {name})")


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
    run_command(sys.argv[1], lambda: check_environment(sys.argv[2:]))

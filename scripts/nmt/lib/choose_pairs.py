"""Prints the language pairs to train on, such as en-de,en-ru (the training scripts ask for them).

    python scripts/nmt/lib/choose_pairs.py DATA [PAIRS]

Without PAIRS: all pairs of the prepared folder DATA.
"""

import json
import sys
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from scripts.nmt.lib.lang_pair import parse_pairs
from scripts.nmt.lib.user_error import UserError, run_cli


def choose_pairs(data: Path, wanted: str) -> str:
    """Raises UserError if `data` is no prepared folder or lacks a pair of `wanted`."""
    try:
        held = json.loads((data / "manifest.json").read_text(encoding="utf-8"))["pairs"]
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"DATA='{data}' is no prepared folder (no manifest.json in it); make one with scripts/nmt/prepare.py"
        ) from None
    for pair in parse_pairs(wanted) if wanted else []:
        if str(pair) not in held:
            raise UserError(f"PAIRS: pair {pair} is not in {data}; it holds {', '.join(held)}")
    return wanted or ",".join(held)


if __name__ == "__main__":
    run_cli("training", lambda: print(choose_pairs(Path(sys.argv[1]), sys.argv[2])))

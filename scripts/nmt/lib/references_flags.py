"""The flags that say which reference translations a command looks at. Imports nothing heavy: --help is quick."""

import argparse

from scripts.nmt.lib.lang_pair import LangPair, parse_pairs
from scripts.nmt.lib.user_error import UserError
from vision_reference.analysis import flags


def add_references(parser: argparse.ArgumentParser, *, subset: str, max_tokens: int) -> None:
    """--data-bin, --lang-pair (as `pair`), --subset and --max-tokens, the last two with these defaults."""
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--data-bin", type=flags.path, required=True, metavar="D", help="folder of fairseq-preprocess")
    add("--lang-pair", dest="pair", type=_one_pair, required=True, metavar="PAIR", help="such as en-de")
    add("--subset", type=flags.filled_text, default=subset, help=f"split of the data {default}")
    tokens = f"source or target tokens in a batch {default}"
    add("--max-tokens", type=flags.count, default=max_tokens, metavar="N", help=tokens)


def _one_pair(text: str) -> LangPair:
    """An argparse type. Raises UserError where it is no pair, or several."""
    pair, *more = parse_pairs(flags.filled_text(text))
    if more:
        raise UserError(f"--lang-pair {text}: one pair at a time; name one")
    return pair

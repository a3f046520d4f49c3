"""Language pairs as fairseq writes them: `en-de` is English to German."""

import re
from typing import NamedTuple

from scripts.nmt.lib.user_error import UserError

_LANGUAGE = re.compile(r"[A-Za-z0-9]+(_[A-Za-z0-9]+)*")


class LangPair(NamedTuple):
    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.source}-{self.target}"


def parse_pairs(text: str) -> list[LangPair]:
    """`en-de,en-ru` -> [LangPair("en", "de"), LangPair("en", "ru")].

    Raises UserError for anything but distinct pairs of two different language codes.
    """
    pairs = []
    for item in text.split(","):
        languages = item.split("-")
        if len(languages) != 2 or not all(map(_LANGUAGE.fullmatch, languages)) or languages[0] == languages[1]:
            raise UserError(
                f"language pair '{item}' (in '{text}') is not of the form source-target; give pairs such as en-de,en-ru"
            )
        pair = LangPair(*languages)
        if pair in pairs:
            raise UserError(f"language pair '{item}' is named twice in '{text}'; name each pair once")
        pairs.append(pair)
    return pairs

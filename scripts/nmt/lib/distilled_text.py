"""Translations of training sources by experts, line for line, kept in blocks that survive a kill.

DIR.partial/plan.json              what is being made; another run's blocks are never taken for this one's
DIR.partial/blocks/<pair>/<n>.json translations of the n-th BLOCK_LINES lines
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fairseq_plugins.files import write_atomically
from scripts.nmt.lib.parallel_text import clean
from scripts.nmt.lib.translator import Translation
from scripts.nmt.lib.user_error import UserError

BLOCK_LINES = 1000
# A translation of more pieces than this many times the source's, and some for short sentences, has run away.
RUNAWAY_RATIO, RUNAWAY_PIECES = 2.5, 20


@dataclass
class Blocks:
    """The blocks of one pair's lines in a folder: translated ones are read, missing ones made."""

    folder: Path
    lines: list[str]
    begins: range = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.begins = range(0, len(self.lines), BLOCK_LINES)

    def _path(self, begin: int) -> Path:
        return self.folder / f"{begin // BLOCK_LINES:06d}.json"

    def missing(self) -> list[int]:
        """First lines of the blocks that are not translated yet."""
        return [begin for begin in self.begins if not self._path(begin).is_file()]

    def make(self, translate: Callable[[Iterator[list[str]]], Iterable[list[Translation]]]) -> Iterator[int]:
        """Translate what is missing, block by block; yields how many lines have come to the rest."""
        todo = self.missing()
        blocks = (self.lines[begin : begin + BLOCK_LINES] for begin in todo)
        for begin, found in zip(todo, translate(blocks), strict=True):
            expected = len(self.lines[begin : begin + BLOCK_LINES])
            if len(found) != expected:
                raise UserError(f"{len(found)} translations of {expected} lines: nothing of them is kept")
            rows = [[one.text, one.pieces, one.problem] for one in found]
            write_json(self._path(begin), rows)
            yield expected

    def read(self) -> list[Translation]:
        """One translation for each line. Raises UserError if a block is damaged."""
        found = []
        for begin in self.begins:
            path = self._path(begin)
            try:
                rows = [Translation(str(text), int(pieces), problem) for text, pieces, problem in _read_json(path)]
            except (OSError, ValueError, TypeError):
                rows = []
            if len(rows) != len(self.lines[begin : begin + BLOCK_LINES]):
                raise UserError(f"{path} is damaged; remove it and run the same command again")
            found += rows
        return found


def _read_json(path: Path) -> list:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: object) -> None:
    """Replace the file in one step that outlives a power cut."""
    write_atomically(path, json.dumps(content, ensure_ascii=False).encode())


@dataclass
class Counts:
    """What became of a pair's lines."""

    translated: int = 0
    empty: int = 0
    runaway: int = 0
    too_long: int = 0


def usable(translations: list[Translation], source_pieces: list[int]) -> tuple[list[str | None], Counts]:
    """The text of each translation that can be learned from, None for the others, and how many were which.

    Args:
        translations: N of them.
        source_pieces: N numbers of pieces of their sources.
    """
    counts = Counts()
    texts: list[str | None] = []
    for one, pieces in zip(translations, source_pieces, strict=True):
        text = clean(one.text)
        kind = "translated"
        if one.problem:
            kind = "too_long"
        elif not text:
            kind = "empty"
        elif one.is_cut or one.pieces > RUNAWAY_RATIO * pieces + RUNAWAY_PIECES:
            kind = "runaway"
        setattr(counts, kind, getattr(counts, kind) + 1)
        texts.append(text if kind == "translated" else None)
    return texts, counts

"""Reads aligned text files: line n of the source file is translated by line n of the target file.

Every reader of this folder yields rows (split, source, target) with split one of SPLITS, both texts on one line without
white space at the ends or doubled inside. A row with an empty side is a pair that is to be counted and left out.
"""

import gzip
import math
import zlib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, NamedTuple

from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.user_error import UserError

Row = tuple[str, str, str]
SPLITS = ("train", "valid", "test")

# Far above any sentence: a longer line means a binary or damaged file, and must not fill the memory.
MAX_LINE_BYTES = 1 << 20
_BYTE_ORDER_MARK = "\ufeff"


class Limits(NamedTuple):
    """Which training pairs are left out, as Moses' `clean-corpus-n` does: words are what white space separates.

    Attributes:
        max_length: most words of a side.
        max_ratio: most times that a side is as long as the other.
    """

    max_length: float = math.inf
    max_ratio: float = math.inf

    def allow(self, source: str, target: str) -> bool:
        """A pair of exactly the limits stays."""
        short, long = sorted((len(source.split()), len(target.split())))
        return long <= self.max_length and long <= self.max_ratio * short


NO_LIMITS = Limits()


def clean(text: str) -> str:
    """One line with single spaces: any stray line or paragraph separator inside would break the alignment later."""
    return " ".join(text.split())


def read_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """Yield the cleaned lines of a UTF-8 byte stream; only "\\n" ends a line.

    Raises UserError (with `name` and the line number) for invalid UTF-8, lines above MAX_LINE_BYTES, damaged gzip data.
    """
    number = 0
    while True:
        number += 1
        try:
            raw = stream.readline(MAX_LINE_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{name}, line {number}: cannot be read ({error}); is the file whole?") from None
        if not raw:
            return
        if len(raw) > MAX_LINE_BYTES:
            raise UserError(
                f"{name}, line {number}: longer than {MAX_LINE_BYTES:,} bytes; give plain text, one sentence a line"
            )
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name}, line {number}: byte {error.start + 1} is not valid UTF-8; convert the file to UTF-8"
            ) from None
        yield clean(text.removeprefix(_BYTE_ORDER_MARK) if number == 1 else text)


def find_files(folder: Path, prefix: str, pair: LangPair) -> tuple[Path, Path]:
    """The two files of one split, in any of the known layouts, each as it is or with `.gz`.

    Layouts, in this order: `<prefix>.<src>-<tgt>.<lang>`, the same named for the other direction, `<prefix>.<lang>`.
    Raises UserError where no layout has both files.
    """
    stems = (f"{prefix}.{pair}.", f"{prefix}.{pair.target}-{pair.source}.", f"{prefix}.")
    for stem in stems:
        found = [_plain_or_gz(folder / (stem + language)) for language in pair]
        if all(found):
            return found[0], found[1]
        if any(found):
            lacking = pair[found.index(None)]
            raise UserError(f"{folder}: {stem}{lacking}[.gz] is missing, though the other language's file is there")
    wanted = " nor ".join(f"{stem}{pair.source}[.gz]" for stem in stems)
    raise UserError(
        f"{folder}: no files for pair {pair}: neither {wanted} exists; check the folder, pairs and prefixes"
    )


def _plain_or_gz(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def read_split(split: str, files: tuple[Path, Path]) -> Iterator[Row]:
    """Yield the rows of one split.

    Training and validation pairs with an empty side are yielded (to be counted and left out); in the test set they are
    an error, because leaving them out would make scores incomparable. Raises UserError for that and for files of
    unequal length, naming file and line.
    """
    source_file, target_file = files
    with _open(source_file) as source_stream, _open(target_file) as target_stream:
        lines = zip_longest(read_lines(source_stream, str(source_file)), read_lines(target_stream, str(target_file)))
        for number, (source, target) in enumerate(lines, start=1):
            if source is None or target is None:
                short, long = files if source is None else files[::-1]
                raise UserError(
                    f"{short}: ends after line {number - 1}, but {long} goes on; "
                    "both files must have the same number of lines"
                )
            if split == "test" and not (source and target):
                empty = source_file if not source else target_file
                raise UserError(f"{empty}, line {number}: empty line in the test set; remove the pair from both files")
            yield split, source, target


def _open(path: Path) -> BinaryIO:
    try:
        return gzip.open(path) if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror})") from None


def read_file(path: Path) -> Iterator[str]:
    """The cleaned lines of one file, plain or gzip. Raises UserError as `read_lines` does."""
    with _open(path) as stream:
        yield from read_lines(stream, str(path))


def read_pair(source: Path, target: Path) -> tuple[list[str], list[str]]:
    """The cleaned lines of two aligned files, plain or gzip.

    Raises UserError for unreadable files, files of unequal length, empty files and an empty line in either: a pair with
    an empty side makes scores incomparable.
    """
    rows = list(read_split("test", (source, target)))
    if not rows:
        raise UserError(f"{source} and {target} hold no sentence; give at least one")
    _, sources, targets = zip(*rows, strict=True)
    return list(sources), list(targets)

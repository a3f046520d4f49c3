"""Data of fairseq-preprocess, looked over before fairseq stumbles over it in the middle of training."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from fairseq.data.indexed_dataset import _code_to_dtype

from ..errors import UserError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQ")  # magic, version, code of the type of tokens, number of sentences
_BYTES_OF_A_SENTENCE = 4 + 8  # its length and its place


@contextmanager
def telling_what_is_wrong_with(data: str) -> Iterator[None]:
    """While open, what fairseq cannot read of dictionaries and data is a `UserError` that names the folder.

    Args:
        data: the folder, or several joined by ":".
    """
    try:
        yield
    except FileNotFoundError as problem:
        raise UserError(f"{problem}; give a folder written by fairseq-preprocess") from None
    except Exception as problem:  # files of any content and pairs of any name make it stumble in any way
        reason = " ".join(str(problem).split()) or type(problem).__name__
        kind = f"{type(problem).__name__}: " if isinstance(problem, (KeyError, AssertionError)) else ""
        raise UserError(
            f"cannot read the data in {data} ({kind}{reason}); give a folder written by fairseq-preprocess"
        ) from None


def check_binarized(folders: list[str], split: str, pairs: list[str]) -> None:
    """Compares the files of a split with each other: every `.bin` has as many bytes as its `.idx` says.

    Files of other formats than fairseq-preprocess's default (`mmap`) are left to fairseq.

    Raises:
        UserError: one is cut short or damaged.
    """
    for folder in folders:
        for pair in pairs:
            languages = pair.split("-")
            names = "|".join(re.escape("-".join(order)) for order in (languages, languages[::-1]))
            wanted = re.compile(rf"{re.escape(split)}\d*\.({names})\.({'|'.join(map(re.escape, languages))})\.idx")
            for index in sorted(Path(folder).glob("*.idx")):
                if wanted.fullmatch(index.name):
                    _check_file(index)


def _check_file(index: Path) -> None:
    data = index.with_suffix(".bin")
    try:
        with index.open("rb") as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                raise _damaged(index, len(header), _HEADER.size)
            magic, _, code, sentences = _HEADER.unpack(header)
            if magic != _MAGIC:
                return
            size, expected = index.stat().st_size, _HEADER.size + sentences * _BYTES_OF_A_SENTENCE
            if code not in _code_to_dtype or size != expected:
                raise _damaged(index, size, expected)
            tokens = int(np.fromfile(file, dtype="<i4", count=sentences).sum(dtype=np.int64))
        expected = tokens * np.dtype(_code_to_dtype[code]).itemsize
        if data.stat().st_size != expected:
            raise _damaged(data, data.stat().st_size, expected)
    except OSError as problem:
        raise UserError(f"cannot read {problem.filename or index} ({problem.strerror})") from None


def _damaged(path: Path, found: int, expected: int) -> UserError:
    return UserError(
        f"{path} has {found:,} bytes where {expected:,} belong: it is cut short or damaged; run fairseq-preprocess "
        "again"
    )

"""A student's dictionaries: finds their files, and compares a teacher's with the student's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import zip_longest

from fairseq.data import Dictionary

from ..errors import UserError


@dataclass(frozen=True)
class Vocabulary:
    """The student's dictionaries for one language pair as files, before language tokens are appended to them."""

    source_lang: str
    target_lang: str
    source_path: str
    target_path: str


def load_dictionary(path: str) -> Dictionary:
    """Raises UserError where the file is missing or not in fairseq's `symbol count` format."""
    try:
        return Dictionary.load(path)
    except FileNotFoundError:
        raise UserError(f"no dictionary at {path}: give a folder written by fairseq-preprocess") from None
    except (ValueError, RuntimeError) as problem:
        raise UserError(f"cannot read the dictionary {path}: {problem}") from None


def check_identical(student: Dictionary, student_path: str, teacher: Dictionary, teacher_path: str) -> None:
    """Distillation compares distributions entry by entry, so both dictionaries must list the same words in one order.

    Raises:
        UserError: names the first entry that differs and both files.
    """
    for index, (ours, theirs) in enumerate(zip_longest(student.symbols, teacher.symbols)):
        if ours != theirs:
            ours, theirs = ("nothing" if word is None else repr(word) for word in (ours, theirs))
            raise UserError(
                f"vocabularies differ: entry {index} is {ours} in the student's {student_path} but {theirs} in the "
                f"teacher's {teacher_path}; prepare both with one dictionary (fairseq-preprocess --srcdict, --tgtdict)"
            )


def hash_vocabulary(source_path: str, target_path: str) -> dict[str, str]:
    """SHA-256 of the entries of both dictionaries in their order; their counts do not matter."""
    symbols = {"source": load_dictionary(source_path).symbols, "target": load_dictionary(target_path).symbols}
    return {side: hashlib.sha256("\n".join(entries).encode()).hexdigest() for side, entries in symbols.items()}

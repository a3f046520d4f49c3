"""A store of a teacher's answers being written, by any number of processes, each of which may be killed at any moment.

Stores of soft labels and of a translation expert's outputs (``fairseq_plugins/teachers/store.py``) are written by it.
Their files are laid out in full at the beginning, beside ``plan.json`` (the manifest but for checksums and what only
the whole tells) and a lock. Every process writes whole blocks into them and, once a block's bytes are on disk, a line
into its journal; a block without a line counts as missing. The manifest comes last; then plan, journals and lock go.
"""

import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vision_reference.errors import UserError
from vision_reference.files import (
    MANIFEST,
    journal_line,
    read_journal,
    seal,
    share_lock,
    try_lock,
    unseal,
    write_atomically,
    write_through,
)

PLAN, _JOURNALS, _LOCKS = "plan.json", "journal*.jsonl", "lock*"  # earlier versions had other ends of these names
# What two runs must have in common to work on one store; versions and places of files may differ.
_SAME = ("format", "teacher", "data", "pixels", "views", "labels", "block")


class Writer(ExitStack):
    """The hand of one process on a store. Number 0 begins it, goes on with it or finds it whole; then others may join.

    A context manager; ``close`` lets go of the files, and another run may go on with what is missing.

    Args:
        folder: absent, empty, or of this store.
        plan: the manifest but for checksums and what ``finish`` adds.
        blocks: of each block the bytes it takes of each file that is written block by block, from 0 on without gaps.
        fixed: contents of files that are known from the beginning.
        number: of this process among those that write.
        flag: that gave the folder, for what is told to the user.

    Attributes:
        plan: of the run that began the store.
        done: numbers of the blocks that are on disk, as far as this process knows; number 0 knows what came before it.
        whole: nothing is left to do.

    Raises:
        UserError: the folder holds something else, or another run is writing there.
        OSError: the disk is full, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        plan: dict,
        blocks: Sequence[Mapping[str, slice]],
        fixed: Mapping[str, bytes] | None = None,
        *,
        number: int = 0,
        flag: str = "--output-dir",
    ) -> None:
        super().__init__()
        self.folder, self.plan, self.done = folder, plan, set[int]()
        self._blocks, self._fixed, self._flag = blocks, fixed or {}, flag
        self._files: dict[str, BinaryIO] = {}
        try:
            if number:
                self._lock(first=False)
            self.whole = number == 0 and self._begin()
            if not self.whole:
                self._files = {name: self._open(name, "r+b") for name in blocks[0]}
                self._journal = self._open(_JOURNALS.replace("*", f"-{number}"), "ab")
        except BaseException:
            self.close()
            raise

    def _lock(self, *, first: bool) -> None:
        """All processes of a run share the lock; the first had it alone before, so that no other run has it."""
        lock = self._open(_LOCKS.replace("*", ""), "ab")
        if not ((not first or try_lock(lock)) and share_lock(lock)):
            raise UserError(f"{self.folder} is being stored by another run: wait for it, or end it")

    def _open(self, name: str, mode: str) -> BinaryIO:
        return self.enter_context((self.folder / name).open(mode, buffering=0))  # type: ignore[return-value]

    def _begin(self) -> bool:
        """Whether the store is whole already; what is missing in the folder is made, what is there is kept."""
        if not (self.folder / MANIFEST).is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            own = [PLAN, _JOURNALS, *self._blocks[0], *self._fixed] if (self.folder / PLAN).exists() else []
            for path in self.folder.iterdir():
                if not any(path.match(pattern) for pattern in (*own, _LOCKS, "*.partial", "unreadable_*")):
                    raise UserError(f"{self.folder} holds other files ({path.name}); give a new or empty {self._flag}")
            self._lock(first=True)
        found = read_plan(self.folder, self.plan["format"], self._flag)
        if found and (difference := _difference(found, {name: self.plan.get(name) for name in _SAME})):
            raise UserError(
                f"{self.folder} holds a store with {difference}; give another {self._flag}, or delete this one"
            )
        if (self.folder / MANIFEST).is_file():
            self._clean()
            return True
        if not found:
            write_atomically(self.folder / PLAN, seal(self.plan))
        self.plan = found or self.plan
        self._lay_out()
        return False

    def _lay_out(self) -> None:
        """Files in full size, so that a full disk shows before hours of work; what they hold is kept.

        Blocks that an earlier run wrote count if they read back as they were written.
        """
        for name, part in self._blocks[-1].items():
            with (self.folder / name).open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, part.stop)
        for name, content in self._fixed.items():
            write_atomically(self.folder / name, content)
        files = {name: np.memmap(self.folder / name, np.uint8, "r") for name in self._blocks[0]}
        good = []
        for entry in self._journals():
            parts = self._blocks[entry["block"]]
            if entry.get("checksums") == {name: zlib.crc32(files[name][part].data) for name, part in parts.items()}:
                good.append(entry)
        self.done = {entry["block"] for entry in good}
        own = _JOURNALS.replace("*", "-0")
        write_atomically(self.folder / own, b"".join(map(journal_line, good)))
        for journal in self.folder.glob(_JOURNALS):
            if journal.name != own:
                journal.unlink()

    def _journals(self) -> Iterator[dict]:
        for journal in sorted(self.folder.glob(_JOURNALS)):
            yield from read_journal(journal)

    def write(self, block: int, contents: Mapping[str, bytes], **more: object) -> None:
        """Put a block, by its number, in its place, and say so, and ``more`` about it, once it is on disk."""
        for name, content in contents.items():
            self._files[name].seek(self._blocks[block][name].start)
            write_through(self._files[name], content)
        checksums = {name: zlib.crc32(content) for name, content in contents.items()}
        write_through(self._journal, journal_line({"block": block, "checksums": checksums, **more}))
        self.done.add(block)

    def entries(self) -> list[dict]:
        """What was written about each block, in their order; the store has all."""
        entries = {entry["block"]: entry for entry in self._journals()}
        return [entries[number] for number in range(len(self._blocks))]

    def finish(self, **more: object) -> None:
        """Write the manifest, with ``more`` in it, of a store that has all blocks, and clean up."""
        checksums = {name: [entry["checksums"][name] for entry in self.entries()] for name in self._blocks[0]}
        checksums |= {name: [zlib.crc32(content)] for name, content in self._fixed.items()}
        write_atomically(self.folder / MANIFEST, seal({**self.plan, "checksums": checksums, **more}))
        self._clean()

    def _clean(self) -> None:
        """Remove what only the making of a finished store needed, and what a kill left half-written."""
        for pattern in (PLAN, _JOURNALS, _LOCKS, ".*.partial"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)


def read_plan(folder: Path, kind: str, flag: str = "--output-dir") -> dict:
    """What the store in ``folder``, finished or not, is made from: its manifest or plan; empty where there is none.

    Args:
        kind: the ``format`` it has to have.
        flag: that gave the folder.

    Raises:
        UserError: it is not as it was written, or of another format.
    """
    for path in (folder / MANIFEST, folder / PLAN):
        if path.is_file():
            try:
                return unseal(path, kind)
            except ValueError as error:
                raise UserError(f"{folder}: {error}; give another {flag}, or delete this one") from None
    return {}


def _difference(found: object, wanted: object, name: str = "") -> str:
    """The first entry in which two plans differ, as "pixels.preset cub, not imagenet"; "" where none does.

    What stores of earlier versions did not record (class names) is passed over.
    """
    if isinstance(found, dict) and isinstance(wanted, dict):
        parts = (_difference(found[key], wanted[key], f"{name}.{key}") for key in wanted if key in found)
        return next(filter(None, parts), "")
    values = re.sub(r"\b(\w{12})\w{52}\b", r"\1", f"{found}, not {wanted}")  # the beginning of hashes
    return "" if found == wanted else f"{name[1:]} {values}"

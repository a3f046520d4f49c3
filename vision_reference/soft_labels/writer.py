"""A store of soft labels being written, by any number of processes, each of which may be killed at any moment.

Both files are laid out in full at the beginning, beside ``plan.json`` (the manifest but for checksums and errors) and a
lock. Every process writes whole blocks into them and, once a block's bytes are on disk, a line into its journal; a
block without a line counts as missing. The manifest comes last; then plan, journals and lock go.
"""

import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vision_reference.errors import UserError
from vision_reference.files import (
    journal_line,
    read_journal,
    seal,
    share_lock,
    try_lock,
    write_atomically,
    write_through,
)
from vision_reference.soft_labels import store
from vision_reference.soft_labels.store import FILES, MANIFEST, PLAN, Block

_JOURNALS, _LOCKS = "journal-*.jsonl", "lock*"  # earlier versions had a lock for each process
# What two runs must have in common to work on one store; versions may differ.
_SAME = ("format", "teacher", "data", "pixels", "views", "labels", "block")


class Writer(ExitStack):
    """The hand of one process on a store. Number 0 begins it, goes on with it or finds it whole; then others may join.

    A context manager; ``close`` lets go of the files, and another run may go on with what is missing.

    Args:
        folder: absent, empty, or of this store.
        plan: the manifest but for checksums and errors.
        number: of this process among those that write.

    Attributes:
        blocks: all of them.
        done: numbers of the blocks that are on disk; of number 0 only.
        whole: nothing is left to do.

    Raises:
        UserError: the folder holds something else, or another run is writing there.
        OSError: the disk is full, or the folder cannot be written.
    """

    def __init__(self, folder: Path, plan: dict, number: int = 0) -> None:
        super().__init__()
        self.folder, self.plan, self.blocks = folder, plan, store.all_blocks(plan)
        self.done: set[int] = set()
        self._files: list[BinaryIO] = []
        try:
            if number:
                self._lock(first=False)
            self.whole = number == 0 and self._begin()
            if not self.whole:
                self._files = [self._open(name, "r+b") for name in FILES]
                self._files.append(self._open(_JOURNALS.replace("*", str(number)), "ab"))
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
            own = [PLAN, _JOURNALS, *FILES] if (self.folder / PLAN).exists() else []
            for path in self.folder.iterdir():
                if not any(path.match(pattern) for pattern in (*own, _LOCKS, "*.partial", "unreadable_*")):
                    raise UserError(f"{self.folder} holds other files ({path.name}); give a new or empty --output-dir")
            self._lock(first=True)
        found = store.read_plan(self.folder)
        if found and (difference := _difference(found, {name: self.plan[name] for name in _SAME})):
            raise UserError(
                f"{self.folder} holds a store with {difference}; give another --output-dir, or delete this one"
            )
        if (self.folder / MANIFEST).is_file():
            _clean(self.folder)
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
        for name, size in store.sizes(self.plan).items():
            with (self.folder / name).open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        files = store.open_files(self.folder, self.plan)
        good = [
            one for one in self._journals() if store.checksums(files, self.blocks[one["block"]]) == one["checksums"]
        ]
        self.done = {entry["block"] for entry in good}
        own = _JOURNALS.replace("*", "0")
        write_atomically(self.folder / own, b"".join(map(journal_line, good)))
        for journal in self.folder.glob(_JOURNALS):
            if journal.name != own:
                journal.unlink()

    def _journals(self) -> Iterator[dict]:
        for journal in sorted(self.folder.glob(_JOURNALS)):
            yield from read_journal(journal)

    def write(self, block: Block, records: dict[str, np.ndarray], errors: np.ndarray) -> None:
        """Put a block in its place, and say so once it is on disk.

        Args:
            records: (block's images,) of either file.
            errors: (rows, temperatures) sums over the block: ``codec.error_sums``.
        """
        checksums = {}
        *files, journal = self._files
        for name, file in zip(FILES, files, strict=True):
            content = records[name].tobytes()
            file.seek((block.view * self.plan["data"]["images"] + block.start) * records[name].itemsize)
            write_through(file, content)
            checksums[name] = zlib.crc32(content)
        write_through(journal, journal_line({"block": block.number, "checksums": checksums, "errors": errors.tolist()}))

    def finish(self, rows: Iterable[str]) -> None:
        """Write the manifest of a store that has all blocks, ``rows`` naming those of its errors, and clean up."""
        entries = {entry["block"]: entry for entry in self._journals()}
        ordered = [entries[block.number] for block in self.blocks]
        checksums = {name: [entry["checksums"][name] for entry in ordered] for name in FILES}
        errors = np.sum([entry["errors"] for entry in ordered], axis=0) / sum(b.stop - b.start for b in self.blocks)
        manifest = {**self.plan, "checksums": checksums, "errors": dict(zip(rows, errors.tolist(), strict=True))}
        write_atomically(self.folder / MANIFEST, seal(manifest))
        _clean(self.folder)


def _clean(folder: Path) -> None:
    """Remove what only the making of a finished store needed, and what a kill left half-written."""
    for pattern in (PLAN, _JOURNALS, _LOCKS, ".*.partial"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _difference(found: object, wanted: object, name: str = "") -> str:
    """The first entry in which two plans differ, as "pixels.preset cub, not imagenet"; "" where none does.

    What stores of earlier versions did not record (class names) is passed over.
    """
    if isinstance(found, dict) and isinstance(wanted, dict):
        parts = (_difference(found[key], wanted[key], f"{name}.{key}") for key in wanted if key in found)
        return next(filter(None, parts), "")
    brief = [value[:12] if isinstance(value, str) and len(value) == 64 else value for value in (found, wanted)]
    return "" if found == wanted else f"{name[1:]} {brief[0]}, not {brief[1]}"

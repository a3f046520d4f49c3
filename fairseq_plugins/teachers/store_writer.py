"""A store of teacher outputs being written, by a process that may be killed at any moment.

Both files are laid out in full at the beginning, beside `plan.json` (the manifest but for the checksums) and a lock.
Whole blocks are written into them and, once a block's bytes are on disk, a line into a journal; a block without a line
counts as missing. The manifest comes last; then plan, journal and lock go.
"""

from __future__ import annotations

import os
import re
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import journal_line, lock_file, read_journal, seal, write_atomically, write_through, writing_to
from .store import LABELS, MANIFEST, OFFSETS, PLAN, Block, all_blocks, read_plan, record_type

_JOURNAL, _LOCK = "journal.jsonl", "lock"
# What two runs must have in common to work on one store; versions and places of files may differ.
_SAME = ("format", "teacher", "data", "labels", "block")


class Writer(ExitStack):
    """The hand of one process on a store: begins it, goes on with it, or finds it whole.

    A context manager; `close` lets go of the files, and another run may go on with what is missing.

    Args:
        folder: absent, empty, or of this store.
        plan: the manifest but for the checksums.
        offsets: (N + 1,) int64, what offsets.bin holds.

    Attributes:
        blocks: all of them.
        done: checksum of each block that is on disk, by number.
        whole: nothing is left to do.

    Raises:
        UserError: the folder holds something else, another process is writing there, or the disk is full.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], offsets: np.ndarray) -> None:
        super().__init__()
        self.folder, self.plan, self.offsets = folder, plan, offsets
        self.blocks = all_blocks(offsets, plan["block"])
        self.done: dict[int, int] = {}
        self._type = record_type(plan)
        try:
            with writing_to(folder, "--output"):
                self.whole = self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> bool:
        """Whether the store is whole already; what is missing in the folder is made, what is there is kept."""
        if not (self.folder / MANIFEST).is_file():
            self._lock()
        found = read_plan(self.folder)
        if found and (difference := _difference(found, {name: self.plan[name] for name in _SAME})):
            raise UserError(f"{self.folder} holds outputs with {difference}: choose another --output, or remove it")
        if (self.folder / MANIFEST).is_file():
            self._clean()
            return True
        if not found:
            write_atomically(self.folder / PLAN, seal(self.plan))
        self._lay_out()
        return False

    def _lock(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        own = {_LOCK, *([PLAN, _JOURNAL, LABELS, OFFSETS] if (self.folder / PLAN).exists() else [])}
        for path in self.folder.iterdir():
            if path.name not in own and not path.name.endswith(".partial"):
                raise UserError(f"{self.folder} holds other files ({path.name}): give a new or empty --output")
        handle = lock_file(self.folder / _LOCK)
        if handle is None:
            raise UserError(f"{self.folder} is being stored by another process: wait for it, or end it")
        self.callback(os.close, handle)

    def _lay_out(self) -> None:
        """Files in full size, so that a full disk shows before hours of work; what they hold is kept.

        Blocks that an earlier run wrote count if they read back as they were written.
        """
        labels, journal = self.folder / LABELS, self.folder / _JOURNAL
        handle = os.open(labels, os.O_RDWR | os.O_CREAT, 0o666)
        self._labels = self.enter_context(os.fdopen(handle, "r+b", buffering=0))
        os.posix_fallocate(handle, 0, int(self.offsets[-1]) * self._type.itemsize)
        write_atomically(self.folder / OFFSETS, self.offsets.tobytes())
        there = np.memmap(labels, self._type, mode="r", shape=(int(self.offsets[-1]),))
        good = [one for one in read_journal(journal) if self.blocks[one["block"]].checksum(there) == one["checksum"]]
        self.done = {one["block"]: one["checksum"] for one in good}
        write_atomically(journal, b"".join(map(journal_line, good)))
        self._journal = self.enter_context(journal.open("ab", buffering=0))

    def write(self, block: Block, records: np.ndarray) -> None:
        """Put a block's records, in the order of its sentences, in their place, and say so once they are on disk."""
        content = records.astype(self._type, copy=False).tobytes()
        checksum = zlib.crc32(content)
        with writing_to(self.folder, "--output"):
            self._labels.seek(block.start * self._type.itemsize)
            write_through(self._labels, content)
            write_through(self._journal, journal_line({"block": block.number, "checksum": checksum}))
        self.done[block.number] = checksum

    def finish(self) -> None:
        """Write the manifest of a store that has all blocks, and remove what only its making needed."""
        checksums = {
            LABELS: [self.done[block.number] for block in self.blocks],
            OFFSETS: [zlib.crc32(self.offsets.data)],
        }
        with writing_to(self.folder, "--output"):
            write_atomically(self.folder / MANIFEST, seal({**self.plan, "checksums": checksums}))
            self._clean()

    def _clean(self) -> None:
        for path in (*(self.folder / name for name in (PLAN, _JOURNAL, _LOCK)), *self.folder.glob(".*.partial")):
            path.unlink(missing_ok=True)


def _difference(found: Any, wanted: Any, name: str = "") -> str:
    """The first entry in which two plans differ, as "labels.top_k 2, not 8"; "" where none does."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        parts = (_difference(found.get(key), wanted[key], f"{name}.{key}") for key in wanted)
        return next(filter(None, parts), "")
    values = re.sub(r"\b(\w{12})\w{52}\b", r"\1", f"{found}, not {wanted}")  # the beginning of hashes
    return "" if found == wanted else f"{name[1:]} {values}"

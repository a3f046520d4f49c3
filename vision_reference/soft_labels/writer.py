"""A store of soft labels being written, by any number of processes, each of which may be killed at any moment.

Both files are laid out in full at the beginning, beside ``plan.json`` (the manifest but for checksums and errors) and
locks. Every process writes whole blocks into them and, once a block's bytes are on disk, a line into its journal; a
block without a line counts as missing. The manifest comes last; then plan, journals and locks go.
"""

import os
import zlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vision_reference.errors import UserError
from vision_reference.files import atomic_file, journal_line, read_journal, seal, try_lock, unseal, write_through
from vision_reference.soft_labels.store import FILES, MANIFEST, Block, all_blocks, read_manifest, record_types

_PLAN, _JOURNALS, _LOCKS = "plan.json", "journal-*.jsonl", "lock-*"
# What two runs must have in common to work on one store; versions may differ.
_SAME = ("format", "teacher", "data", "pixels", "views", "labels", "block")


class Writer:
    """The hand of one process on a store. Number 0 begins it, goes on with it or finds it whole; then others may join.

    A context manager.

    Args:
        folder: absent, empty, or of this store.
        plan: the manifest but for checksums and errors.
        number: of this process among those that write.

    Attributes:
        blocks: all of them.
        done: what the journals say of each block that is on disk, by number; of number 0 only.
        whole: nothing is left to do.

    Raises:
        UserError: the folder holds something else, or another run is writing there.
        OSError: the disk is full, or the folder cannot be written.
    """

    def __init__(self, folder: Path, plan: dict, number: int = 0) -> None:
        self.folder, self.plan, self.number = folder, plan, number
        self.blocks = all_blocks(plan)
        self.done: dict[int, dict] = {}
        self.whole = False
        self._types = record_types(plan)
        self._files: list[BinaryIO] = []
        try:
            if number == 0:
                self.whole = self._begin()
            else:
                self._lock()
            if not self.whole:
                self._files += [(folder / name).open("r+b", buffering=0) for name in FILES]
                self._files.append((folder / _JOURNALS.replace("*", str(number))).open("ab", buffering=0))
        except BaseException:
            self.close()
            raise

    def _begin(self) -> bool:
        """Whether the store is whole already; what is missing in the folder is made, what is there is kept."""
        if not (self.folder / MANIFEST).is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._refuse_foreign()
            self._lock()
        found = read_plan(self.folder)
        if found and (difference := _difference(found, {name: self.plan[name] for name in _SAME}, "")):
            raise UserError(
                f"{self.folder} holds a store with {difference}; give another --output-dir, or delete this one"
            )
        if (self.folder / MANIFEST).is_file():
            clean(self.folder)
            return True
        if found:
            self.plan = found
        else:
            _replace(self.folder / _PLAN, seal(self.plan))
        self._lay_out()
        return False

    def _refuse_foreign(self) -> None:
        own = [_PLAN, _JOURNALS, *FILES] if (self.folder / _PLAN).exists() else []
        for path in self.folder.iterdir():
            if not any(path.match(pattern) for pattern in (*own, _LOCKS, "*.partial", "unreadable_*")):
                raise UserError(f"{self.folder} holds other files ({path.name}); give a new or empty --output-dir")

    def _lock(self) -> None:
        """This process's lock and, for number 0, a look that no other process of an earlier run holds one."""
        own = self.folder / _LOCKS.replace("*", str(self.number))
        others = set(self.folder.glob(_LOCKS)) - {own} if self.number == 0 else set()
        self._files.append(own.open("ab", buffering=0))
        free = try_lock(self._files[0])
        for path in others:
            with path.open("ab") as other:
                free = free and try_lock(other)
        if not free:
            raise UserError(f"{self.folder} is being stored by another run: wait for it, or end it")

    def _lay_out(self) -> None:
        """Files in full size, so that a full disk shows before hours of work; what they hold is kept.

        Blocks that an earlier run wrote count if they read back as they were written.
        """
        for name, size in sizes(self.plan).items():
            with (self.folder / name).open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        journals = sorted(self.folder.glob(_JOURNALS))
        for entry in chain.from_iterable(map(read_journal, journals)):
            if self._read_back(self.blocks[entry["block"]]) == entry["checksums"]:
                self.done[entry["block"]] = entry
        _replace(self.folder / _JOURNALS.replace("*", "0"), b"".join(map(journal_line, self.done.values())))
        for journal in journals:
            if journal.name != _JOURNALS.replace("*", "0"):
                journal.unlink()

    def _place(self, name: str, block: Block) -> int:
        return (block.view * self.plan["data"]["images"] + block.start) * self._types[name].itemsize

    def _read_back(self, block: Block) -> dict[str, int]:
        checksums = {}
        for name in FILES:
            with (self.folder / name).open("rb") as file:
                file.seek(self._place(name, block))
                checksums[name] = zlib.crc32(file.read((block.stop - block.start) * self._types[name].itemsize))
        return checksums

    def write(self, block: Block, records: dict[str, np.ndarray], errors: np.ndarray) -> None:
        """Put a block in its place, and say so once it is on disk.

        Args:
            records: (block's images,) of either file.
            errors: (rows, temperatures) sums over the block: ``codec.error_sums``.
        """
        checksums = {}
        *files, journal = self._files[1:]
        for name, file in zip(FILES, files, strict=True):
            content = records[name].tobytes()
            file.seek(self._place(name, block))
            write_through(file, content)
            checksums[name] = zlib.crc32(content)
        write_through(journal, journal_line({"block": block.number, "checksums": checksums, "errors": errors.tolist()}))

    def finish(self, rows: Sequence[str]) -> None:
        """Write the manifest of a store that has all blocks, and remove what only its making needed.

        Args:
            rows: names of the rows of the errors.
        """
        entries = {}
        for journal in self.folder.glob(_JOURNALS):
            entries |= {entry["block"]: entry for entry in read_journal(journal)}
        ordered = [entries[block.number] for block in self.blocks]
        checksums = {name: [entry["checksums"][name] for entry in ordered] for name in FILES}
        errors = sum(np.array(entry["errors"]) for entry in ordered) / sum(b.stop - b.start for b in self.blocks)
        manifest = {**self.plan, "checksums": checksums, "errors": dict(zip(rows, errors.tolist(), strict=True))}
        _replace(self.folder / MANIFEST, seal(manifest))
        clean(self.folder)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; another run may go on with what is missing."""
        for file in self._files:
            file.close()


def read_plan(folder: Path) -> dict | None:
    """What the store in ``folder``, finished or not, is made from; None where there is none.

    Raises:
        UserError: a damaged manifest or plan.
    """
    if (folder / MANIFEST).is_file():
        return read_manifest(folder)
    try:
        return unseal(folder / _PLAN)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise UserError(f"{folder / _PLAN} is damaged; delete {folder} and store anew") from None


def clean(folder: Path) -> None:
    """Remove what only the making of a finished store needed, and what a kill left half-written."""
    for pattern in (_PLAN, _JOURNALS, _LOCKS, ".*.partial"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def sizes(plan: dict) -> dict[str, int]:
    """Bytes of both files of a store."""
    rows = plan["views"]["count"] * plan["data"]["images"]
    return {name: rows * kind.itemsize for name, kind in record_types(plan).items()}


def _replace(path: Path, content: bytes) -> None:
    with atomic_file(path) as file:
        file.write(content)


def _difference(found: object, wanted: object, name: str) -> str:
    """The first entry in which two plans differ, as "pixels.preset cub, not imagenet"; "" where none does.

    What stores of earlier versions did not record (class names) is passed over.
    """
    if isinstance(found, dict) and isinstance(wanted, dict):
        parts = (_difference(found[key], wanted[key], f"{name}.{key}") for key in wanted if key in found)
        return next(filter(None, parts), "")
    brief = [value[:12] if isinstance(value, str) and len(value) == 64 else value for value in (found, wanted)]
    return "" if found == wanted else f"{name[1:]} {brief[0]}, not {brief[1]}"

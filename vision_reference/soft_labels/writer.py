"""A store of soft labels being written, by any number of processes, each of which may be killed at any moment.

Both files are laid out in full at the beginning. Every process writes whole blocks into them and, once a block's bytes
are on disk, a line into its journal; a block without a line counts as not there. The manifest comes last.
"""

import errno
import json
import os
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vision_reference.errors import UserError
from vision_reference.files import atomic_file, sync_folder
from vision_reference.soft_labels.store import (
    FILES,
    MANIFEST,
    Block,
    all_blocks,
    manifest_hash,
    read_manifest,
    record_types,
)

_PLAN = "plan.json"
_JOURNALS = "journal-*.jsonl"


def read_plan(folder: Path) -> dict | None:
    """What the store in ``folder``, finished or not, is made from; None where there is none.

    Raises:
        UserError: a damaged manifest or plan.
    """
    if (folder / MANIFEST).is_file():
        return read_manifest(folder)
    if not (folder / _PLAN).is_file():
        return None
    try:
        return json.loads((folder / _PLAN).read_bytes())
    except ValueError:
        raise UserError(f"{folder / _PLAN} is damaged; delete {folder} and store anew") from None


def begin(folder: Path, plan: dict) -> None:
    """Lay out a new store, or find that the one that is there follows the same plan. Called by one process.

    Args:
        folder: exists; empty, or of this store, finished or not.
        plan: the manifest but for checksums and errors; ``versions`` may differ.

    Raises:
        UserError: the folder holds something else or the disk is too small.
    """
    if found := read_plan(folder):
        for name in ("format", "teacher", "data", "pixels", "views", "labels", "block"):
            if found[name] != plan[name]:
                raise UserError(
                    f"{folder} holds a store with {_difference(found[name], plan[name], name)}; give another "
                    "--output-dir, or delete this one"
                )
        return
    foreign = [path.name for path in folder.iterdir() if path.name not in FILES and not _is_note(path.name)]
    if foreign:
        raise UserError(f"{folder} holds other files ({foreign[0]}); give a new or empty --output-dir")
    needed = sizes(plan)
    present = sum((folder / name).stat().st_size for name in FILES if (folder / name).is_file())
    if sum(needed.values()) > shutil.disk_usage(folder).free + present:
        raise UserError(
            f"{folder} has {readable(shutil.disk_usage(folder).free)} left, the store needs "
            f"{readable(sum(needed.values()))}; store fewer --views, give --top-k or another --output-dir"
        )
    clean(folder)  # journals without a plan speak of another store
    for name, size in needed.items():
        with open(folder / name, "wb") as file, refusing_full_disk(folder):
            os.posix_fallocate(file.fileno(), 0, size)
    sync_folder(folder)
    with atomic_file(folder / _PLAN) as file:
        file.write(json.dumps(plan, indent=1).encode())


class Writer:
    """One process's hand on a store that ``begin`` has laid out.

    Args:
        folder: the store.
        rank: number of the process; names its journal.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder = folder
        self.plan = json.loads((folder / _PLAN).read_bytes())
        self.types = _types(self.plan)
        self._files = {name: os.open(folder / name, os.O_RDWR) for name in FILES}
        journal = folder / _JOURNALS.replace("*", str(rank))
        self._journal = os.open(journal, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.write(self._journal, b"\n")  # ends a line that a kill has cut short
        sync_folder(folder)

    def write(self, block: Block, records: dict[str, np.ndarray], errors: np.ndarray) -> None:
        """Put a block in its place, and say so once it is on disk.

        Args:
            records: (block's images,) of either file.
            errors: (rows, temperatures) sums over the block: ``soft_label_codec.error_sums``.
        """
        checksums = {}
        with refusing_full_disk(self.folder):
            for name, array in records.items():
                data = array.tobytes()
                start = (block.view * self.plan["data"]["images"] + block.start) * self.types[name].itemsize
                if os.pwrite(self._files[name], data, start) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(self._files[name])
                checksums[name] = zlib.crc32(data)
            line = {"block": block.number, "checksums": checksums, "errors": errors.tolist()}
            os.write(self._journal, json.dumps(line).encode() + b"\n")
            os.fsync(self._journal)

    def close(self) -> None:
        """Let go of the files."""
        for handle in (*self._files.values(), self._journal):
            os.close(handle)


def done_blocks(folder: Path) -> dict[int, dict]:
    """Journal entries of all processes, by number of block."""
    entries = {}
    for journal in folder.glob(_JOURNALS):
        for line in journal.read_bytes().splitlines():
            try:
                entry = json.loads(line)
                entries[entry["block"]] = entry
            except (ValueError, KeyError, TypeError):  # cut short by a kill
                continue
    return entries


def finish(folder: Path, rows: Sequence[str]) -> None:
    """Write the manifest of a store that has all blocks, and remove what only its making needed.

    Args:
        rows: names of the rows of the errors.
    """
    plan = json.loads((folder / _PLAN).read_bytes())
    images, count = plan["data"]["images"], plan["views"]["count"]
    done = done_blocks(folder)
    entries = [done[block.number] for block in all_blocks(plan)]
    checksums = {name: [entry["checksums"][name] for entry in entries] for name in FILES}
    errors = sum(np.array(entry["errors"]) for entry in entries) / (count * images)
    manifest = {**plan, "checksums": checksums, "errors": dict(zip(rows, errors.tolist(), strict=True))}
    with atomic_file(folder / MANIFEST) as file:
        file.write(json.dumps({**manifest, "sha256": manifest_hash(manifest)}, indent=1).encode())
    clean(folder)


def clean(folder: Path) -> None:
    """Remove what only the making of a finished store needed, and what a kill left half-written."""
    for path in (folder / _PLAN, *folder.glob(_JOURNALS), *folder.glob(".*.partial")):
        path.unlink(missing_ok=True)


def sizes(plan: dict) -> dict[str, int]:
    """Bytes of both files of a store."""
    rows = plan["views"]["count"] * plan["data"]["images"]
    return {name: rows * kind.itemsize for name, kind in _types(plan).items()}


def readable(size: int) -> str:
    """A number of bytes for people: 1.3 GB."""
    amount = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} TB"


class refusing_full_disk:
    """Context in which a full disk is the user's mistake, told in one line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type, error: BaseException, trace: object) -> None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk of {self.folder} is full ({error.strerror}); make room and run again") from None


def _types(plan: dict) -> dict[str, np.dtype]:
    return record_types(plan["data"]["classes"], plan["labels"]["top_k"], plan["labels"]["temperatures"])


def _is_note(name: str) -> bool:
    """What --skip-unreadable leaves, and files that were never whole."""
    return name.startswith("unreadable_") or name.endswith(".partial") or name.startswith("journal-")


def _difference(found: object, wanted: object, name: str) -> str:
    """The first entry in which two plans differ, as "pixels.preset cub, not imagenet"."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        key = next(key for key in found if found[key] != wanted.get(key))
        return _difference(found[key], wanted.get(key), f"{name}.{key}")
    return f"{name} {_brief(found)}, not {_brief(wanted)}"


def _brief(value: object) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)

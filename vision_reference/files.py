"""Files that are either whole or not there, and small facts kept between runs under the user's cache folder."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

_FICLONE = 0x40049409  # from linux/fs.h


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write; it takes its place at ``path`` only when the block ends without an error.

    The bytes reach the disk before the name does, so that neither a crash of the process nor of the machine leaves a
    half-written file under ``path`` or loses what was there before.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def atomic_copy(source: Path, target: Path) -> None:
    """Let ``target`` hold what ``source`` holds, in one step: a copy of its own, so that damage to one is not to both.

    Where the file system can (Btrfs, XFS), the two share their blocks until one is written.
    """
    with source.open("rb") as original, atomic_file(target) as copy:
        try:
            fcntl.ioctl(copy.fileno(), _FICLONE, original.fileno())
        except OSError:
            shutil.copyfileobj(original, copy, 1 << 20)


def remove_partials(folder: Path, *names: str) -> None:
    """Remove what processes that were killed in ``atomic_file`` left of the files ``names`` (patterns) in ``folder``.

    Only whoever alone may write these files may call it.
    """
    for name in names:
        for leftover in folder.glob(f".{name}.*.partial"):
            leftover.unlink(missing_ok=True)


def try_lock(file: BinaryIO | TextIO) -> bool:
    """Lock an open file until it is closed, also by a crash; False if another process has it.

    File systems that know no locks count as free.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` outlive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def cache_file(kind: str, key: object) -> Path:
    """Where a fact of ``kind`` about ``key`` (anything JSON can express) is kept: one file per key, perhaps not there.

    Put into the key all that the fact depends on (paths, times of modification): a changed key is a new file.
    """
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "lskd" / kind / f"{name}.json"

"""Files that are either whole or not there, and small facts kept between runs under the user's cache folder."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

MANIFEST = "manifest.json"  # what the files of a folder are, sealed
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


def write_atomically(path: Path, content: bytes) -> None:
    """Put ``content`` in place of what ``path`` held: see ``atomic_file``."""
    with atomic_file(path) as file:
        file.write(content)


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

    File systems that know no locks count as free. Processes that are forked meanwhile, such as loader workers, do not
    hold the lock, and have /dev/null in the file's place: they may outlive this one by seconds.
    """
    return _lock(file, fcntl.LOCK_EX)


def share_lock(file: BinaryIO | TextIO) -> bool:
    """As ``try_lock``, but along with others that share it."""
    return _lock(file, fcntl.LOCK_SH)


def _lock(file: BinaryIO | TextIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    _locked.add(file)
    return True


_locked: "weakref.WeakSet[BinaryIO | TextIO]" = weakref.WeakSet()


def _leave_locks() -> None:
    for file in list(_locked):
        if not file.closed:
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, file.fileno(), inheritable=False)
            os.close(nothing)


os.register_at_fork(after_in_child=_leave_locks)


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


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def seal(content: dict) -> bytes:
    """JSON of ``content`` and the SHA-256 of it, for ``unseal``."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=1).encode()


def unseal(path: Path, kind: str) -> dict:
    """What was sealed into a file.

    Raises:
        ValueError: it cannot be read, is not what ``seal`` made, to the last character, or its ``format`` is not
            ``kind``; the text begins with the file's name.
    """
    try:
        text = path.read_bytes()
        content = json.loads(text)
        if not isinstance(content, dict) or content.pop("sha256", None) is None or seal(content) != text:
            raise ValueError("its checksum does not match")
    except (OSError, ValueError, RecursionError) as problem:
        reason = "nested too deeply" if isinstance(problem, RecursionError) else problem
        raise ValueError(f"{path.name} is damaged ({reason})") from None
    if content.get("format") != kind:
        raise ValueError(f"{path.name} has format {content.get('format')}, this software reads {kind}")
    return content


def write_through(file: BinaryIO, content: bytes) -> None:
    """Write all of ``content`` to an unbuffered file; it is on the disk when this returns."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]
    os.fsync(file.fileno())


def journal_line(entry: dict) -> bytes:
    """A line for a file that only grows, with a checksum of its own."""
    text = json.dumps(entry).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def read_journal(path: Path) -> list[dict]:
    """What was put into ``journal_line``, in order, without lines that a kill cut short or that have changed since."""
    entries = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        checksum, _, text = line.partition(b" ")
        if checksum == b"%08x" % zlib.crc32(text):
            entries.append(json.loads(text))
    return entries

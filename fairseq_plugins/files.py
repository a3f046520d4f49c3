"""Files that are either whole or absent, JSON that shows whether it was changed, hashes, locks. No fairseq in here."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from .errors import UserError


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of what `path` held, in one step and on the disk, when the block ends.

    An error or a kill leaves the old file whole; a kill also leaves a hidden `.NAME.*.partial` beside it, for
    `remove_partials`.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            _lock(handle)
            yield file
            file.flush()
            os.fsync(handle)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_partials(folder: Path, *names: str) -> None:
    """Remove what killed processes left of the files `names` (patterns) in `folder`, not what is being written now."""
    for name in names:
        for leftover in folder.glob(f".{name}.*.partial"):
            # it may be gone or have taken its place meanwhile, or be another user's
            with suppress(FileNotFoundError, PermissionError), leftover.open("r+b") as file:
                if _lock(file.fileno()):
                    leftover.unlink()


def write_atomically(path: Path, content: bytes) -> None:
    """Put `content` in place of what `path` held: see `atomic_file`."""
    with atomic_file(path) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` outlive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256, read in blocks. Raises UserError if the file cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as problem:
        raise UserError(f"cannot read {path} ({problem.strerror})") from None
    return digest.hexdigest()


def hash_split(folder: Path, split: str, source_lang: str, target_lang: str) -> dict[str, str]:
    """SHA-256 of the files of one split in a folder written by fairseq-preprocess, by side and ending.

    Raises:
        UserError: they are missing.
    """
    for pair in (f"{source_lang}-{target_lang}", f"{target_lang}-{source_lang}"):
        files = {
            f"{side}.{ending}": folder / f"{split}.{pair}.{lang}.{ending}"
            for side, lang in (("source", source_lang), ("target", target_lang))
            for ending in ("bin", "idx")
        }
        if all(path.is_file() for path in files.values()):
            return {name: sha256_of_file(path) for name, path in files.items()}
    raise UserError(
        f"no binarized {split} data of {source_lang}-{target_lang} in {folder} ({split}.{source_lang}-{target_lang}."
        f"{source_lang}.bin and so on): give a folder written by fairseq-preprocess"
    )


def seal(content: dict[str, Any]) -> bytes:
    """JSON of `content` and the SHA-256 of it, for `unseal`."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=1).encode()


def unseal(path: Path, kind: str) -> dict[str, Any]:
    """What was sealed into a file.

    Raises:
        ValueError: it cannot be read, is not what `seal` made, to the last character, or its `format` is not
            `kind`; the text begins with the file's name.
    """
    try:
        text = path.read_bytes()
        content = json.loads(text)
        if not isinstance(content, dict) or content.pop("sha256", None) is None or seal(content) != text.rstrip():
            raise ValueError("its checksum does not match")
    except (OSError, ValueError, RecursionError) as problem:
        reason = "nested too deeply" if isinstance(problem, RecursionError) else problem
        raise ValueError(f"{path.name} is damaged ({reason})") from None
    if content.get("format") != kind:
        raise ValueError(f"{path.name} has format {content.get('format')}, this software reads {kind}")
    return content


@contextmanager
def writing_to(folder: Path, flag: str) -> Iterator[None]:
    """What the system refuses in here is told in one line, which names the `flag` that gave the folder.

    Raises:
        UserError: in place of OSError.
    """
    try:
        yield
    except OSError as problem:
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = f"make room and run the same command again, it goes on; or choose another {flag}"
        raise UserError(f"cannot write to {folder} ({problem.strerror}): {hint if full else f'check {flag}'}") from None


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system that knows no locks
        pass
    return True

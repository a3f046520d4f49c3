"""``--skip-unreadable``: which image files are broken, found before training starts and for both loaders alike.

Leaving files out while training would make the batches of the processes uneven and each loader's judgement another, so
every file is decoded once beforehand, the work shared by all processes; what was found is remembered.
"""

import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vision_reference.errors import UserError
from vision_reference.files import cache_file, write_atomically
from vision_reference.images.decoding import read_image
from vision_reference.images.folders import Sample, Samples
from vision_reference.machine import Rank, from_main, gather_objects
from vision_reference.progress import progress


def readable_samples(
    samples: Sequence[Sample], *, threads: int, rank: Rank | None = None, show_progress: bool = False
) -> Samples:
    """``samples`` without those whose file cannot be read or decoded, in the same order.

    A list of files is decoded in full once; later calls look only at those that were broken. A folder that has changed
    since counts as another list. Every process must call it; each decodes its share.

    Args:
        samples: (path, label) pairs.
        threads: that decode.
        rank: this process among those of the run.
    """
    rank = rank or Rank()
    paths = [path for path, _ in samples]
    known = _known_file(paths)
    suspects = from_main(_read_known(known))  # of the main process: on another machine another run may have left more
    share = (paths if suspects is None else suspects)[rank.rank :: rank.world_size]
    with ThreadPoolExecutor(max(1, threads)) as pool:
        verdicts: Iterable[bool] = pool.map(is_readable, share)
        if show_progress:
            verdicts = progress(verdicts, "checking images", total=len(share), unit="file")
        broken = [path for path, good in zip(share, verdicts, strict=True) if not good]
    unwanted = {path for part in gather_objects(broken) for path in part}
    if rank.is_main:
        known.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(known, json.dumps(sorted(unwanted)).encode())
    return Samples(sample for sample in samples if sample[0] not in unwanted)


def _known_file(paths: list[str]) -> Path:
    """Where it is kept which of ``paths`` are broken.

    Raises:
        UserError: a folder of theirs is gone or cannot be read.
    """
    folders = sorted({os.path.dirname(path) for path in paths})
    try:
        return cache_file("unreadable", [paths, [os.stat(folder).st_mtime_ns for folder in folders]])
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror})") from None


def _read_known(known: Path) -> list[str] | None:
    try:
        return [str(path) for path in json.loads(known.read_bytes())]
    except (OSError, ValueError, TypeError):
        return None


def is_readable(path: str) -> bool:
    """Whether the loaders can use the image file at ``path``."""
    try:
        read_image(path)
    except UserError:
        return False
    return True


def report(name: str, before: Sequence[Sample], after: Sequence[Sample], output: Path) -> str | None:
    """One line on what was left out of ``before``, all of it listed in ``output``; None where nothing was."""
    kept = {path for path, _ in after}
    out = [path for path, _ in before if path not in kept]
    if not out:
        return None
    output.mkdir(parents=True, exist_ok=True)
    listed = output / f"unreadable_{name}.txt"
    listed.write_bytes(b"".join(os.fsencode(path) + b"\n" for path in out))
    return f"note: left out {len(out)} unreadable of {len(before)} {name} images, such as {out[0]}; all in {listed}"

"""``--skip-unreadable``: which image files are broken, found before training starts and for both loaders alike.

Leaving files out while training would make the batches of the processes uneven and each loader's judgement another, so
every file is decoded once beforehand, the work shared by all processes; what was found is remembered.
"""

import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path

from vision_reference.errors import UserError
from vision_reference.files import cache_file, write_atomically
from vision_reference.images.decoding import read_image
from vision_reference.images.folders import Sample, Samples
from vision_reference.machine import Rank, from_main, gather_objects
from vision_reference.progress import progress

_State = tuple[int, int]  # size and time of change (ns) of a file
_UNSEEN = (-1, -1)


def readable_samples(
    samples: Sequence[Sample], *, threads: int, rank: Rank | None = None, show_progress: bool = False
) -> Samples:
    """``samples`` without those whose file cannot be read or decoded, in the same order.

    A file is decoded in full once; later calls look at those again that were broken, or whose size or time of change
    is another. Every process must call it; each decodes its share.

    Args:
        samples: (path, label) pairs.
        threads: that decode.
        rank: this process among those of the run.
    """
    rank = rank or Rank()
    paths = [path for path, _ in samples]
    known = cache_file("unreadable", paths)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        states = list(pool.map(_state, paths)) if rank.is_main else []
        # of the main process: elsewhere another run may have left more, and one look at a million files is enough
        share = from_main(_suspects(paths, states, known) if rank.is_main else [])[rank.rank :: rank.world_size]
        verdicts: Iterable[bool] = pool.map(is_readable, share)
        if show_progress:
            verdicts = progress(verdicts, "checking images", total=len(share), unit="file")
        broken = [path for path, good in zip(share, verdicts, strict=True) if not good]
    unwanted = {path for part in gather_objects(broken) for path in part}
    if rank.is_main:
        known.parent.mkdir(parents=True, exist_ok=True)
        good = [None if path in unwanted else state for path, state in zip(paths, states, strict=True)]
        write_atomically(known, json.dumps(good).encode())
    return Samples(sample for sample in samples if sample[0] not in unwanted)


def _suspects(paths: list[str], states: list[_State], known: Path) -> list[str]:
    """Those of ``paths`` that are not known to be good as they are."""
    before = _read_known(known)
    if len(before) != len(states):
        return paths
    return list(compress(paths, (old != new for old, new in zip(before, states, strict=True))))


def _state(path: str) -> _State:
    try:
        status = os.stat(path)
    except OSError:
        return _UNSEEN
    # Of both times the later: a copy can keep the time of modification, nothing keeps that of the change.
    return status.st_size, max(status.st_mtime_ns, status.st_ctime_ns)


def _read_known(known: Path) -> list[_State | None]:
    """The state in which each file was found good, None for those that were not; nothing where nothing is known."""
    try:
        return [None if state is None else (int(state[0]), int(state[1])) for state in json.loads(known.read_bytes())]
    except (OSError, ValueError, TypeError, LookupError):
        return []


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

"""``--skip-unreadable``: which image files are broken, found before training starts and for both loaders alike.

Leaving files out while training would make the batches of the processes uneven and each loader's judgement another, so
every file is decoded once beforehand; what was found is remembered.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from vision_reference.errors import UserError
from vision_reference.files import atomic_file, cache_file
from vision_reference.images.decoding import read_encoded
from vision_reference.images.folders import Sample, read_image


def readable_samples(samples: Sequence[Sample], *, threads: int, show_progress: bool = False) -> list[Sample]:
    """``samples`` without those whose file cannot be read or decoded, in the same order.

    A list of files is decoded in full once; later calls look only at those that were broken. A folder that has changed
    since counts as another list.

    Args:
        samples: (path, label) pairs.
        threads: that decode.
    """
    paths = [path for path, _ in samples]
    folders = sorted({os.path.dirname(path) for path in paths})
    known = cache_file("unreadable", [paths, [os.stat(folder).st_mtime_ns for folder in folders]])
    suspects = json.loads(known.read_text()) if known.exists() else paths
    with ThreadPoolExecutor(max(1, threads)) as pool:
        verdicts = pool.map(is_readable, suspects)
        bar = tqdm(verdicts, "checking images", len(suspects), unit=" files", disable=not show_progress, mininterval=1)
        broken = [path for path, good in zip(suspects, bar, strict=True) if not good]
    known.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(known) as file:
        file.write(json.dumps(broken).encode())
    unwanted = set(broken)
    return [sample for sample in samples if sample[0] not in unwanted]


def is_readable(path: str) -> bool:
    """Whether both loaders can use the image file at ``path``."""
    try:
        read_encoded(path)
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
    listed = output / f"unreadable_{name}.txt"
    listed.write_text("".join(f"{path}\n" for path in out))
    return f"note: left out {len(out)} unreadable of {len(before)} {name} images, such as {out[0]}; all in {listed}"

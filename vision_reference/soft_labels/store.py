"""Soft labels on disk: the format, and how a store of them is opened and checked.

A store is a folder:

    manifest.json   what it was made from, what it holds and the checksums of all of it; written last
    views.bin       (M, N) records: the seed of view m of image n (every random choice follows from it) and, of these
                    choices, the crop's box in pixels of the file's image (top, left, height, width) and the flip
    labels.bin      (M, N) records: the teacher's logits of that view (see ``codec``): float16, of all classes, or of
                    the k largest with their class numbers and, for each temperature T, the log-sum-exp of z / T over
                    the classes that were not stored (float32)

Little-endian and memory-mapped. N images in the order of the sorted folder, view after view, so that an epoch reads one
contiguous part. Both files are divided into blocks of images, each with its own CRC-32.
"""

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vision_reference.errors import UserError
from vision_reference.files import MANIFEST, unseal
from vision_reference.soft_labels.codec import decode

FORMAT = "lskd soft labels 1"
FILES = ("views.bin", "labels.bin")
BLOCK = 1024  # images; a kill costs the work on one
_THREADS = 4
_VIEW = np.dtype([("seed", "<u8"), ("box", "<i4", (4,)), ("flip", "u1")])


@dataclass(frozen=True)
class Block:
    """Images ``start`` to ``stop`` of one view: the unit that is written, resumed and checked."""

    number: int
    view: int
    start: int
    stop: int


def all_blocks(plan: dict) -> list[Block]:
    """The blocks of a store in their order; ``plan`` is its manifest, with or without checksums."""
    views, images, size = plan["views"]["count"], plan["data"]["images"], plan["block"]
    starts = [(view, start) for view in range(views) for start in range(0, images, size)]
    return [Block(number, view, start, min(start + size, images)) for number, (view, start) in enumerate(starts)]


def record_types(plan: dict) -> dict[str, np.dtype]:
    """A view's record in both files, without gaps."""
    classes, top_k = plan["data"]["classes"], plan["labels"]["top_k"]
    fields: list[tuple] = [("logits", "<f2", (classes if top_k is None else top_k,))]
    if top_k is not None:
        index, temperatures = "<u2" if classes <= 1 << 16 else "<u4", len(plan["labels"]["temperatures"])
        fields += [("indices", index, (top_k,)), ("rest", "<f4", (temperatures,))]
    return dict(zip(FILES, (_VIEW, np.dtype(fields)), strict=True))


def extents(plan: dict) -> list[dict[str, slice]]:
    """Of each block the bytes it takes of both files."""
    images, kinds = plan["data"]["images"], record_types(plan)
    rows = [slice(block.view * images + block.start, block.view * images + block.stop) for block in all_blocks(plan)]
    return [{name: slice(r.start * k.itemsize, r.stop * k.itemsize) for name, k in kinds.items()} for r in rows]


class Store:
    """A whole store, opened.

    Attributes:
        folder, manifest: where it is, and what its ``manifest.json`` says.
        views, labels: (M, N) records ``seed``, ``box`` (4,), ``flip``; and ``logits`` (and ``indices``, ``rest``).
        blocks: all of them.
        images, classes, count: N, number of classes, M.
        top_k, temperatures: what is kept of the logits; None and [] for all of them.
        class_names, sha256: of the data; the names are None in stores of earlier versions.
        arch, precision: the teacher's network, and fp32, bf16 or fp16.
        pixels, versions, errors: as ``images.fingerprint`` and ``analysis.stored_error`` have them.
        label_smoothing: of the teacher's training; 0 where a store of earlier versions does not say.

    Raises:
        UserError: there is no store, it is unfinished, or its files are not as the manifest says (their contents are
            looked at by ``damage``).
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / MANIFEST).is_file():
            begun = any((folder / name).is_file() for name in FILES)
            what = "is unfinished; run store_soft_labels.py again, it goes on" if begun else "holds no soft labels"
            raise UserError(f"{folder} {what} (no {MANIFEST})")
        self.folder = folder
        try:
            self.manifest = unseal(folder / MANIFEST, FORMAT)
        except ValueError as error:
            raise UserError(f"{folder}: {error}; store anew, into another folder") from None
        try:
            data, labels, sums = (self.manifest[name] for name in ("data", "labels", "checksums"))
            self.classes, self.images, self.count = data["classes"], data["images"], self.manifest["views"]["count"]
            self.top_k, self.temperatures = labels["top_k"], [float(one) for one in labels["temperatures"]]
            self.errors = {str(name): [float(one) for one in row] for name, row in self.manifest["errors"].items()}
            self.views, self.labels = (self._map(*file) for file in record_types(self.manifest).items())
            self.blocks = all_blocks(self.manifest)
            self._checksums = [dict(zip(FILES, pair, strict=True)) for pair in zip(*map(sums.get, FILES), strict=True)]
            self.arch, self.precision = (str(self.manifest["teacher"][name]) for name in ("arch", "precision"))
            self.label_smoothing = float(self.manifest.get("label_smoothing", 0.0))
            self.pixels, self.versions = dict(self.manifest["pixels"]), dict(self.manifest["versions"])
            self.class_names, self.sha256 = data.get("class_names"), str(data["sha256"])
            names_are_texts = self.class_names is None or list(map(str, self.class_names)) == self.class_names
            fits = len(self._checksums) == len(self.blocks) and 0 < (self.top_k or 1) <= self.classes
            if not (names_are_texts and fits and isinstance(self.manifest["views"]["seed"], int)):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            raise UserError(_damaged(folder, f"{MANIFEST} is no manifest of these files")) from None

    def _map(self, name: str, kind: np.dtype) -> np.memmap:
        path, expected = self.folder / name, self.count * self.images * kind.itemsize
        size = path.stat().st_size if path.is_file() else 0
        if size != expected:
            raise UserError(_damaged(self.folder, f"{name} has {size} bytes instead of {expected}"))
        return np.memmap(path, kind, mode="r", shape=(self.count, self.images))

    def _checksums_of(self, block: Block) -> dict[str, int]:
        files = zip(FILES, (self.views, self.labels), strict=True)
        return {name: zlib.crc32(file[block.view, block.start : block.stop].data) for name, file in files}

    def damage(self, blocks: Sequence[Block]) -> str | None:
        """One line about the first of ``blocks`` whose bytes are not those that were written, None where all are."""
        with ThreadPoolExecutor(_THREADS) as pool:
            for block, found in zip(blocks, pool.map(self._checksums_of, blocks), strict=True):
                if found != self._checksums[block.number]:
                    place = f"images {block.start} to {block.stop - 1} of view {block.view}"
                    return _damaged(self.folder, f"{place} are not as they were written")
        return None

    def logits(self, view: int, indices: np.ndarray, temperature: float, tail: str) -> Tensor:
        """Logits (B, K) for images ``indices`` (B,) of view number ``view``: see ``codec.decode``."""
        records = self.labels[view][indices]
        logits = torch.from_numpy(np.ascontiguousarray(records["logits"]))
        if self.top_k is None:
            return logits
        chosen = torch.from_numpy(records["indices"].astype(np.int64))
        rest = torch.from_numpy(np.ascontiguousarray(records["rest"][:, self.temperatures.index(temperature)]))
        return decode(logits, chosen, rest, classes=self.classes, temperature=temperature, tail=tail)


def _damaged(folder: Path, what: str) -> str:
    return f"{folder} is damaged: {what}; delete the folder and store anew"

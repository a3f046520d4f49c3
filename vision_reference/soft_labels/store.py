"""Soft labels on disk: the format, and how training reads it.

A store is a folder:

    manifest.json   what it was made from, what it holds and the checksums of all of it; written last
    views.bin       (M, N) records: the seed of view m of image n (every random choice follows from it) and, of these
                    choices, the crop's box in pixels of the file's image (top, left, height, width) and the flip
    labels.bin      (M, N) records: the teacher's logits of that view (see ``soft_label_codec``): float16, of all
                    classes, or of the k largest with their class numbers and the float32 log-sum-exps of the others

Little-endian and memory-mapped. N images in the order of the sorted folder, view after view, so that an epoch reads one
contiguous part. Both files are divided into blocks of images, each with its own CRC-32.
"""

import argparse
import hashlib
import json
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vision_reference.errors import UserError
from vision_reference.images.folders import Sample
from vision_reference.machine import Rank, gather_objects
from vision_reference.soft_labels.codec import TAILS, average, decode
from vision_reference.soft_labels.provenance import check_pixels, describe_data, pixel_flags, versions

FORMAT = "lskd soft labels 1"
MANIFEST, FILES = "manifest.json", ("views.bin", "labels.bin")
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


def all_blocks(manifest: dict) -> list[Block]:
    """The blocks of a store in the order in which they lie on disk."""
    views, images, size = manifest["views"]["count"], manifest["data"]["images"], manifest["block"]
    starts = [(view, start) for view in range(views) for start in range(0, images, size)]
    return [Block(number, view, start, min(start + size, images)) for number, (view, start) in enumerate(starts)]


def record_types(classes: int, top_k: int | None, temperatures: Sequence[float]) -> dict[str, np.dtype]:
    """Records of both files: ``views.bin`` and ``labels.bin``."""
    if top_k is None:
        return dict(zip(FILES, (_VIEW, np.dtype([("logits", "<f2", (classes,))])), strict=True))
    index = "<u2" if classes <= 1 << 16 else "<u4"
    fields = [("logits", "<f2", (top_k,)), ("indices", index, (top_k,)), ("rest", "<f4", (len(temperatures),))]
    return dict(zip(FILES, (_VIEW, np.dtype(fields)), strict=True))


class Store:
    """A whole store, opened.

    Attributes:
        folder: where it is.
        manifest: what its ``manifest.json`` says.
        views: (M, N) records ``seed``, ``box`` (4,), ``flip``.
        labels: (M, N) records ``logits`` and, for the k largest, ``indices`` and ``rest``.

    Raises:
        UserError: there is no store, it is unfinished, or its files are not as the manifest says (their contents are
            looked at by ``damaged_block``).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.classes, self.images = self.manifest["data"]["classes"], self.manifest["data"]["images"]
        self.top_k, self.temperatures = self.manifest["labels"]["top_k"], self.manifest["labels"]["temperatures"]
        self.count = self.manifest["views"]["count"]
        types = record_types(self.classes, self.top_k, self.temperatures)
        self.views, self.labels = (self._map(name, types[name]) for name in FILES)

    def _map(self, name: str, kind: np.dtype) -> np.memmap:
        path, expected = self.folder / name, self.count * self.images * kind.itemsize
        size = path.stat().st_size if path.is_file() else 0
        if size != expected:
            raise UserError(
                f"{path} has {size} bytes instead of {expected}: cut short or not of this store; store anew"
            )
        return np.memmap(path, kind, mode="r", shape=(self.count, self.images))

    def damaged_block(self, blocks: Sequence[Block]) -> Block | None:
        """The first of ``blocks`` whose bytes are not those that were written, None where all are."""
        maps = dict(zip(FILES, (self.views, self.labels), strict=True))

        def good(block: Block) -> bool:
            return all(
                zlib.crc32(maps[name][block.view, block.start : block.stop].view(np.uint8))
                == self.manifest["checksums"][name][block.number]
                for name in FILES
            )

        with ThreadPoolExecutor(_THREADS) as pool:
            verdicts = list(pool.map(good, blocks))
        return next((block for block, verdict in zip(blocks, verdicts, strict=True) if not verdict), None)

    def logits(self, view: int, indices: np.ndarray, temperature: float, tail: str) -> Tensor:
        """Logits (B, K) for images ``indices`` (B,) of view number ``view``: see ``soft_label_codec.decode``."""
        records = self.labels[view][indices]
        logits = torch.from_numpy(np.ascontiguousarray(records["logits"]))
        if self.top_k is None:
            return logits
        chosen = torch.from_numpy(records["indices"].astype(np.int64))
        rest = torch.from_numpy(np.ascontiguousarray(records["rest"][:, self.temperatures.index(temperature)]))
        return decode(logits, chosen, rest, classes=self.classes, temperature=temperature, tail=tail)


class SoftLabels:
    """The stored teachers of one run: one, or several whose probabilities are averaged.

    Args:
        stores: of the same views.
        temperature: T of the distillation.
        tail: one of ``TAILS``.
    """

    def __init__(self, stores: Sequence[Store], temperature: float, tail: str) -> None:
        self.stores = stores
        self.temperature = temperature
        self.tail = tail

    @property
    def views(self) -> np.memmap:
        """(M, N) records ``seed``, ``box``, ``flip``: what the teachers saw."""
        return self.stores[0].views

    def logits(self, epoch: int, indices: np.ndarray) -> Tensor:
        """Logits (B, K) of the teachers for images ``indices`` (B,) as ``epoch`` shows them: view epoch mod M."""
        view = epoch % len(self.views)
        answers = [store.logits(view, indices, self.temperature, self.tail) for store in self.stores]
        return average(answers, self.temperature)


def open_soft_labels(args: argparse.Namespace, samples: Sequence[Sample], classes: int, rank: Rank) -> SoftLabels:
    """The stores of ``--soft-labels``, found to be whole and about what this run trains on.

    All bytes are read and compared with their checksums, shared by the processes.

    Raises:
        UserError: a store that is missing, unfinished, damaged, of other data, pixels or views, or without what the
            flags ask for.
    """
    folders = [Path(name) for name in args.soft_labels.split(",") if name]
    stores = [Store(folder) for folder in folders]
    if not stores:
        raise UserError("--soft-labels needs the folder of a store, or several with commas between them")
    data = describe_data(samples, classes)  # by every process: another machine may have other files
    for store in stores:
        check_belongs(store.manifest, {"data": data, "pixels": pixel_flags(args)}, store.folder)
        _check_labels(store, args)
    for other in stores[1:]:
        check_same_views(stores[0], other)
    for store in stores:
        _check_contents(store, rank)
    _announce(stores, args, rank)
    return SoftLabels(stores, args.kd_temperature, args.kd_tail or TAILS[0])


def read_manifest(folder: Path) -> dict:
    """Content of a store's manifest.

    Raises:
        UserError: there is none, or it is not as it was written.
    """
    path = folder / MANIFEST
    if not path.is_file():
        unfinished = folder.is_dir() and any((folder / name).is_file() for name in FILES)
        what = "is unfinished; run store_soft_labels.py again, it goes on" if unfinished else "holds no soft labels"
        raise UserError(f"{folder} {what} (no {MANIFEST})")
    try:
        manifest = json.loads(path.read_bytes())
        if manifest.pop("sha256") != manifest_hash(manifest):
            raise ValueError
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{path} is damaged or no manifest of soft labels; store anew") from None
    if manifest["format"] != FORMAT:
        raise UserError(f"{path} has format '{manifest['format']}', not '{FORMAT}'; store anew")
    return manifest


def manifest_hash(manifest: dict) -> str:
    """SHA-256 of a manifest's content, which its file holds too."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def check_belongs(manifest: dict, run: dict, folder: Path) -> None:
    """Refuses a store of other data or pixels than the run's.

    Args:
        manifest: the store's.
        run: ``data`` and ``pixels`` of the run, as the manifest has them.
        folder: names the store in errors.

    Raises:
        UserError: names what differs, stored and given.
    """
    stored, given = manifest["data"], run["data"]
    for what in ("classes", "images"):
        if stored[what] != given[what]:
            hint = "; --skip-unreadable must be given as it was then" if what == "images" else ""
            raise UserError(f"{folder} is about {stored[what]} {what}, --data-path has {given[what]}{hint}")
    if stored["sha256"] != given["sha256"]:
        raise UserError(f"{folder} is about other data: {stored['covers']} differ from those in --data-path")
    check_pixels(manifest["pixels"], run["pixels"], str(folder))


def check_same_views(first: Store, second: Store) -> None:
    """Refuses stores whose teachers saw different views.

    Raises:
        UserError: names both stores and what differs.
    """
    one, two = ({**store.manifest["views"], **store.manifest["pixels"]} for store in (first, second))
    if differing := [name for name in one if one[name] != two.get(name)]:
        name = differing[0]
        raise UserError(
            f"{first.folder} and {second.folder} hold different views ({name} {one[name]} and {two.get(name)}): "
            f"store the second with --same-views-as {first.folder}"
        )


def _check_labels(store: Store, args: argparse.Namespace) -> None:
    if store.top_k is None:
        if args.kd_tail:
            raise UserError(f"--kd-tail is about what top-k leaves out, but {store.folder} has all classes; drop it")
    elif args.kd_temperature not in store.temperatures:
        known = ", ".join(f"{temperature:g}" for temperature in store.temperatures)
        raise UserError(
            f"{store.folder} has the {store.top_k} largest logits at temperatures {known}, not at --kd-temperature "
            f"{args.kd_temperature:g}; choose one of these, or store anew with --temperatures or without --top-k"
        )


def _check_contents(store: Store, rank: Rank) -> None:
    share = all_blocks(store.manifest)[rank.rank :: rank.world_size]
    found = [block for block in gather_objects(store.damaged_block(share)) if block is not None]
    if found:
        block = found[0]
        raise UserError(
            f"{store.folder} is damaged: images {block.start} to {block.stop - 1} of view {block.view} are not as they "
            "were written; delete the folder and store anew"
        )


def _announce(stores: Sequence[Store], args: argparse.Namespace, rank: Rank) -> None:
    teachers = " and ".join(store.manifest["teacher"]["arch"] for store in stores)
    count = stores[0].count
    rank.say(f"soft labels of {teachers}: {count} views of each image; epoch e (from 1) shows view (e - 1) mod {count}")
    for store in stores:
        then, now = store.manifest["versions"], versions(args.loader)
        if changes := [
            f"{name} {then[name]} -> {now[name]}" for name in then if name in now and then[name] != now[name]
        ]:
            rank.say(f"note: {store.folder} was stored with other versions, pixels may differ: {', '.join(changes)}")

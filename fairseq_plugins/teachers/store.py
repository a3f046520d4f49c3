"""Teacher outputs on disk: the format, and how a store of them is opened and checked. No fairseq in here.

`scripts/nmt/lib/store_outputs.py` writes them, with the writer and the codec of the images' stores.

A store is a folder about one split of one language pair:

    manifest.json   what it was made from, what it holds and the checksums of all of it; written last
    labels.bin      a record for each target token (end of sentence included), sentence after sentence in the order of
                    the data set: k entries of the vocabulary, most probable first (the smallest unsigned integers that
                    hold them), their logits z (float16) and, for each temperature T, the log-sum-exp of z / T over the
                    entries that were not stored (float32). The largest z of a token is subtracted from all, which
                    changes no probability and keeps the digits of float16 where the probable entries are
    offsets.bin     N + 1 int64: sentence i has records offsets[i] to offsets[i + 1]; none if too long for the teacher

Little-endian and memory-mapped. labels.bin is divided into blocks of whole sentences, each with its own CRC-32.
"""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import unseal

FORMAT = "lskd teacher outputs 2"
MANIFEST, LABELS, OFFSETS = "manifest.json", "labels.bin", "offsets.bin"
# Target tokens of a block: seconds of work lost by a kill, and enough sentences to find many of one length.
BLOCK = 32_768
_THREADS = 4


@dataclass(frozen=True)
class Block:
    """Sentences `first` to `last`, records `start` to `stop`: the unit that is written, resumed and checked."""

    number: int
    first: int
    last: int
    start: int
    stop: int

    def __len__(self) -> int:
        """How many records."""
        return self.stop - self.start


def all_blocks(offsets: np.ndarray, size: int) -> list[Block]:
    """The blocks of a store in their order: `size` > 0 records each, or a little more, since no sentence is cut."""
    if size < 1 or (np.diff(offsets) < 0).any():
        raise ValueError
    blocks: list[Block] = []
    first, sentences = 0, len(offsets) - 1
    while first < sentences:
        last = min(int(np.searchsorted(offsets, offsets[first] + size)), sentences)
        if offsets[last] == offsets[-1]:  # sentences without records at the end belong to the last block
            last = sentences
        blocks.append(Block(len(blocks), first, last, int(offsets[first]), int(offsets[last])))
        first = last
    return blocks


def record_type(plan: dict[str, Any]) -> np.dtype:
    """A token's record, without gaps: `logits` (k,), `indices` (k,), `rest` (temperatures,)."""
    index = np.min_scalar_type(plan["data"]["vocabulary_size"] - 1).newbyteorder("<")
    k, temperatures = plan["labels"]["top_k"], plan["labels"]["temperatures"]
    return np.dtype([("logits", "<f2", (k,)), ("indices", index, (k,)), ("rest", "<f4", (len(temperatures),))])


class Store:
    """A whole store, opened.

    Attributes:
        folder, temperatures: where it is, and the temperatures with a log-sum-exp.
        lang_pair, split, sentences, sha256, vocabulary_size, vocabulary_sha256: of the data it is about.
        top_k: entries stored of each token.
        experts: path and SHA-256 of each checkpoint that was asked.
        label_smoothing: that they were trained with; 0 where a store of earlier versions does not say.

    Raises:
        UserError: there is no store, it is unfinished, or its files are not as the manifest says (the contents of
            labels.bin are looked at by `damage`).
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / MANIFEST).is_file():
            begun = (folder / LABELS).is_file()
            what = "are unfinished: run it again, it goes on:" if begun else "are missing: make them with"
            raise UserError(
                f"stored teacher outputs {folder} {what} scripts/nmt/store_teacher_outputs.py (no {MANIFEST})"
            )
        self.folder = folder
        try:
            manifest = unseal(folder / MANIFEST, FORMAT)
        except ValueError as problem:
            raise UserError(f"stored teacher outputs {folder}: {problem}; store again, into another folder") from None
        try:
            data, checksums = manifest["data"], manifest["checksums"]
            self.lang_pair, self.split, self.sentences = data["lang_pair"], data["split"], data["sentences"]
            self.sha256, self.vocabulary_sha256 = data["sha256"], data["vocabulary_sha256"]
            self.vocabulary_size, self.top_k = data["vocabulary_size"], int(manifest["labels"]["top_k"])
            if not 0 < manifest["labels"]["top_k"] <= self.vocabulary_size:
                raise ValueError
            self.temperatures = [float(one) for one in manifest["labels"]["temperatures"]]
            hashes = manifest["teacher"]["weights_sha256"]
            self.experts = [(Path(path), str(digest)) for path, digest in zip(manifest["paths"], hashes, strict=True)]
            self.label_smoothing = float(manifest.get("label_smoothing", 0.0))
            self._labels = self._map(LABELS, record_type(manifest), data["tokens"])
            self._offsets = self._map(OFFSETS, np.dtype("<i8"), self.sentences + 1)
            if checksums[OFFSETS] != [zlib.crc32(self._offsets.data)]:
                raise UserError(_damaged(folder, f"{OFFSETS} is not as it was written"))
            steps = np.diff(self._offsets, prepend=0, append=len(self._labels))
            self._blocks, self._checksums = all_blocks(self._offsets, manifest["block"]), list(checksums[LABELS])
            if steps[0] or steps[-1] or len(self._blocks) != len(self._checksums):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            raise UserError(_damaged(folder, f"{MANIFEST} is no manifest of these files")) from None

    def _map(self, name: str, kind: np.dtype, count: int) -> np.ndarray:
        path, expected = self.folder / name, count * kind.itemsize
        size = path.stat().st_size if path.is_file() else 0
        if size != expected:
            raise UserError(_damaged(self.folder, f"{name} has {size:,} bytes instead of {expected:,}"))
        return np.asarray(np.memmap(path, dtype=kind, mode="r"))

    def damage(self) -> str | None:
        """One line about the first block whose bytes are not those that were written, None where all are."""
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(lambda block: zlib.crc32(self._labels[block.start : block.stop].data), self._blocks)
            for block, checksum, written in zip(self._blocks, found, self._checksums, strict=True):
                if checksum != written:
                    place = f"sentences {block.first + 1} to {block.last} are not as they were written"
                    return _damaged(self.folder, place)
        return None

    def fetch(self, sentences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of records (B,) of sentences (B,), and these records (R,) one sentence after the other, as a copy."""
        counts, rows = rows_of(self._offsets, sentences)
        return counts, self._labels[rows]


def rows_of(offsets: np.ndarray, sentences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B,) number of rows of each sentence, and (R,) the numbers of these rows, one sentence after the other."""
    begins = offsets[sentences]
    counts = offsets[sentences + 1] - begins
    before = np.cumsum(counts) - counts
    return counts, np.arange(counts.sum()) + np.repeat(begins - before, counts)


def _damaged(folder: Path, what: str) -> str:
    return f"stored teacher outputs {folder}: {what}; remove the folder and store again"

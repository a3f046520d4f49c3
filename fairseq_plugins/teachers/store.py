"""Teacher outputs stored once: the format on disk, its writer and its reader. No fairseq in here.

A store is a folder about one split of one language pair:

    manifest.json   what it was made of, what it holds, and checksums of all of it; written last
    rows.bin        one record per target token (end of sentence included), sentence after sentence in the order of the
                    data set: k entries of the vocabulary, most probable first (the smallest unsigned integers that hold
                    them), their logits z (float16), and logsumexp(z / T) over the whole vocabulary for each temperature
                    T (float32). The largest z of a token is subtracted from all, which changes no probability and keeps
                    the digits of float16 where the probable entries are
    offsets.bin     N + 1 int64: sentence i owns rows offsets[i] to offsets[i + 1], none if the teacher cannot read it

All of it is little-endian and memory-mapped. A store is built as `DIR.partial` in blocks of whole sentences: each block
is on disk before it is marked as done, so a run that was killed goes on with the blocks that are missing, and several
processes share the work by taking blocks that no other one has locked. The folder is renamed to DIR when it is whole.

Whoever opens a store reads it once from end to end to compare checksums (CRC-32, about a gigabyte a second): every
training run starts with outputs known to be those that were written, and later batches need no further look.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import UserError

FORMAT = 1
# Target tokens of a block: seconds of work lost by a kill, and enough sentences to find many of one length.
BLOCK_TOKENS = 32_768
_LOWEST_FLOAT16 = -65_504.0
_SHOW_PROGRESS_FROM = 1 << 30


@dataclass(frozen=True)
class Source:
    """What a store is made of; two with equal entries hold the same outputs.

    Attributes:
        lang_pair: such as "en-de".
        split: of the data, such as "train".
        teacher: SHA-256 of the expert's checkpoint, of several for an ensemble.
        teacher_paths: where those files were.
        data: SHA-256 of the split's four binarized files.
        vocabulary: SHA-256 of the entries of the "source" and "target" dictionary.
        vocabulary_size: V_teacher, entries of the target dictionary.
        top_k: entries stored per token.
        temperatures: those with a log-sum-exp.
        precision: in which the expert ran: fp32, fp16 or bf16.
    """

    lang_pair: str
    split: str
    teacher: list[str]
    data: dict[str, str]
    vocabulary: dict[str, str]
    vocabulary_size: int
    top_k: int
    temperatures: list[float]
    precision: str
    teacher_paths: list[str] = field(default_factory=list, compare=False)

    def difference(self, other: Source) -> str | None:
        """The first entry that differs, as "top_k (8, now 16)"; None where all are equal."""
        for name, ours in asdict(self).items():
            theirs = getattr(other, name)
            if name != "teacher_paths" and ours != theirs:
                return f"{name} ({_brief(ours)}, now {_brief(theirs)})"
        return None


def _brief(value: Any) -> str:
    """A value short enough for one line: the beginning of hashes, and only that of all hashes of a kind together."""
    if isinstance(value, dict):
        value = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    values = value if isinstance(value, list) else [value]
    return ", ".join(item[:12] if isinstance(item, str) and len(item) == 64 else str(item) for item in values)


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


def hash_data(folder: Path, split: str, source_lang: str, target_lang: str) -> dict[str, str]:
    """SHA-256 of the files of one split in a folder written by fairseq-preprocess, by side and ending.

    Raises:
        UserError: they are not there.
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


def record_type(vocabulary_size: int, top_k: int, temperatures: int) -> np.dtype:
    """One token's record, without gaps: `indices` (k,), `logits` (k,), `log_sum_exp` (temperatures,)."""
    index = next(kind for kind in ("<u1", "<u2", "<u4") if vocabulary_size - 1 <= np.iinfo(kind).max)
    return np.dtype(
        [("indices", index, (top_k,)), ("logits", "<f2", (top_k,)), ("log_sum_exp", "<f4", (temperatures,))]
    )


def summarize(logits: Tensor, top_k: int, temperatures: list[float]) -> np.ndarray:
    """(R,) records of R tokens from their logits (R, V), in any precision; worked out in float32."""
    logits = logits.float()
    largest, indices = logits.topk(top_k, dim=-1)
    shift = largest[:, :1]
    records = np.empty(len(logits), record_type(logits.size(1), top_k, len(temperatures)))
    records["indices"] = indices.cpu().numpy()
    records["logits"] = (largest - shift).clamp_(min=_LOWEST_FLOAT16).half().cpu().numpy()
    shifted = logits - shift
    for column, temperature in enumerate(temperatures):
        scaled = shifted if temperature == 1 else shifted / temperature
        records["log_sum_exp"][:, column] = torch.logsumexp(scaled, dim=-1).cpu().numpy()
    return records


@dataclass(frozen=True)
class Block:
    """Sentences `first` to `last` (exclusive) and their rows `begin` to `end` (exclusive)."""

    first: int
    last: int
    begin: int
    end: int


def _blocks(offsets: np.ndarray, block_tokens: int) -> list[Block]:
    """Cuts the sentences into runs of `block_tokens` rows, or a little more: a sentence is never cut."""
    blocks, first, sentences = [], 0, len(offsets) - 1
    while first < sentences:
        last = min(int(np.searchsorted(offsets, offsets[first] + block_tokens)), sentences)
        # sentences without rows at the end belong to the last block
        if offsets[last] == offsets[-1]:
            last = sentences
        blocks.append(Block(first, last, int(offsets[first]), int(offsets[last])))
        first = last
    return blocks


def rows_of(offsets: np.ndarray, sentences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B,) number of rows of each sentence, and (R,) the numbers of these rows, one sentence after the other."""
    begins = offsets[sentences]
    counts = offsets[sentences + 1] - begins
    before = np.cumsum(counts) - counts
    return counts, np.arange(counts.sum()) + np.repeat(begins - before, counts)


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def _with_checksum(content: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**content, "sha256": digest}, indent=1) + "\n").encode()


def _read_json(path: Path) -> dict[str, Any]:
    """What `_with_checksum` made. Raises ValueError where a single character of it has changed."""
    text = path.read_bytes()
    content = json.loads(text)
    if not isinstance(content, dict) or content.pop("sha256", None) is None or _with_checksum(content) != text:
        raise ValueError("its checksum does not match")
    return content


def is_stored(output: Path, source: Source) -> bool:
    """Whether `output` is a whole store of exactly this. Raises UserError if it is or holds something else."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    held = StoredOutputs(output).source
    if difference := held.difference(source):
        raise UserError(f"{output} was stored with other {difference}: choose another --output, or remove it")
    return True


class StoreWriter:
    """Builds a store block by block; begins a new one or goes on with what an earlier run left.

    Processes forked after it was made share the work: each takes blocks by `claim`, which fails for those that another
    living process has taken. A context manager: at its end another run may go on with what is missing.

    Args:
        output: folder to make.
        source: what it will hold.
        lengths: (N,) rows of each sentence: target tokens with end of sentence, or 0.
        block_tokens: rows of a block.

    Raises:
        UserError: no sentence has rows, there is no room on the disk, another run is at it, or an earlier run was about
            something else.
    """

    def __init__(self, output: Path, source: Source, lengths: np.ndarray, block_tokens: int = BLOCK_TOKENS) -> None:
        self.output = output
        self.source = source
        self.offsets = np.zeros(len(lengths) + 1, dtype="<i8")
        np.cumsum(lengths, out=self.offsets[1:])
        if not self.tokens:
            raise UserError(f"{source.lang_pair} {source.split}: no sentence is short enough for the teacher")
        self.record_type = record_type(source.vocabulary_size, source.top_k, len(source.temperatures))
        self.blocks = _blocks(self.offsets, block_tokens)
        self._partial = output.with_name(output.name + ".partial")
        self._store = self._partial / "store"
        try:
            self._store.mkdir(parents=True, exist_ok=True)
            self._locks = os.open(self._partial / "locks", os.O_RDWR | os.O_CREAT)
        except OSError as problem:
            raise UserError(f"cannot write to {self._partial} ({problem.strerror}): check --output") from None
        if not self._lock(0):
            raise UserError(f"{output} is being stored by another process: wait for it or end it")
        self._begin(block_tokens)

    @property
    def tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def size(self) -> int:
        """Bytes on disk, but for the manifest."""
        return self.tokens * self.record_type.itemsize + self.offsets.nbytes

    def _lock(self, byte: int) -> bool:
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except OSError:
            return False
        return True

    def _begin(self, block_tokens: int) -> None:
        plan = {"format": FORMAT, "source": asdict(self.source), "block_tokens": block_tokens}
        path = self._partial / "plan.json"
        # without its rows the plan is what a run left that was killed after its store had got its name
        if path.exists() and (self._store / "rows.bin").exists():
            try:
                held = _read_json(path)
                difference = Source(**held["source"]).difference(self.source)
            except (ValueError, TypeError, KeyError):
                raise UserError(f"{path} is damaged: remove {self._partial} and store again") from None
            if held["format"] != FORMAT or held["block_tokens"] != block_tokens:
                difference = "software"
            if difference:
                raise UserError(
                    f"{self._partial} was begun with other {difference}: choose another --output, or remove it"
                )
            return
        for mark in self._partial.glob("block-*"):
            mark.unlink()
        try:
            with (self._store / "rows.bin").open("wb") as rows:
                # a full disk is found before hours of work
                os.posix_fallocate(rows.fileno(), 0, self.tokens * self.record_type.itemsize)
            _write_atomically(self._store / "offsets.bin", self.offsets.tobytes())
            _write_atomically(path, _with_checksum(plan))
        except OSError as problem:
            raise UserError(
                f"{self.output}: cannot reserve {self.size / 1e6:,.1f} MB ({problem.strerror}): make room, or choose "
                "another --output or a smaller --top-k"
            ) from None

    def _mark(self, block: int) -> Path:
        return self._partial / f"block-{block}.crc32"

    def _bytes_of(self, block: int) -> tuple[int, int]:
        """Position and number of a block's bytes in rows.bin."""
        begin, end = self.blocks[block].begin, self.blocks[block].end
        return begin * self.record_type.itemsize, (end - begin) * self.record_type.itemsize

    def is_done(self, block: int) -> bool:
        return self._mark(block).exists()

    def missing(self) -> list[int]:
        """Blocks still to be done. Those of an earlier run count only if they read back as they were written."""
        missing = []
        with (self._store / "rows.bin").open("rb") as rows:
            for block in range(len(self.blocks)):
                begin, size = self._bytes_of(block)
                rows.seek(begin)
                if self.is_done(block) and zlib.crc32(rows.read(size)) != int(self._mark(block).read_text() or "0", 16):
                    self._mark(block).unlink()
                if not self.is_done(block):
                    missing.append(block)
        return missing

    def claim(self, block: int) -> bool:
        """Takes a block for this process until it ends; False if another has it or it is done."""
        return self._lock(1 + block) and not self.is_done(block)

    def write(self, block: int, records: np.ndarray) -> None:
        """Puts a block's records, in the order of its sentences, on the disk and marks it as done."""
        content = records.astype(self.record_type, copy=False).tobytes()
        begin, size = self._bytes_of(block)
        if len(content) != size:
            raise ValueError(f"block {block} has {size} bytes, not {len(content)}")
        with (self._store / "rows.bin").open("r+b", buffering=0) as rows:
            rows.seek(begin)
            rows.write(content)
            os.fsync(rows.fileno())
        _write_atomically(self._mark(block), f"{zlib.crc32(content):08x}".encode())

    def finish(self) -> None:
        """Writes the manifest and gives the folder its name, once all blocks are done."""
        checksums = [self._mark(block).read_text() for block in range(len(self.blocks))]
        manifest = {
            "format": FORMAT,
            **asdict(self.source),
            "sentences": len(self.offsets) - 1,
            "tokens": self.tokens,
            "offsets_crc32": f"{zlib.crc32(self.offsets.tobytes()):08x}",
            "blocks": [
                {"tokens": block.end - block.begin, "crc32": checksum}
                for block, checksum in zip(self.blocks, checksums, strict=True)
            ],
        }
        _write_atomically(self._store / "manifest.json", _with_checksum(manifest))
        self._store.rename(self.output)
        shutil.rmtree(self._partial)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._locks)


class StoredOutputs:
    """A whole store, opened for reading and found undamaged.

    Raises:
        UserError: no store there, or it is truncated or has changed since it was written.

    Attributes:
        source: what it was made of.
        sentences: N.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = self._read_manifest()
        self.source = Source(**{name: manifest[name] for name in Source.__dataclass_fields__})
        self.sentences: int = manifest["sentences"]
        kind = record_type(self.source.vocabulary_size, self.source.top_k, len(self.source.temperatures))
        self._offsets = self._map("offsets.bin", np.dtype("<i8"), self.sentences + 1)
        self._rows = self._map("rows.bin", kind, manifest["tokens"])
        self._compare_checksums(manifest)

    def _read_manifest(self) -> dict[str, Any]:
        path = self.folder / "manifest.json"
        try:
            manifest = _read_json(path)
        except FileNotFoundError:
            begun = self.folder.with_name(self.folder.name + ".partial").exists()
            state = "begun, but not finished" if begun else "no manifest.json"
            raise UserError(
                f"no stored teacher outputs in {self.folder} ({state}): make them with "
                "scripts/nmt/store_teacher_outputs.py"
            ) from None
        except (OSError, ValueError) as problem:
            raise UserError(f"{path} is damaged ({problem}): remove {self.folder} and store again") from None
        if manifest["format"] != FORMAT:
            raise UserError(f"{path} has format {manifest['format']}, this software reads {FORMAT}: store again")
        return manifest

    def _damaged(self, problem: str) -> UserError:
        return UserError(f"stored teacher outputs {self.folder}: {problem}; remove the folder and store again")

    def _map(self, name: str, kind: np.dtype, count: int) -> np.ndarray:
        path = self.folder / name
        found = path.stat().st_size if path.is_file() else 0
        if found != count * kind.itemsize:
            raise self._damaged(f"{name} has {found:,} bytes where {count * kind.itemsize:,} were written")
        return np.asarray(np.memmap(path, dtype=kind, mode="r"))

    def _compare_checksums(self, manifest: dict[str, Any]) -> None:
        if f"{zlib.crc32(self._offsets.view(np.uint8)):08x}" != manifest["offsets_crc32"]:
            raise self._damaged("offsets.bin has changed since it was written (checksum)")
        begin, bytes_of_rows = 0, self._rows.view(np.uint8)
        with tqdm(
            total=len(bytes_of_rows),
            desc=f"checking {self.folder.name}",
            unit="B",
            unit_scale=True,
            disable=len(bytes_of_rows) < _SHOW_PROGRESS_FROM,
        ) as bar:
            for number, block in enumerate(manifest["blocks"]):
                end = begin + block["tokens"] * self._rows.itemsize
                if f"{zlib.crc32(bytes_of_rows[begin:end]):08x}" != block["crc32"]:
                    raise self._damaged(f"block {number} of rows.bin has changed since it was written (checksum)")
                bar.update(end - begin)
                begin = end

    def fetch(self, sentences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of some sentences.

        Args:
            sentences: (B,) their positions in the data set.

        Returns:
            (B,) number of rows of each, and (R,) their records one sentence after the other, a copy in memory.
        """
        counts, rows = rows_of(self._offsets, sentences)
        return counts, self._rows[rows]

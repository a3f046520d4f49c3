"""Runs an expert over one split of prepared data and stores what it says, on all cores or GPUs at once."""

from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from fairseq.data import LanguagePairDataset

from fairseq_plugins.files import hash_split, sha256_of_file, writing_to
from fairseq_plugins.teachers.expert import Teacher, load_teacher
from fairseq_plugins.teachers.store import (
    BLOCK,
    FORMAT,
    LABELS,
    OFFSETS,
    Block,
    Store,
    all_blocks,
    record_type,
    rows_of,
)
from fairseq_plugins.teachers.vocabularies import hash_vocabulary
from scripts.nmt.lib.decoder_features import ask, batches_of, open_references, rows_of_logits
from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.processes import devices, shared
from scripts.nmt.lib.progress import Progress
from scripts.nmt.lib.user_error import UserError
from vision_reference.soft_labels.codec import encode
from vision_reference.soft_labels.writer import Writer

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_NOT_FINITE = "the teacher's logits are not finite: it is damaged, or --precision does not suit it"


def store(
    data_bin: Path,
    pair: LangPair,
    teacher: str,
    output: Path,
    *,
    subset: str,
    top_k: int,
    temperatures: list[float],
    max_tokens: int,
    workers: int | None,
    cpu: bool,
    precision: str,
    block: int = BLOCK,
) -> None:
    """Make the store `output` (fairseq_plugins/teachers/store.py), or go on with it, or find it finished.

    Raises UserError, one line, for files and options that do not fit, and where a process failed.
    """
    seen = devices(workers, cpu)
    if not any(seen) and precision != "fp32":
        raise UserError(f"--precision {precision} needs a GPU; leave it out")
    references = open_references(data_bin, pair, subset)
    dataset, vocabulary, vocabulary_size = references.dataset, references.vocabulary, len(references.dictionary)
    if top_k > vocabulary_size:
        raise UserError(f"--top-k {top_k} is more than the {vocabulary_size} entries of {vocabulary.target_path}")
    expert, files = load_teacher(teacher, vocabulary), [Path(path) for path in teacher.split(":")]
    # sentences too long for the teacher have no records: as `Teacher.question` decides about them
    fits = (dataset.src_sizes < expert.max_source) & (dataset.tgt_sizes < expert.max_target)
    offsets = np.concatenate([[0], np.cumsum(np.where(fits, dataset.tgt_sizes, 0))]).astype("<i8")
    if not offsets[-1]:
        raise UserError(f"{pair} {subset}: no sentence is short enough for the teacher")
    plan = {
        "format": FORMAT,
        "teacher": {"weights_sha256": [sha256_of_file(path) for path in files], "precision": precision},
        "data": {
            "lang_pair": str(pair),
            "split": subset,
            "sentences": len(dataset),
            "tokens": int(offsets[-1]),
            "sha256": hash_split(data_bin, subset, *pair),
            "vocabulary_size": vocabulary_size,
            "vocabulary_sha256": hash_vocabulary(vocabulary.source_path, vocabulary.target_path),
        },
        "labels": {"top_k": top_k, "temperatures": temperatures},
        "block": block,
        "paths": [str(path.resolve()) for path in files],
        "label_smoothing": expert.label_smoothing,
        "versions": {name: metadata.version(name) for name in ("torch", "fairseq")},
    }
    with begin(output, plan, offsets) as writer:
        if writer.whole:
            if damage := Store(output).damage():
                raise UserError(damage)
            print(f"{output} is already stored with these settings")
            return
        skipped = int((np.diff(offsets) == 0).sum())
        print(
            f"{pair} {subset}: {len(dataset):,} sentence pairs, {offsets[-1]:,} target tokens, top {top_k} of "
            f"{vocabulary_size:,}: {offsets[-1] * record_type(plan).itemsize / 1e6:,.1f} MB on disk"
            + (f"; {skipped:,} too long for the teacher are left to their labels" if skipped else ""),
            flush=True,
        )
        _write_blocks(writer, Worker(plan, offsets, dataset, expert, max_tokens), seen)
        with writing_to(output, "--output"):
            writer.finish()
    print(f"stored {output}")


def begin(output: Path, plan: dict, offsets: np.ndarray) -> Writer:
    """The hand of this process on the store. Raises UserError where another has it, or it cannot be written."""
    size = record_type(plan).itemsize
    extents = [{LABELS: slice(one.start * size, one.stop * size)} for one in all_blocks(offsets, plan["block"])]
    with writing_to(output, "--output"):
        return Writer(output, plan, extents, {OFFSETS: offsets.tobytes()}, flag="--output")


def _write_blocks(writer: Writer, worker: "Worker", seen: list[str]) -> None:
    """Put all missing blocks into the store. Raises UserError if that fails."""
    left = [block for block in all_blocks(worker.offsets, worker.plan["block"]) if block.number not in writer.done]
    total = writer.plan["data"]["tokens"]
    with Progress("storing", total, "token") as progress:
        progress.skip(total - sum(map(len, left)))
        while left:
            # a process that is killed takes the others along; as long as blocks get done, new ones take their place
            with suppress(BrokenProcessPool), closing(shared(left, seen, worker.on)) as results:
                for block, records in results:
                    if isinstance(records, str):
                        raise UserError(records)
                    with writing_to(writer.folder, "--output"):
                        writer.write(block.number, {LABELS: records.tobytes()})
                    progress.add(len(block))
            before, left = len(left), [block for block in left if block.number not in writer.done]
            if len(left) == before:
                raise UserError("a process was killed before all was stored; run the same command again to go on")


@dataclass(frozen=True)
class Worker:
    """Asks the teacher about blocks of a store, in a process of its own."""

    plan: dict
    offsets: np.ndarray
    dataset: LanguagePairDataset
    teacher: Teacher
    max_tokens: int

    def on(self, device: str) -> Callable[[Block], np.ndarray | str]:
        """Takes the teacher to the GPU `device`, or the CPU where it is ""; what returns a block's records then.

        In place of records it returns the line that tells why there are none.
        """
        self.teacher.to(torch.device("cuda" if device else "cpu"), _DTYPES[self.plan["teacher"]["precision"]])

        def records(block: Block) -> np.ndarray | str:
            try:
                return self.records(block)
            except torch.cuda.OutOfMemoryError:
                return (
                    f"--max-tokens {self.max_tokens} is too much for the memory of GPU {device}; choose a smaller one"
                )
            except (UserError, OSError) as problem:
                return str(problem)

        return records

    def records(self, block: Block) -> np.ndarray:
        """(records of the block,) of its sentences one after the other."""
        records = np.empty(len(block), record_type(self.plan))
        present = np.arange(block.first, block.last)[np.diff(self.offsets[block.first : block.last + 1]) > 0]
        for sentences in batches_of(self.dataset, present, self.max_tokens):
            numbers, _, labels = ask(self.teacher, self.dataset, sentences)
            counts, places = rows_of(self.offsets, numbers)
            found = torch.bincount(labels.sentences, minlength=len(counts)).cpu().numpy()
            if (found != counts).any():
                wrong = int(numbers[np.flatnonzero(found != counts)[0]])
                raise UserError(
                    f"target sentence {wrong + 1} holds the padding symbol {self.dataset.tgt_dict.pad_word} as a word: "
                    "take it out of the text"
                )
            for rows, logits in rows_of_logits(labels, _NOT_FINITE):
                for name, part in encode(logits, **self.plan["labels"]).items():
                    records[name][places[rows] - block.start] = part.cpu().numpy()
        return records

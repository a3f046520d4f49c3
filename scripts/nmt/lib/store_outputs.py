"""Runs an expert over one split of prepared data and stores what it says, on all cores or GPUs at once."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from fairseq import utils
from fairseq.data import LanguagePairDataset
from fairseq.tasks.translation import load_langpair_dataset
from tqdm import tqdm

import fairseq_plugins.inference_only  # noqa: F401  without it fairseq 0.12.2 cannot run a loaded model on torch 2
from fairseq_plugins.losses.soft_labels import ProjectedLogits, SoftLabels
from fairseq_plugins.multilingual.language_tokens import LanguageTokens, Layout, batch_of
from fairseq_plugins.teachers.expert import Teacher, Vocabulary, load_teacher
from fairseq_plugins.teachers.store import (
    BLOCK_TOKENS,
    Source,
    StoreWriter,
    hash_data,
    is_stored,
    rows_of,
    sha256_of_file,
    summarize,
)
from fairseq_plugins.teachers.stored import hash_vocabulary
from fairseq_plugins.teachers.vocabularies import load_dictionary
from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.user_error import UserError

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_POLL_SECONDS = 0.2
# Tokens whose logits over the whole vocabulary are worked on at a time.
_ROWS = 1024


def store(
    data_bin: Path,
    pair: LangPair,
    teacher_paths: str,
    output: Path,
    *,
    subset: str,
    top_k: int,
    temperatures: list[float],
    max_tokens: int,
    workers: int | None,
    cpu: bool,
    precision: str,
    block_tokens: int = BLOCK_TOKENS,
) -> None:
    """Make the store `output` (fairseq_plugins/teachers/store.py), or go on with it, or find it finished.

    Raises the plugin's or the scripts' UserError, one line each, for files and options that do not fit, and where a
    process failed.
    """
    devices = _devices(workers, cpu)
    if devices == [""] * len(devices) and precision != "fp32":
        raise UserError(f"--precision {precision} needs a GPU; leave it out")
    dictionaries = [str(data_bin / f"dict.{language}.txt") for language in pair]
    vocabulary = Vocabulary(pair.source, pair.target, *dictionaries)
    vocabulary_size = len(load_dictionary(vocabulary.target_path))
    if top_k > vocabulary_size:
        raise UserError(f"--top-k {top_k} is more than the {vocabulary_size} entries of {vocabulary.target_path}")
    teacher = load_teacher(teacher_paths, vocabulary)
    files = [Path(path) for path in teacher_paths.split(":")]
    source = Source(
        lang_pair=str(pair),
        split=subset,
        teacher=[sha256_of_file(path) for path in files],
        data=hash_data(data_bin, subset, *pair),
        vocabulary=hash_vocabulary(vocabulary),
        vocabulary_size=vocabulary_size,
        top_k=top_k,
        temperatures=temperatures,
        precision=precision,
        teacher_paths=[str(path.resolve()) for path in files],
    )
    if is_stored(output, source):
        print(f"{output} is already stored with these settings")
        return
    dataset = _load_data(data_bin, subset, pair, vocabulary)
    with StoreWriter(output, source, _rows_of_sentences(dataset, teacher), block_tokens) as writer:
        skipped = int((np.diff(writer.offsets) == 0).sum())
        print(
            f"{pair} {subset}: {len(dataset):,} sentence pairs, {writer.tokens:,} target tokens, top {top_k} of "
            f"{vocabulary_size:,}: {writer.size / 1e6:,.1f} MB on disk"
            + (f"; {skipped:,} too long for the teacher are left to their labels" if skipped else ""),
            flush=True,
        )
        worker = Worker(writer, dataset, teacher, max_tokens, _DTYPES[precision])
        _work(worker, writer, devices)
        writer.finish()
    print(f"stored {output}")


def _devices(workers: int | None, cpu: bool) -> list[str]:
    """For each process the GPU it sees, or "" for the CPU."""
    gpus = 0 if cpu else torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")[:gpus] or [""]
    processes = workers or (gpus if gpus else len(os.sched_getaffinity(0)))
    return [names[number % len(names)] for number in range(processes)]


def _load_data(data_bin: Path, subset: str, pair: LangPair, vocabulary: Vocabulary) -> LanguagePairDataset:
    """One split, padded as `fairseq-train` does by default."""
    return load_langpair_dataset(
        data_path=str(data_bin),
        split=subset,
        src=pair.source,
        src_dict=load_dictionary(vocabulary.source_path),
        tgt=pair.target,
        tgt_dict=load_dictionary(vocabulary.target_path),
        combine=False,
        dataset_impl=None,
        upsample_primary=1,
        left_pad_source=True,
        left_pad_target=False,
        max_source_positions=sys.maxsize,
        max_target_positions=sys.maxsize,
    )


def _rows_of_sentences(dataset: LanguagePairDataset, teacher: Teacher) -> np.ndarray:
    """(N,) target tokens of each sentence, end of sentence included; 0 where it is too long for the teacher."""
    # as `Teacher.soft_labels` decides about them
    fits = (np.asarray(dataset.src_sizes) < teacher.max_source) & (np.asarray(dataset.tgt_sizes) < teacher.max_target)
    return np.where(fits, dataset.tgt_sizes, 0)


class Worker:
    """One process's share of the work: whatever blocks no other process has taken."""

    def __init__(
        self, writer: StoreWriter, dataset: LanguagePairDataset, teacher: Teacher, max_tokens: int, dtype: torch.dtype
    ) -> None:
        self.writer = writer
        self.dataset = dataset
        self.teacher = teacher
        self.max_tokens = max_tokens
        self.dtype = dtype
        self.layout = Layout(dataset.tgt_dict.pad(), dataset.tgt_dict.eos())

    def run(self, missing: list[int], device: str, failure: Connection) -> None:
        """The whole life of a process; sends one line over `failure` if it cannot do its work."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
        parent = os.getppid()
        torch.set_num_threads(1)  # the processes together use all cores
        if device:
            os.environ["CUDA_VISIBLE_DEVICES"] = device
        try:
            self.teacher.to(torch.device("cuda" if device else "cpu"), self.dtype)
            while missing:
                for block in missing:
                    if os.getppid() != parent:
                        return
                    if self.writer.claim(block):
                        self.writer.write(block, self.records(block))
                # what another process is at stays on the list: it may be killed before it is done
                missing = [block for block in missing if not self.writer.is_done(block)]
                time.sleep(_POLL_SECONDS if missing else 0)
        except torch.cuda.OutOfMemoryError:
            failure.send(
                f"--max-tokens {self.max_tokens} is too much for the memory of GPU {device}; choose a smaller one"
            )
            sys.exit(1)
        except (UserError, OSError) as problem:
            failure.send(str(problem))
            sys.exit(1)

    def records(self, block: int) -> np.ndarray:
        """(rows of the block,) records of its sentences one after the other."""
        records = np.empty(self.writer.blocks[block].end - self.writer.blocks[block].begin, self.writer.record_type)
        for sentences in self.batches(block):
            sample = self.dataset.collater([self.dataset[int(index)] for index in sentences])
            counts, rows = rows_of(self.writer.offsets, sample["id"].numpy())
            labels = self.ask(sample)
            found = torch.bincount(labels.sentences, minlength=len(counts)).cpu().numpy()
            if (found != counts).any():
                wrong = int(sample["id"][np.flatnonzero(found != counts)[0]])
                raise UserError(
                    f"target sentence {wrong + 1} holds the padding symbol {self.dataset.tgt_dict.pad_word} as a word: "
                    "take it out of the text"
                )
            records[rows - self.writer.blocks[block].begin] = self.summaries(labels)
        return records

    def batches(self, block: int) -> Iterator[np.ndarray]:
        """The block's sentences, those of similar length together; one above `max_tokens` is a batch of its own."""
        source_sizes, target_sizes = self.dataset.src_sizes, self.dataset.tgt_sizes
        sentences = np.arange(self.writer.blocks[block].first, self.writer.blocks[block].last)
        sentences = sentences[np.diff(self.writer.offsets)[sentences] > 0]
        sentences = sentences[np.lexsort((source_sizes[sentences], target_sizes[sentences]))]
        begin, longest = 0, 0
        for end, sentence in enumerate(sentences):
            longest = max(longest, source_sizes[sentence], target_sizes[sentence])
            if end > begin and longest * (end - begin + 1) > self.max_tokens:
                yield sentences[begin:end]
                begin, longest = end, max(source_sizes[sentence], target_sizes[sentence])
        yield sentences[begin:]

    def ask(self, sample: dict) -> SoftLabels:
        """The teacher about a batch, in the order of its rows."""
        if next(self.teacher.members.parameters()).is_cuda:
            sample = utils.move_to_cuda(sample)
        batch = batch_of(sample)
        everyone = torch.arange(len(batch), device=batch.target.device)
        return self.teacher.soft_labels(batch, everyone, self.layout, LanguageTokens())

    def summaries(self, labels: SoftLabels) -> np.ndarray:
        """(R,) records of the tokens that the teacher spoke about."""
        parts = []
        for begin in range(0, len(labels.positions), _ROWS):
            logits = labels.logits[begin : begin + _ROWS]
            logits = logits.dense() if isinstance(logits, ProjectedLogits) else logits
            parts.append(summarize(logits, self.writer.source.top_k, self.writer.source.temperatures))
        return np.concatenate(parts)


def _work(worker: Worker, writer: StoreWriter, devices: list[str]) -> None:
    """Run one process per device until all blocks are done. Raises UserError if some are not, in the end."""
    missing = writer.missing()
    fork = multiprocessing.get_context("fork")  # shares the loaded teacher and the imported fairseq
    processes, failures = [], []
    for device in devices[: len(missing)]:
        failure, sender = fork.Pipe(duplex=False)
        processes.append(fork.Process(target=worker.run, args=(missing, device, sender), daemon=True))
        failures.append(failure)
        processes[-1].start()
        sender.close()
    with tqdm(
        total=writer.tokens,
        initial=writer.tokens - sum(writer.blocks[block].end - writer.blocks[block].begin for block in missing),
        unit="token",
        unit_scale=True,
        file=sys.stdout,
        mininterval=1 if sys.stdout.isatty() else 30,
    ) as bar:
        try:
            alive = True
            while alive:
                alive = any(process.is_alive() for process in processes)
                for block in [block for block in missing if writer.is_done(block)]:
                    bar.update(writer.blocks[block].end - writer.blocks[block].begin)
                    missing.remove(block)
                time.sleep(_POLL_SECONDS if alive else 0)
        finally:
            for process in processes:
                process.terminate()
    if missing:
        raise UserError(_reason(processes, failures))


def _reason(processes: list[multiprocessing.Process], failures: list[Connection]) -> str:
    """Why blocks are missing although no process is left."""
    for failure in failures:
        with contextlib.suppress(EOFError):  # it ended without a word
            if failure.poll():
                return failure.recv()
    statuses = sorted({process.exitcode for process in processes if process.exitcode})
    ended = " and ".join(f"by signal {-status}" if status < 0 else f"with status {status}" for status in statuses)
    return f"processes ended {ended} before all was stored; run the same command again to go on"

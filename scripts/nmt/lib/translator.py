"""Translates lines of plain text as `fairseq-generate` would: same task, same search, same words.

One model, loaded once, works in as many processes as there are GPUs or cores.
"""

import ctypes
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.parallel_text import clean
from scripts.nmt.lib.recorded_model import Recorded, Vocabulary, build_model, build_task
from scripts.nmt.lib.user_error import UserError

# Source tokens and sentences of a batch. fairseq-generate takes 12,000 tokens; smaller ones are as fast on a CPU.
MAX_TOKENS = 4096
MAX_SENTENCES = 128
# fairseq's --max-len-b: a translation that is this long did not come to an end.
MAX_PIECES = 200


def load_sentencepiece(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Raises UserError if there is no sentencepiece model at `path`."""
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError):
        raise UserError(f"{path} is no sentencepiece model; give the spm.model of the training data") from None


@dataclass(frozen=True)
class Translation:
    """One line's: `text` on one line; `pieces` as the model wrote it; `problem` where there is none to have."""

    text: str
    pieces: int = 0
    problem: str | None = None

    @property
    def is_cut(self) -> bool:
        """Whether the model did not come to an end."""
        return self.pieces >= MAX_PIECES - 1


def too_long(pieces: int, max_source: int) -> Translation:
    """Of a line that a model of `max_source` positions cannot read: two are the language token's and the end's."""
    return Translation("", problem=f"{pieces:,} pieces, the model reads at most {max_source - 2:,}")


class Translator:
    """A model that translates one language pair.

    Args:
        recorded: the checkpoint as read; its weights are used as they are.
        vocabulary: dictionaries and sentencepiece model, see `find_vocabulary`.
        beam: of the beam search, as in `fairseq-generate --beam`.

    Raises:
        UserError: dictionaries, weights and options do not fit together.
    """

    def __init__(self, recorded: Recorded, pair: LangPair, vocabulary: Vocabulary, beam: int = 5) -> None:
        from fairseq import utils
        from fairseq.dataclass.configs import FairseqConfig, GenerationConfig

        self.pair = pair
        self.sentencepiece = load_sentencepiece(vocabulary.sentencepiece)
        self.task = build_task(recorded, pair, vocabulary.dictionaries)
        self.model = build_model(recorded, self.task)
        config = FairseqConfig()
        config.generation = GenerationConfig(beam=beam)
        self.model.prepare_for_inference_(config)
        self.generator = self.task.build_generator([self.model], config.generation)
        self.max_positions = utils.resolve_max_positions(self.task.max_positions(), self.model.max_positions())
        self.device = "cpu"

    def to_gpu(self) -> None:
        self.model.cuda()
        self.device = "cuda"

    def translate(self, lines: list[str]) -> list[Translation]:
        """One translation for each line: empty for an empty one, with `problem` for one that is too long."""
        encoded = [self.encode(line) for line in lines]
        limit = self.max_positions if isinstance(self.max_positions, int) else self.max_positions[0]
        # one position is kept free for a language token
        found = {}
        for number, tokens in enumerate(encoded):
            if len(tokens) == 1:  # nothing but the end of the sentence
                found[number] = Translation("")
            elif len(tokens) >= limit:
                found[number] = too_long(len(tokens) - 1, limit)
        wanted = [number for number in range(len(lines)) if number not in found]
        if wanted:
            pieces = self._search([encoded[number] for number in wanted])
            found |= {
                number: Translation(clean(self.sentencepiece.decode(words)), len(words))
                for number, words in zip(wanted, pieces, strict=True)
            }
        return [found[number] for number in range(len(lines))]

    def encode(self, line: str):
        """(pieces + 1,) int64, the end of the sentence last."""
        pieces = " ".join(self.sentencepiece.encode(clean(line), out_type=str))
        return self.task.source_dictionary.encode_line(pieces, add_if_not_exist=False).long()

    def _search(self, sentences: list) -> list[list[str]]:
        """The pieces of each sentence's best hypothesis."""
        import torch
        from fairseq import utils
        from fairseq_cli.generate import get_symbols_to_strip_from_output

        lengths = torch.tensor([len(tokens) for tokens in sentences])
        dataset = self.task.build_dataset_for_inference(sentences, lengths)
        batches = dataset.batch_by_size(
            dataset.ordered_indices(),
            max_tokens=MAX_TOKENS,
            max_sentences=MAX_SENTENCES,
            required_batch_size_multiple=8,
        )
        dropped = get_symbols_to_strip_from_output(self.generator)
        found = {}
        for batch in batches:
            sample = dataset.collater([dataset[int(index)] for index in batch])
            sample = utils.move_to_cuda(sample) if self.device == "cuda" else sample
            with torch.inference_mode():
                hypotheses = self.task.inference_step(self.generator, [self.model], sample)
            for index, (best, *_) in zip(sample["id"].tolist(), hypotheses, strict=True):
                words = self.task.target_dictionary.string(best["tokens"].int().cpu(), extra_symbols_to_ignore=dropped)
                found[index] = words.split()
        return [found[index] for index in range(len(sentences))]


def devices(cpu: bool = False) -> list[str]:
    """For each process the GPU that it sees, or "" for the CPU: one process for each GPU, or for each core."""
    import torch

    gpus = 0 if cpu else torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")[:gpus]
    return names if gpus else [""] * len(os.sched_getaffinity(0))


def translate_blocks(
    translator: Translator, blocks: Iterable[list[str] | None], places: list[str]
) -> Iterator[list[Translation]]:
    """The translations of each block of lines, in order, worked on by one process for each of `places` (`devices`).

    Blocks are taken as they are needed. `None` among them says that the next one may be long in coming: all before it
    are finished first.

    Raises:
        UserError: a process ended before its work was done.
    """
    if places == [""]:
        yield from (translator.translate(block) for block in blocks if block is not None)
        return
    fork = multiprocessing.get_context("fork")  # shares the loaded model and the imported fairseq
    queue = fork.SimpleQueue()
    for place in places:
        queue.put(place)
    others = set(multiprocessing.active_children())
    pending: deque[Future] = deque()
    pool = ProcessPoolExecutor(len(places), fork, _start_worker, (translator, queue))
    try:
        for block in blocks:
            if block is not None:
                pending.append(pool.submit(_translate, block))
            while pending and (block is None or len(pending) > 2 * len(places)):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise UserError("a process was ended before its work was done, by want of memory or by a signal") from None
    finally:
        workers = set(multiprocessing.active_children()) - others
        pool.shutdown(wait=False, cancel_futures=True)
        for process in workers:
            process.terminate()
        for process in workers:  # which hold whatever files and locks were open when they began
            process.join(timeout=10)


_translator: Translator


def _start_worker(translator: Translator, queue) -> None:
    import torch

    global _translator  # one for the life of the process, which came with the fork
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with_parent()
    torch.set_num_threads(1)  # the processes together use all cores
    place = queue.get()
    _translator = translator
    if place:
        os.environ["CUDA_VISIBLE_DEVICES"] = place
        _translator.to_gpu()


def _end_with_parent() -> None:
    """Let the kernel end this process when the parent is killed: it would wait for work, and hold locks, for ever."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):  # another system than Linux
        return


def _translate(block: list[str]) -> list[Translation]:
    return _translator.translate(block)


def in_blocks(lines: Iterable[str], size: int) -> Iterator[list[str]]:
    block: list[str] = []
    for line in lines:
        block.append(line)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block

"""Translates prepared data with stock `fairseq-generate`, on all cores or GPUs at once."""

import logging
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import sentencepiece
from tqdm import tqdm

from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.user_error import UserError

_ROOT = Path(__file__).resolve().parents[3]
_BILINGUAL = ("translation", "translation_kd")
_MULTILINGUAL = ("translation_multi_simple_epoch", "multilingual_translation_kd")


@dataclass(frozen=True)
class Job:
    """One process: the share `shard` of `shards` of one pair's sentences."""

    pair: LangPair
    shard: int
    shards: int


def import_fairseq() -> None:
    """Import fairseq, which takes seconds and so waits until the arguments are found good."""
    logging.disable(logging.INFO)  # it reports on import that a board for audio tasks is not installed
    import fairseq_cli.generate  # noqa: F401

    logging.disable(logging.NOTSET)
    if str(_ROOT) not in sys.path:
        sys.path.insert(0, str(_ROOT))  # scripts run from a plain clone
    # The cure without which fairseq 0.12.2 cannot translate on torch 2.
    import fairseq_plugins.inference_only  # noqa: F401


def read_task(checkpoint: Path) -> dict[str, Any]:
    """The task options stored in a checkpoint. Nothing in the file is executed; UserError if it is no checkpoint."""
    if not checkpoint.is_file():
        raise UserError(f"no checkpoint at {checkpoint}; give a .pt file written by fairseq-train")
    import_fairseq()
    from fairseq_plugins.teachers.safe_checkpoint import read_checkpoint

    state = read_checkpoint(str(checkpoint))
    task = (state.get("cfg") or {}).get("task") or state.get("args")
    return task if isinstance(task, dict) else vars(task)


def task_arguments(task: dict[str, Any], pairs: list[LangPair], checkpoint: Path) -> list[str]:
    """The options that make stock fairseq-generate read the data as the model was trained to.

    Raises UserError if the model was not trained on one of `pairs`, or on another task than ours and fairseq's two.
    """
    name = task.get("_name") or task.get("task")
    if name in _BILINGUAL:
        known = [f"{task['source_lang']}-{task['target_lang']}"]
        arguments = ["--task", "translation"]
    elif name in _MULTILINGUAL:
        known = _as_list(task["lang_pairs"])
        arguments = ["--task", "translation_multi_simple_epoch", "--lang-pairs", ",".join(known)]
        if task.get("langs"):
            arguments += ["--langs", ",".join(_as_list(task["langs"]))]
        if task.get("encoder_langtok"):
            arguments += ["--encoder-langtok", task["encoder_langtok"]]
        if task.get("decoder_langtok"):
            arguments += ["--decoder-langtok"]
    else:
        raise UserError(f"{checkpoint} was trained on task {name}; allowed are {', '.join(_BILINGUAL + _MULTILINGUAL)}")
    for pair in pairs:
        if str(pair) not in known:
            raise UserError(f"{checkpoint} was trained on {', '.join(known)}, not on {pair}; name only these pairs")
    return arguments


def _as_list(value: str | list[str]) -> list[str]:
    return value.split(",") if isinstance(value, str) else list(value)


def plan_jobs(pairs: list[LangPair], workers: int) -> list[Job]:
    """As many shards of every pair as it takes to keep `workers` processes busy."""
    shards = -(-workers // len(pairs))
    return [Job(pair, shard, shards) for pair in pairs for shard in range(shards)]


def generate_arguments(
    data_bin: Path, checkpoint: Path, arguments: list[str], job: Job, subset: str, beam: int
) -> list[str]:
    """The command line of fairseq-generate for one job."""
    command = [str(data_bin), "--path", str(checkpoint), *arguments]
    command += ["--source-lang", job.pair.source, "--target-lang", job.pair.target]
    command += ["--gen-subset", subset, "--beam", str(beam), "--num-workers", "0", "--no-progress-bar"]
    # fairseq-generate takes its share of the data from these two and starts no communication for them.
    command += ["--distributed-world-size", str(job.shards), "--distributed-rank", str(job.shard)]
    return command


def _start_worker(devices: SimpleQueue) -> None:
    import torch

    # One thread each: the workers together use all cores.
    torch.set_num_threads(1)
    device = devices.get()
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device


def run_generate(command: list[str], folder: Path) -> str:
    """Run fairseq-generate in this worker process, with all it says in `folder`; returns the lines of its result."""
    from fairseq import options
    from fairseq_cli import generate

    folder.mkdir()
    with (folder / "log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    logging.getLogger().handlers.clear()  # fairseq logs to the result file of its first run, which is closed by now
    parser = options.get_generation_parser()
    generate.main(options.parse_args_and_arch(parser, [*command, "--results-path", str(folder)]))
    (output,) = folder.glob("generate-*.txt")
    return output.read_text(encoding="utf-8")


def read_hypotheses(output: str) -> dict[int, str]:
    """Sentence number (from 0) -> space-separated pieces, from the `H-` lines of fairseq-generate."""
    found = {}
    for line in output.split("\n"):
        if line.startswith("H-"):
            number, _, pieces = line[2:].split("\t", 2)
            found[int(number)] = pieces
    return found


def decode(pieces: dict[int, str], model: sentencepiece.SentencePieceProcessor, sentences: int) -> list[str]:
    """Pieces to plain text in the order of the data. Raises UserError if a sentence is missing."""
    missing = next((number for number in range(sentences) if number not in pieces), None)
    if missing is not None:
        raise UserError(
            f"fairseq-generate left out sentence {missing + 1} of {sentences}; it is longer than the model allows"
        )
    return [model.decode(pieces[number].split()) for number in range(sentences)]


def translate(
    data_bin: Path, checkpoint: Path, pairs: list[LangPair], subset: str, beam: int
) -> dict[LangPair, dict[int, str]]:
    """Every sentence's best hypothesis in pieces, by pair and sentence number.

    One process per GPU or, without one, per core. Raises UserError with the reason if fairseq fails.
    """
    arguments = task_arguments(read_task(checkpoint), pairs, checkpoint)
    import torch

    gpus = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")[:gpus]
    if not gpus:
        names = [""] * len(os.sched_getaffinity(0))
        arguments = [*arguments, "--cpu"]
    # Forks share the imported fairseq, which takes longer to import than a small test set takes to translate.
    fork = multiprocessing.get_context("fork")
    devices = fork.SimpleQueue()
    for name in names:
        devices.put(name)
    jobs = plan_jobs(pairs, len(names))
    found: dict[LangPair, dict[int, str]] = {pair: {} for pair in pairs}
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(len(names), fork, _start_worker, (devices,)) as pool,
    ):
        running = [
            pool.submit(
                run_generate,
                generate_arguments(data_bin, checkpoint, arguments, job, subset, beam),
                Path(folder) / f"{job.pair}.{job.shard}",
            )
            for job in jobs
        ]
        for job, result in zip(jobs, tqdm(running, desc="translating", unit="part"), strict=True):
            try:
                output = result.result()
            except (Exception, SystemExit) as error:
                pool.shutdown(cancel_futures=True)
                raise UserError(f"fairseq-generate failed for {job.pair}: {type(error).__name__}: {error}") from None
            found[job.pair].update(read_hypotheses(output))
    return found

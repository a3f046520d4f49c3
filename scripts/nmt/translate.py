"""Translates prepared data with stock `fairseq-generate`, on all cores or GPUs at once."""

import os
import queue
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from lang_pair import LangPair
from tqdm import tqdm
from user_error import UserError

_ROOT = Path(__file__).resolve().parents[2]
# Holds only the cure without which fairseq 0.12.2 cannot translate on torch 2.
_USER_DIR = _ROOT / "fairseq_plugins" / "inference_only"
_BILINGUAL = ("translation", "translation_kd")
_MULTILINGUAL = ("translation_multi_simple_epoch", "multilingual_translation_kd")


@dataclass(frozen=True)
class Job:
    """One process: the share `shard` of `shards` of one pair's sentences."""

    pair: LangPair
    shard: int
    shards: int


def read_task(checkpoint: Path) -> dict[str, Any]:
    """The task options stored in a checkpoint. Nothing in the file is executed; UserError if it is no checkpoint."""
    sys.path.insert(0, str(_ROOT))
    from fairseq_plugins.safe_checkpoint import read_checkpoint

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


def generate_command(
    data_bin: Path, checkpoint: Path, arguments: list[str], job: Job, subset: str, beam: int
) -> list[str]:
    command = [sys.executable, "-m", "fairseq_cli.generate", str(data_bin), "--user-dir", str(_USER_DIR)]
    command += ["--path", str(checkpoint), *arguments]
    command += ["--source-lang", job.pair.source, "--target-lang", job.pair.target]
    command += ["--gen-subset", subset, "--beam", str(beam), "--num-workers", "0", "--no-progress-bar"]
    # fairseq-generate takes its share of the data from these two and starts no communication for them.
    command += ["--distributed-world-size", str(job.shards), "--distributed-rank", str(job.shard)]
    return command


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

    One process per GPU or, without one, per core. Raises UserError with fairseq's last line if a process fails.
    """
    arguments = task_arguments(read_task(checkpoint), pairs, checkpoint)
    gpus = torch.cuda.device_count()
    slots: queue.SimpleQueue[str] = queue.SimpleQueue()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    workers = gpus or len(os.sched_getaffinity(0))
    for name in visible[:gpus] if gpus else [""] * workers:
        slots.put(name)

    def run(job: Job) -> dict[int, str]:
        device = slots.get()
        try:
            command = generate_command(data_bin, checkpoint, arguments, job, subset, beam)
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": device}
            if not gpus:
                command.append("--cpu")
                environment["OMP_NUM_THREADS"] = "1"
            done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", errors="replace")
        finally:
            slots.put(device)
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise UserError(f"fairseq-generate failed for {job.pair}: {last}")
        return read_hypotheses(done.stdout)

    jobs = plan_jobs(pairs, workers)
    found: dict[LangPair, dict[int, str]] = {pair: {} for pair in pairs}
    with ThreadPoolExecutor(max_workers=workers) as pool:
        results = tqdm(pool.map(run, jobs), total=len(jobs), desc="translating", unit="part", mininterval=1)
        for job, hypotheses in zip(jobs, results, strict=True):
            found[job.pair].update(hypotheses)
    return found

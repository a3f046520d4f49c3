"""What a teacher costs while a student is trained: the words a second and the memory of real fairseq-train runs.

    python scripts/bench/translation.py --data data/multi30k --experts results/multi30k/experts-0.1 \\
        --teacher-outputs results/multi30k/outputs-0.1 --json figures.json

Runs the commands that train_student.sh would run, with its hyper-parameters from the environment (ENCODER_LAYERS=2 and
so on); further arguments go to fairseq-train as they are. What is missing in --teacher-outputs is stored first.

  plain     on labels alone: stock fairseq, multilingual, label-smoothed cross entropy
  online    the experts run along
  stored    their stored outputs take their place
  teacher   the experts' forward pass alone, up to the logits, on the same batches: what online cannot do without

Every round runs all four, each in a process of its own and in changing order, so that a machine that slows down slows
all of them down; ratios are taken within a round. The first updates of a run are not counted. No checkpoint is written.

Aims: stored at least 0.97 times as fast as plain, online at least 0.95 times as fast as plain and teacher one after the
other.
"""

import argparse
import json
import logging
import multiprocessing
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from multiprocessing.connection import Connection
from pathlib import Path

from tqdm import tqdm

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.nmt.lib.user_error import UserError, run_cli
from vision_reference.analysis.flags import new_file
from vision_reference.errors import Parser

WAYS = ("plain", "online", "stored", "teacher")
BARS = {"stored_over_plain": 0.97, "online_over_allowed": 0.95}
_ROOT = Path(__file__).resolve().parents[2]
_STUDENT = _ROOT / "scripts" / "nmt" / "train_student.sh"
# as in common.sh; glibc reads them when a process starts
_KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "8589934592", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


@dataclass(frozen=True)
class Run:
    """One run's counted updates; `peak_mb` is of the whole process, on CUDA of the tensors there."""

    words: int
    seconds: float
    cpu_seconds: float
    peak_mb: float

    @property
    def words_per_second(self) -> float:
        return self.words / self.seconds


def get_args_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder made by prepare.py")
    parser.add_argument("--experts", type=Path, required=True, metavar="DIR", help="folder made by train_experts.sh")
    parser.add_argument(
        "--teacher-outputs", type=Path, required=True, metavar="DIR", help="folder of their stored predictions"
    )
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--updates", type=int, default=40, help="counted updates of each run (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=10, help="updates before these (default: %(default)s)")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write setting, measurements and summary here")
    return parser


def commands(args: argparse.Namespace, further: list[str]) -> tuple[list[list[str]], dict[str, list[str]]]:
    """What train_student.sh would run: the commands that store outputs, and the training command of each way.

    Raises UserError with the script's own line if it refuses.
    """
    experts = {"EXPERTS": str(args.experts)}
    settings = {"plain": {}, "online": experts, "stored": {**experts, "TEACHER_OUTPUTS": str(args.teacher_outputs)}}
    common = {"DATA": str(args.data), "OUT": "unused", "DRY_RUN": "1"}
    unset = ("EXPERTS", "TEACHERS", "TEACHER_OUTPUTS")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    storing, training = [], {}
    for way, setting in settings.items():
        done = subprocess.run(
            ["bash", str(_STUDENT), *further], env={**inherited, **common, **setting}, capture_output=True, text=True
        )
        if done.returncode:
            raise UserError((done.stderr.strip().splitlines() or ["train_student.sh failed"])[-1])
        *before, training[way] = [shlex.split(line) for line in done.stdout.splitlines()]
        storing += before
    training["teacher"] = training["online"]
    return storing, training


def import_training() -> None:
    """Import fairseq-train, but not the plugin's tasks: each run imports them, as --user-dir does for a user."""
    logging.disable(logging.INFO)  # it reports on import that a board for audio tasks is not installed
    import fairseq_cli.train  # noqa: F401

    logging.disable(logging.NOTSET)


def measure(way: str, command: list[str], warmup: int, updates: int, log: Path) -> Run:
    """Train in a process of its own. Raises UserError with the end of its output if it fails."""
    fork = multiprocessing.get_context("fork")  # shares the imported fairseq
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_train, args=(way, command, warmup, updates, log, sender))
    process.start()
    sender.close()
    try:
        run = receiver.recv()
    except EOFError:
        last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
        raise UserError(f"fairseq-train ({way}) ended before {warmup + updates} updates: {last}") from None
    finally:
        process.join()
    return run


def _train(way: str, command: list[str], warmup: int, updates: int, log: Path, sender: Connection) -> None:
    """fairseq-train with a clock around its updates; leaves the process after the last one that counts."""
    from fairseq.tasks import import_tasks
    from fairseq.trainer import Trainer
    from fairseq_cli.train import cli_main

    with log.open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    step = _teacher_step if way == "teacher" else Trainer.train_step
    Trainer.train_step = _clocked(step, warmup, updates, sender)
    with tempfile.TemporaryDirectory() as folder:
        forever = ["--max-update", str(warmup + updates + 1), "--max-epoch", str(warmup + updates + 1)]
        quiet = ["--no-save", "--disable-validation", "--log-interval", "1000000", "--save-dir", folder]
        sys.argv = [*command, *forever, *quiet]
        # fairseq passes over the tasks of a user-dir of which a module is imported already, as that of its errors is
        import_tasks(str(_ROOT / "fairseq_plugins" / "tasks"), "fairseq_plugins.tasks")
        cli_main()


def _clocked(step: Callable, warmup: int, updates: int, sender: Connection) -> Callable:
    import torch

    done, words, begin, cpu_begin = 0, 0, 0.0, 0.0

    def clocked(trainer, samples, *args, **kwargs):
        nonlocal done, words, begin, cpu_begin
        on_gpu = trainer.device.type == "cuda"
        if done == warmup:
            if on_gpu:
                torch.cuda.synchronize()
            words, begin, cpu_begin = 0, time.perf_counter(), time.process_time()
        result = step(trainer, samples, *args, **kwargs)
        done += 1
        words += sum(int(sample["ntokens"]) for sample in samples)
        if done == warmup + updates:
            if on_gpu:
                torch.cuda.synchronize()
            seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
            resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else resident
            sender.send(Run(words, seconds, cpu_seconds, peak))
            os._exit(0)  # nothing of the student is kept
        return result

    return clocked


def _teacher_step(trainer, samples: list[dict]) -> None:
    """All that the experts have to say about the batches of an update, and no student."""
    from fairseq_plugins.losses.soft_labels import ProjectedLogits

    for sample in samples:
        sample, _ = trainer._prepare_sample(sample)
        for labels in trainer.task.soft_labels(sample):
            if isinstance(labels.logits, ProjectedLogits):
                labels.logits.dense()


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest of `values`."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarize(runs: dict[str, list[Run]]) -> dict:
    """Words a second and memory of each way, and the ratios, each formed within a round."""
    per_word = {way: [run.seconds / run.words for run in of_way] for way, of_way in runs.items()}
    rounds = list(zip(*(per_word[way] for way in WAYS), strict=True))
    return {
        "words_per_second": {way: spread([run.words_per_second for run in of_way]) for way, of_way in runs.items()},
        "peak_mb": {way: spread([run.peak_mb for run in of_way]) for way, of_way in runs.items()},
        "stored_over_plain": spread([plain / stored for plain, _, stored, _ in rounds]),
        "online_over_plain": spread([plain / online for plain, online, _, _ in rounds]),
        "online_over_allowed": spread([(plain + teacher) / online for plain, online, _, teacher in rounds]),
    }


def report(summary: dict, args: argparse.Namespace) -> str:
    """The summary as a table with the ratios below."""
    lines = [
        f"{args.rounds} rounds of {args.updates} updates after {args.warmup}; medians, (smallest to largest)",
        "| way | target words/s | over plain | peak MB |",
        "|---|---|---|---|",
    ]
    plain = summary["words_per_second"]["plain"]["median"]
    over_plain = {"plain": "1"}
    for way in ("online", "stored"):
        over_plain[way] = "{median:.3f} ({min:.3f} to {max:.3f})".format(**summary[f"{way}_over_plain"])
    over_plain["teacher"] = f"{summary['words_per_second']['teacher']['median'] / plain:.3f}"
    for way in WAYS:
        rate = "{median:,.0f} ({min:,.0f} to {max:,.0f})".format(**summary["words_per_second"][way])
        lines.append(f"| {way} | {rate} | {over_plain[way]} | {summary['peak_mb'][way]['median']:,.0f} |")
    texts = {"stored_over_plain": "stored over plain", "online_over_allowed": "online over plain and teacher in turn"}
    for name, bar in BARS.items():
        ratio = summary[name]
        verdict = "reached" if ratio["median"] >= bar else "missed"
        lines.append(
            f"{texts[name]}: {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f}), aim {bar}: {verdict}"
        )
    return "\n".join(lines)


def main() -> None:
    args, further = get_args_parser().parse_known_args()
    for name in ("rounds", "updates"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} is below 1")
    if not _KEEP_FREED_MEMORY.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**_KEEP_FREED_MEMORY, **os.environ})
    storing, training = commands(args, further)
    for command in storing:
        if subprocess.run([sys.executable, *command[1:]]).returncode:
            raise UserError(f"could not store teacher outputs: {shlex.join(command)}")
    import_training()
    runs: dict[str, list[Run]] = {way: [] for way in WAYS}
    with tqdm(total=args.rounds * len(WAYS), unit="run") as bar, tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            first = number % len(WAYS)
            for way in WAYS[first:] + WAYS[:first]:
                bar.set_description(f"round {number + 1}/{args.rounds}, {way}")
                runs[way].append(measure(way, training[way], args.warmup, args.updates, Path(folder) / "log"))
                bar.update()
    summary = summarize(runs)
    print(report(summary, args))
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    share = min(run.cpu_seconds / run.seconds / threads for of_way in runs.values() for run in of_way)
    if "--cpu" in training["plain"] and share < 0.85:
        print(f"note: a run got only {100 * share:.0f} % of its {threads} threads' time; repeat when it is quiet")
    if args.json:
        record = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": {"cpus": os.cpu_count(), "threads": threads, "least_share_of_cores": share},
            "setting": {"rounds": args.rounds, "updates": args.updates, "warmup": args.warmup},
            "commands": {way: shlex.join(command) for way, command in training.items()},
            "runs": {way: [asdict(run) for run in of_way] for way, of_way in runs.items()},
        }
        args.json.write_text(json.dumps(record | summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_cli("translation.py", main)

"""The image part of the demo: does a smoothed teacher teach better, and at which temperature? On real digits, on a CPU.

    python scripts/demo/images.py

Trains a ResNet-18 teacher with label smoothing 0.0 and one with 0.1; from each a ShuffleNetV2 x0.5 at T = 1 and
T = 3 (a thirtieth of the parameters); and the same student on the labels alone. Interrupt it and run it again:
finished runs are not repeated, an unfinished one goes on with its next epoch.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tqdm import tqdm

from scripts.lib.alpha_t_table import cells_by_student, format_table

ROOT = Path(__file__).resolve().parents[2]
TEACHER, STUDENT = "resnet18", "shufflenet_v2_x0_5"
ALPHAS, TEMPERATURES = (0.0, 0.1), (1.0, 3.0)
SEED = 0
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Run:
    """One training of the demo.

    Attributes:
        role: teacher, student, or baseline (the student without a teacher).
        alpha: label smoothing of the teacher (of the baseline: its own).
        temperature: of the distillation; None without a teacher.
    """

    role: str
    model: str
    epochs: int
    alpha: float
    temperature: float | None = None

    @property
    def title(self) -> str:
        temperature = "" if self.temperature is None else f" T={self.temperature:g}"
        return f"{self.role} alpha={self.alpha:g}{temperature}"

    @property
    def folder(self) -> str:
        return self.title.replace("=", "").replace(" ", "_")

    def flags(self, data: Path, runs: Path) -> list[str]:
        """What ``train.py`` is called with."""
        flags = ["--data-path", str(data), "--preset", "digits", "--model", self.model, "--epochs", str(self.epochs)]
        flags += ["--output-dir", str(runs / self.folder), "--seed", str(SEED), "--device", "cpu"]
        flags += ["--workers", "0", "--batch-size", "64", "--lr-scheduler", "cosineannealinglr", "--print-freq", "100"]
        flags += ["--lr-warmup-epochs", "1", "--lr-warmup-per-step", "--lr", "0.05", "--wd", "5e-4"]
        if self.temperature is None:
            return [*flags, "--label-smoothing", str(self.alpha)]
        teacher = Run("teacher", TEACHER, 0, self.alpha)
        flags += ["--teacher", teacher.model, "--teacher-weights", str(runs / teacher.folder / "checkpoint.pth")]
        return [*flags, "--kd-temperature", str(self.temperature)]


def plan(teacher_epochs: int, student_epochs: int) -> list[Run]:
    """All runs, teachers first."""
    runs = [Run("teacher", TEACHER, teacher_epochs, alpha) for alpha in ALPHAS]
    runs += [Run("student", STUDENT, student_epochs, alpha, t) for alpha in ALPHAS for t in TEMPERATURES]
    return [*runs, Run("baseline", STUDENT, student_epochs, 0.0)]


def epoch_records(folder: Path) -> list[dict]:
    """Records of the epochs finished so far."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Training:
    """A run in a process of its own, or what is left of the run.

    Args:
        run: what to train.
        data, runs: folders of the images and of all runs.
        threads: for arithmetic.
    """

    def __init__(self, run: Run, data: Path, runs: Path, threads: int) -> None:
        self.run = run
        self.folder = runs / run.folder
        self.shown = 0
        self.process: subprocess.Popen | None = None
        flags = run.flags(data, runs)
        remembered = self.folder / "flags.json"
        if remembered.is_file() and json.loads(remembered.read_text()) != flags:
            shutil.rmtree(self.folder)  # left by a demo with other settings
        self.folder.mkdir(parents=True, exist_ok=True)
        remembered.write_text(json.dumps(flags))
        if len(epoch_records(self.folder)) == run.epochs and (self.folder / "checkpoint.pth").is_file():
            return
        command = [sys.executable, str(ROOT / "vision_reference" / "train.py"), *flags, "--resume", "auto"]
        with open(self.folder / "log.txt", "a") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def new_records(self) -> list[dict]:
        """Records of epochs that were finished since the last call."""
        records = epoch_records(self.folder)[self.shown :]
        self.shown += len(records)
        return records

    def stop(self) -> None:
        """End the process; its checkpoint stays."""
        if self.is_running:
            self.process.terminate()
            self.process.wait()

    def check(self) -> None:
        """End the demo with one line if the process failed."""
        if self.process is not None and self.process.returncode:
            log = self.folder / "log.txt"
            last = " ".join(log.read_text().strip().splitlines()[-1:])
            sys.exit(f"demo: {self.run.title} failed: {last} (see {log})")


def train_all(todo: list[Run], data: Path, runs: Path, bar: tqdm) -> None:
    """Train ``todo``, as many runs at a time as the machine has cores: networks this small gain little from more."""
    cores = len(os.sched_getaffinity(0))
    at_once = min(cores, len(todo))
    waiting, active = list(todo), []
    try:
        while waiting or active:
            while waiting and len(active) < at_once:
                active.append(Training(waiting.pop(0), data, runs, threads=cores // at_once))
            time.sleep(POLL_SECONDS)
            for training in list(active):
                running = training.is_running  # asked first: records written before the end are then all there
                for record in training.new_records():
                    bar.set_postfix_str(f"{training.run.title} {record['val_acc1']:.1f} %")
                    bar.update()
                if not running:
                    training.check()
                    active.remove(training)
                    last = epoch_records(training.folder)[-1]
                    bar.write(f"{training.run.title:<24} {training.run.model:<20} top-1 {last['val_acc1']:6.2f} %")
    finally:
        for training in active:
            training.stop()


def summarize(run: Run, runs: Path) -> dict:
    """The run's entry in ``summary.json``; accuracies are those of the last epoch, in percent."""
    records = epoch_records(runs / run.folder)
    return {
        "role": run.role,
        "model": run.model,
        "alpha": run.alpha,
        "temperature": run.temperature,
        "seed": SEED,
        "acc1": records[-1]["val_acc1"],
        "acc5": records[-1]["val_acc5"],
        "epochs": len(records),
        "seconds": round(sum(record["seconds"] for record in records), 1),
        "checkpoint": os.path.relpath(runs / run.folder / "checkpoint.pth", ROOT),
    }


def table(summary: list[dict]) -> str:
    """The paper's alpha x T table, and below it the student that had no teacher."""
    text = f"# Digits: {TEACHER} to {STUDENT}, top-1 / top-5 (%)\n\n"
    compared = [record for record in summary if record["role"] != "baseline"]
    text += format_table(cells_by_student(compared)[STUDENT], digits=2)
    baseline = next(record for record in summary if record["role"] == "baseline")
    text += f"\n\nThe same student on the labels alone: {baseline['acc1']:.2f} / {baseline['acc5']:.2f}.\n"
    text += (
        "360 validation images, one seed: differences below about three points are chance. "
        "The last epoch's accuracy counts, as in the paper.\n"
    )
    return text


def main() -> None:
    """Run the plan, write the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "demo" / "vision", metavar="DIR")
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs")
    parser.add_argument("--teacher-epochs", type=int, default=8)
    parser.add_argument("--student-epochs", type=int, default=10)
    args = parser.parse_args()
    if args.fresh:
        shutil.rmtree(args.output, ignore_errors=True)
    data, runs = args.output / "digits", args.output / "runs"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "demo" / "digits.py"), "--output", str(data)], check=True)
    todo = plan(args.teacher_epochs, args.student_epochs)
    with tqdm(total=sum(run.epochs for run in todo), unit="epoch", smoothing=0, desc="images") as bar:
        train_all([run for run in todo if run.role == "teacher"], data, runs, bar)
        train_all([run for run in todo if run.role != "teacher"], data, runs, bar)
    summary = [summarize(run, runs) for run in todo]
    (args.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    (args.output / "summary.md").write_text(table(summary))
    print("\n" + table(summary))
    print(f"written to {args.output}/summary.md and summary.json; checkpoints, metrics and logs in {runs}")


if __name__ == "__main__":
    # A stop signal unwinds like Ctrl-C does, so that no training goes on alone.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("demo: stopped; run it again to go on"))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ndemo: interrupted; run it again to go on where it stopped")

"""Runs training commands side by side; skips finished ones, lets interrupted ones go on, shows one progress line.

    python scripts/lib/jobs.py --jobs 2 -- DIR COMMAND... --- DIR COMMAND...

Every DIR gets `train.log` (what the command printed) and `run.json`: the command, the wall-clock and CPU seconds of all
its attempts together, and whether it finished. A DIR made by another command is refused, not overwritten; only the
value of --max-epoch may grow, which lets a finished run go on, and --user-dir may name another clone.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.nmt.lib.user_error import UserError, run_cli

_SEPARATOR = "---"
_POLL_SECONDS = 0.5


@dataclass
class Run:
    folder: Path
    command: list[str]
    record: dict = field(default_factory=dict)
    process: subprocess.Popen | None = None
    started: float = 0.0
    log_position: int = 0
    epochs_done: float = 0.0
    updates_done: int = 0
    loss: str = ""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def max_epoch(self) -> float:
        return max_epoch(self.command)

    @property
    def max_update(self) -> float:
        return float(_value_of("--max-update", self.command) or "inf")

    @property
    def share_done(self) -> float:
        """From 0 to 1; a training ends with its last epoch or its last update, whichever comes first."""
        return min(1.0, max(self.epochs_done / self.max_epoch, self.updates_done / self.max_update))

    @property
    def place(self) -> str:
        if self.updates_done / self.max_update > self.epochs_done / self.max_epoch:
            return f"update {self.updates_done}/{self.max_update:g}"
        return f"epoch {self.epochs_done:.1f}/{self.max_epoch:g}"


def split_runs(words: list[str]) -> list[Run]:
    """`DIR COMMAND... --- DIR COMMAND...` -> runs. Raises UserError if a part lacks its command."""
    groups: list[list[str]] = [[]]
    for word in words:
        if word == _SEPARATOR:
            groups.append([])
        else:
            groups[-1].append(word)
    if any(len(group) < 2 for group in groups):
        raise UserError(f"every run needs a folder and a command, separated by {_SEPARATOR}")
    return [Run(Path(group[0]), group[1:]) for group in groups]


def load_record(run: Run) -> dict:
    """What `run.json` says of earlier attempts, or a fresh record. Raises UserError if the command was another one."""
    try:
        record = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"command": run.command, "finished": False, "seconds": 0.0, "cpu_seconds": 0.0}
    except ValueError:
        raise UserError(f"{run.folder / 'run.json'} is damaged; remove the folder to train it again") from None
    before, now = settings(record["command"]), settings(run.command)
    if before != now:
        then, now = (" ".join(_only_in(*both)) for both in ((before, now), (now, before)))
        raise UserError(
            f"{run.folder} was trained with other settings (then: {then or '-'}; now: {now or '-'}); "
            "choose another folder or remove it"
        )
    # More epochs than last time make a finished run an unfinished one: the schedule does not depend on their number.
    # An unfinished one is judged by this attempt's number, be it smaller: that is what it will have when it is done.
    if not record["finished"] or run.max_epoch > max_epoch(record["command"]):
        record |= {"command": run.command, "finished": False}
    return record


def max_epoch(command: list[str]) -> float:
    """The value of --max-epoch, without which a run's progress is unknown and counts as one step."""
    return float(_value_of("--max-epoch", command) or 1)


def _value_of(option: str, command: list[str]) -> str | None:
    return command[command.index(option) + 1] if option in command else None


def settings(command: list[str]) -> list[str]:
    """The command without what may change from one attempt to the next: the epochs, and where the plugin lies."""
    kept = list(command)
    for option in ("--max-epoch", "--user-dir"):
        if option in kept:
            at = kept.index(option)
            del kept[at : at + 2]
    return kept


def _only_in(words: list[str], others: list[str]) -> list[str]:
    """The words, with the option each belongs to, that stand at no equal place in `others`."""
    pairs = list(zip(["", *words], words, strict=False))
    known = set(zip(["", *others], others, strict=False))
    return [
        f"{before} {word}" if before.startswith("--") else word for before, word in pairs if (before, word) not in known
    ]


def save_record(run: Run, **changes) -> None:
    run.record.update(changes)
    temporary = run.folder / "run.json.tmp"
    temporary.write_text(json.dumps(run.record, indent=2) + "\n", encoding="utf-8")
    temporary.replace(run.folder / "run.json")


def start(run: Run, threads: int) -> None:
    """Start the command with its output appended to train.log. Raises UserError if the folder is in use."""
    run.folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(run.folder / "lock", os.O_WRONLY | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        save_record(run)
        with (run.folder / "train.log").open("ab") as log:
            run.log_position = log.tell()
            # The command inherits the lock: the folder stays taken even if this process alone is killed.
            run.process = subprocess.Popen(
                run.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock],
                env={"OMP_NUM_THREADS": str(threads), **os.environ},
            )
    except BlockingIOError:
        raise UserError(f"{run.folder} is being trained by another process; wait for it or end it") from None
    except FileNotFoundError:
        raise UserError(f"command '{run.command[0]}' not found; set up with scripts/setup.sh first") from None
    finally:
        os.close(lock)
    run.started = time.monotonic()


def follow(run: Run) -> None:
    """Read what fairseq logged since the last call (--log-format json)."""
    with (run.folder / "train.log").open("rb") as log:
        log.seek(run.log_position)
        new = log.read()
    whole = new.rfind(b"\n") + 1
    run.log_position += whole
    for line in new[:whole].decode("utf-8", "replace").splitlines():
        if "| train_inner | " in line or "| train | " in line:
            stats = json.loads(line[line.index("{") :])
            run.epochs_done = float(stats.get("update", stats["epoch"]))
            run.updates_done = int(stats.get("num_updates", stats.get("train_num_updates", 0)))
            run.loss = stats.get("loss", stats.get("train_loss", ""))


def finish(run: Run) -> None:
    """Record the ended command's times. Raises UserError, with the log's last line, if it failed."""
    _, status, usage = os.wait4(run.process.pid, 0)
    code = run.process.returncode = os.waitstatus_to_exitcode(status)
    save_record(
        run,
        seconds=run.record["seconds"] + time.monotonic() - run.started,
        cpu_seconds=run.record["cpu_seconds"] + usage.ru_utime + usage.ru_stime,
        finished=code == 0,
    )
    run.process = None
    if code:
        lines = (run.folder / "train.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise UserError(
            f"{run.name} failed (exit status {code}): {lines[-1] if lines else 'no output'}; "
            f"see {run.folder / 'train.log'}"
        )


def has_ended(run: Run) -> bool:
    # WNOWAIT leaves the child for wait4, which alone tells its CPU time.
    return os.waitid(os.P_PID, run.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def run_all(runs: list[Run], jobs: int) -> None:
    waiting = deque(runs)
    running: list[Run] = []
    jobs = min(jobs, len(runs))
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    with tqdm(
        total=len(runs),
        unit="run",
        file=sys.stdout,
        mininterval=1 if sys.stdout.isatty() else 30,
        bar_format="{percentage:3.0f}% {elapsed}<{remaining} {postfix}",
    ) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    start(waiting[0], threads)
                    running.append(waiting.popleft())
                time.sleep(_POLL_SECONDS)
                for run in list(running):
                    follow(run)
                    if has_ended(run):
                        running.remove(run)
                        finish(run)
                        bar.write(f"{run.name}: trained in {run.record['seconds']:.0f} s")
                bar.set_postfix_str(
                    ", ".join(f"{run.name} {run.place} loss {run.loss}" for run in running),
                    refresh=False,
                )
                bar.update(sum(run.share_done for run in runs) - bar.n)
        finally:
            for run in running:
                run.process.terminate()
            for run in running:
                with contextlib.suppress(UserError):  # it failed because of the line above
                    finish(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="how many run side by side (default: 1)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    parser.add_argument("runs", nargs=argparse.REMAINDER, metavar=f"DIR COMMAND... [{_SEPARATOR} DIR COMMAND...]")
    args = parser.parse_args()
    runs = split_runs(args.runs[1:] if args.runs[:1] == ["--"] else args.runs)
    if args.dry_run:
        for run in runs:
            print(shlex.join(run.command))
        return
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs} is below 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for run in runs:
        run.record = load_record(run)
    for run in runs:
        if run.record["finished"]:
            print(f"{run.name}: finished before, skipped", flush=True)
    pending = [run for run in runs if not run.record["finished"]]
    if pending:
        run_all(pending, args.jobs)


if __name__ == "__main__":
    run_cli("jobs.py", main)

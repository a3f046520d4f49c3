"""The one runner of jobs, for recipes, demos and studies: what is finished is skipped, what was begun goes on.

    python scripts/lib/jobs.py --jobs 2 -- DIR COMMAND... --- DIR COMMAND...

Every DIR gets `train.log` (what the command printed) and `run.json`: the command, the wall-clock and CPU seconds of all
its attempts together, and whether it finished.

A job is finished when its `run.json` says so, which is written last, after the command ended with status 0; when the
settings in there are those asked for now; when each job it depends on is finished and is the one it was made from, and
each file it reads (`Job.reads`) is as it was then; and when the files it makes are present. This module is the only one
that decides it (`state_of`).

Settings are the words of the command but for those that shape no result (where data and plugin lie, workers, devices)
and flags of train.py that say its default.
The value of --max-epoch may grow, which lets a finished fairseq-train go on. A DIR of other settings is refused here,
if there is more in it than the notes of a run that failed at once; studies set it aside, and take it back when the
settings return.
"""

import argparse
import contextlib
import fcntl
import json
import os
import platform
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path

from tqdm import tqdm

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from vision_reference.arguments import get_args_parser
from vision_reference.errors import Parser, UserError, run_command
from vision_reference.files import atomic_file, file_digest

ROOT = Path(__file__).resolve().parents[2]
REPLACED = "replaced"  # folder beside the jobs' own, for results of other settings
_SEPARATOR = "---"
_POLL_SECONDS = 0.3
_TRAIN = "vision_reference/train.py"
_NOTES = {"run.json", "run.lock", "train.log", "log.txt", "args.json", "environment.json"}
_SECONDS_TO_END = 20  # between SIGTERM and SIGKILL
_LAST_LINES = 5

# Options that shape no result, and how many values each has.
_FREE = {
    "--user-dir": 1, "--save-dir": 1, "--output-dir": 1, "--data-path": 1, "--resume": 1, "--workers": 1, "-j": 1,
    "--num-workers": 1, "--print-freq": 1, "--log-interval": 1, "--device": 1, "--dali-device": 1, "--cpu": 0,
    "--cache-dataset": 0, "--keep-checkpoints": 1, "--dist-url": 1, "--standalone": 0, "--nproc_per_node": 1,
    "--nnodes": 1, "--node_rank": 1, "--rdzv_backend": 1, "--rdzv_endpoint": 1, "--rdzv_id": 1, "--track": 1,
    "--per-class": 1, "--require-gpu": 0, "--input": 1,
    "--tensorboard-logdir": 1, "--wandb-project": 1, "--max-epoch": 1,
}  # fmt: skip
_GROWS = "--max-epoch"


@dataclass(frozen=True)
class Job:
    """A command that fills a folder.

    Attributes:
        name: unlike that of any other job of the run.
        folder: for `run.json`, `train.log` and what the command writes.
        command: started from the folder this process was started in.
        after: names of the jobs whose results it reads.
        makes: files, relative to `folder`, without which it is not finished.
        cost: about how long it takes, in any unit that all jobs of a run share.
        reads: files that no job of this run makes; another content makes another result.
        exact_epochs: a result of more epochs (--max-epoch) than the command has is another one, not a finished one.
    """

    name: str
    folder: Path
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    cost: float = 1.0
    reads: tuple[str, ...] = ()
    exact_epochs: bool = False

    @property
    def settings(self) -> dict[str, str]:
        """What of the command shapes the result, alike wherever the clone and the run's folder lie."""
        return settings(self.command, self.folder)

    @property
    def record_file(self) -> Path:
        return self.folder / "run.json"

    @property
    def log_file(self) -> Path:
        return self.folder / "train.log"


def settings(command: Iterable[str], folder: Path) -> dict[str, str]:
    """{option: option and value} of `command` without what shapes no result; "" has what comes before the options.

    Their order does not count, and of an option that is repeated the last counts. Paths are relative to the clone and
    to the folder of all jobs.
    """
    words = _portable(command, folder)
    found: dict[str, list[str]] = {"": []}
    name = ""
    for word in words:
        if word.startswith("--") or word == "-j":
            name = word
            found[name] = []
        elif _FREE.get(name) == len(found[name]) - 1:  # its values are complete: this word belongs to no option
            name = ""
        found[name].append(word)
    with contextlib.suppress(ValueError, KeyError, IndexError):  # a global batch may be shared by more processes
        processes = int(found["--nproc_per_node"][1]) * int(found.get("--nnodes", ["", "1"])[1])
        batches = int(found.pop("--accumulate", ["", "1"])[1])  # that are added up
        found["--batch-size"][1] = str(int(found["--batch-size"][1]) * processes * batches)
    return {name: " ".join(values) for name, values in found.items() if name not in _FREE}


def _portable(command: Iterable[str], folder: Path) -> list[str]:
    """The words of `command` alike wherever the clone and the run's folder lie."""
    words = [word.replace(f"{folder.parent}/", "../").replace(f"{ROOT}/", "") for word in command]
    words[0] = re.sub(r"^python[\d.]*$", "python", Path(words[0]).name)
    if words[1:2] == ["scripts/lib/torchrun.py"]:  # as earlier versions started the processes
        words[1:2] = ["-m", "torch.distributed.run"]
    return words


@cache
def _flags_of_training(words: tuple[str, ...]) -> dict[str, object] | None:
    """What a command of train.py comes to, its defaults filled in; None for other commands, and flags not known now."""
    if _TRAIN not in words:
        return None
    place = words.index(_TRAIN)
    try:
        flags = vars(get_args_parser().parse_args(words[place + 1 :]))
    except UserError:
        return None
    shaping = {name: value for name, value in flags.items() if f"--{name.replace('_', '-')}" not in _FREE}
    return shaping | {"": words[:place]}  # as many processes


def _comes_to_the_same(then: Iterable[str], now: Iterable[str]) -> bool:
    """Whether two commands of train.py differ only in flags that say what is so without them."""
    flags = _flags_of_training(tuple(then))
    return flags is not None and flags == _flags_of_training(tuple(now))


def max_epoch(command: Iterable[str]) -> float:
    """The value of --max-epoch; without it, 0.

    Raises:
        UserError: it is no number.
    """
    value = value_of(_GROWS, command) or "0"
    try:
        return float(value)
    except ValueError:
        raise UserError(f"{_GROWS} {value} is not a number; give the epochs to train, such as 50") from None


def value_of(option: str, command: Iterable[str]) -> str | None:
    """The word after `option`."""
    words = list(command)
    place = words.index(option) + 1 if option in words else len(words)
    return words[place] if place < len(words) else None


# What is kept of a job


def load_record(job: Job, place: Path | None = None) -> dict | None:
    """What `run.json` in the job's folder, or in `place`, says of earlier attempts; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    try:
        file = (place or job.folder) / "run.json"
        record = json.loads(file.read_text(encoding="utf-8"))
        good = isinstance(record["command"], list) and all(isinstance(word, str) for word in record["command"])
        good = good and isinstance(record["finished"], bool) and isinstance(record.get("inputs", {}), dict)
        numbers = record["seconds"], record["cpu_seconds"]
        if not good or not record["command"] or not all(isinstance(number, int | float) for number in numbers):
            raise ValueError
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is damaged; remove the folder to run it again") from None
    return record


def save_record(job: Job, record: dict) -> None:
    """Replace `run.json` in one step."""
    with atomic_file(job.record_file) as file:
        file.write((json.dumps(record, indent=2) + "\n").encode())


@dataclass(frozen=True)
class State:
    """How a job stands before a run.

    Attributes:
        kind: "new", "begun", "finished", "changed" (made with other settings) or "stale" (from other inputs).
        made: what tells this result from any other of the same job; None unless finished.
        why: of "changed" and "stale".
    """

    kind: str
    made: str | None = None
    why: str = ""


def state_of(job: Job, inputs: dict[str, str | None], place: Path | None = None) -> State:
    """Whether `job` is finished, judged by what lies in its folder or in `place`.

    `inputs` names what each job of `job.after` has `made` by now (None: not finished).

    Raises:
        UserError: its record is damaged.
    """
    record = load_record(job, place)
    return State("new") if record is None else judge(job, inputs, record, place or job.folder)


def judge(job: Job, inputs: dict[str, str | None], record: dict, place: Path) -> State:
    """How `job` stands if `record` is what `run.json` says, and `place` the folder with its results."""
    if not record["finished"] and not _has_results(place):
        return State("begun")  # whatever it was to be
    folder = Path(record.get("folder", job.folder))
    then, now = settings(record["command"], folder), job.settings
    if then != now and not _comes_to_the_same(_portable(record["command"], folder), _portable(job.command, job.folder)):
        gone, come = (
            " ".join(one[name] for name in one if one[name] != other.get(name))
            for one, other in ((then, now), (now, then))
        )
        return State("changed", why=f"then: {gone or '-'}; now: {come or '-'}")
    epochs, trained = max_epoch(job.command), max_epoch(record["command"])
    if job.exact_epochs and epochs < trained:
        return State("changed", why=f"then: {_GROWS} {trained:g}; now: {_GROWS} {epochs:g}")
    if other := [name for name, made in inputs.items() if record.get("inputs", {}).get(name) != made]:
        return State("stale", why=f"{', '.join(other)} {'is' if len(other) == 1 else 'are'} made anew")
    read = record.get("reads", {})  # not known of earlier versions; what is gone since does not undo a result
    if other := [name for name, digest in digests(job.reads).items() if read.get(name, digest) != digest]:
        return State("stale", why=f"{', '.join(other)} {'is' if len(other) == 1 else 'are'} not what it was then")
    # More epochs than last time make a finished run an unfinished one. An unfinished one is judged by this attempt's
    # number, be it smaller: that is what it will have when it is done.
    whole = record["finished"] and epochs <= trained
    if whole and all((place / name).exists() for name in job.makes):
        return State("finished", made=record.get("made", "before"))
    return State("begun")


def _has_results(folder: Path) -> bool:
    """Whether a run has left more than notes: one that failed at once binds nobody to its settings."""
    return any(file.stat().st_size and file.name not in _NOTES for file in folder.rglob("*") if file.is_file())


def digests(files: Iterable[str]) -> dict[str, str]:
    """{file: SHA-256} of those that are there."""
    return {file: file_digest(Path(file)) for file in files if Path(file).is_file()}


def states(jobs: Iterable[Job]) -> dict[str, State]:
    """The state of each job; `jobs` are in an order in which each comes after those it depends on."""
    found: dict[str, State] = {}
    for job in jobs:
        found[job.name] = state_of(job, {name: found[name].made for name in job.after})
    return found


def in_order(jobs: Iterable[Job]) -> list[Job]:
    """The same jobs, each after those it depends on, else in the order given.

    Raises:
        ValueError: a name that occurs twice or not at all, or a circle.
    """
    by_name = {}
    for job in jobs:
        if job.name in by_name:
            raise ValueError(f"two jobs are called {job.name}")
        by_name[job.name] = job
    placed: dict[str, Job] = {}
    begun: set[str] = set()

    def place(name: str) -> None:
        if name in placed:
            return
        if name in begun or name not in by_name:
            raise ValueError(f"jobs wait for {name}, which waits for them or does not exist")
        begun.add(name)
        for each in by_name[name].after:
            place(each)
        placed[name] = by_name[name]

    for name in by_name:
        place(name)
    return list(placed.values())


def set_aside(job: Job) -> None:
    """Keep what lies in the job's folder elsewhere: it was made with other settings, or from other inputs."""
    record = load_record(job) or {}
    place = job.folder.parent / REPLACED / f"{job.folder.name}-{record.get('made') or secrets.token_hex(4)}"
    place.parent.mkdir(exist_ok=True)
    os.rename(job.folder, place)


def take_back(job: Job, inputs: dict[str, str | None]) -> bool:
    """Bring back an earlier result of just these settings and inputs, if one was set aside."""
    for place in sorted((job.folder.parent / REPLACED).glob(f"{job.folder.name}-*")):
        with contextlib.suppress(UserError):
            if state_of(job, inputs, place).kind == "finished":
                os.rename(place, job.folder)
                return True
    return False


# One job


@cache
def commit() -> str | None:
    """The commit of this clone, with "+" where files differ from it; None outside git."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return None
    changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True)
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


@cache
def versions() -> dict[str, str]:
    """Of Python and of the libraries that results depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "numpy", "pillow", "fairseq", "sentencepiece", "sacrebleu", "timm"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class Process:
    """A job that runs on this machine, in a session of its own, so that a Ctrl-C reaches this process alone.

    The command inherits the lock on its folder: the folder stays taken even if this process alone is killed.

    Args:
        job: what to run.
        inputs: what each job it depends on has made.
        environment: on top of this process's own.

    Raises:
        UserError: its folder is in use, or there is no such command.
    """

    def __init__(self, job: Job, inputs: dict[str, str | None], environment: dict[str, str]) -> None:
        self.job = job
        job.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(job.folder / "run.lock", os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            before = load_record(job) or {}
            self.record = {
                "name": job.name,
                "command": list(job.command),
                "folder": str(job.folder),
                "inputs": inputs,
                "reads": digests(job.reads),
                "finished": False,
                "seconds": before.get("seconds", 0.0),
                "cpu_seconds": before.get("cpu_seconds", 0.0),
                "attempts": before.get("attempts", 0) + 1,
                "began": now(),
                "host": socket.gethostname(),
                "commit": commit(),
                "versions": versions(),
            }
            save_record(job, self.record)
            with job.log_file.open("ab") as log:
                self._process = subprocess.Popen(
                    job.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[lock],
                    env={**os.environ, **environment},
                    start_new_session=True,
                )
        except BlockingIOError:
            raise UserError(f"{job.folder} is in use by another process; wait for it or end it") from None
        except FileNotFoundError:
            raise UserError(f"command '{job.command[0]}' not found; set up with scripts/setup.sh first") from None
        finally:
            os.close(lock)
        self._started = time.monotonic()
        self._is_asked_to_end = False
        self.code: int | None = None

    def poll(self) -> int | None:
        """The exit status once the command has ended, its times then being recorded; None before."""
        # WNOWAIT leaves the child for wait4, which alone tells its CPU time.
        if self.code is None and os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            self._finish()
        return self.code

    def ask_to_end(self) -> None:
        """Send SIGTERM to the command and all it has started."""
        self._is_asked_to_end = True
        self._signal(signal.SIGTERM)

    def stop(self) -> None:
        """Wait for it to end as asked; kill what stays."""
        limit = time.monotonic() + _SECONDS_TO_END
        while self.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        self._signal(signal.SIGKILL)  # also what a command that ended at once has left behind
        while self.poll() is None:
            time.sleep(0.05)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _finish(self) -> None:
        _, status, usage = os.wait4(self._process.pid, 0)
        self.code = self._process.returncode = os.waitstatus_to_exitcode(status)
        self.record["seconds"] += time.monotonic() - self._started
        self.record["cpu_seconds"] += usage.ru_utime + usage.ru_stime
        missing = [name for name in self.job.makes if not (self.job.folder / name).exists()]
        if self.code == 0 and not missing:
            self.record |= {"finished": True, "made": secrets.token_hex(8)}
        elif self.code == 0:
            self.code = 1
            with self.job.log_file.open("a") as log:
                log.write(f"the command ended without having written {', '.join(missing)}\n")
        self.record |= {"exit_status": self.code, "stopped": self._is_asked_to_end, "ended": now()}
        save_record(self.job, self.record)


def has_failed(record: dict) -> bool:
    """Whether the last attempt ended by itself, and badly; what was stopped has not."""
    return not record["finished"] and bool(record.get("exit_status")) and not record.get("stopped")


def in_use(folder: Path) -> bool:
    """Whether a process holds a job's folder."""
    try:
        with (folder / "run.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def last_lines(job: Job, count: int = _LAST_LINES) -> list[str]:
    """The last lines that say something in the job's log."""
    try:
        with job.log_file.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 65_536))
            lines = log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [line.rstrip() for line in lines if line.strip()][-count:]


# How far a job is


@dataclass
class Follower:
    """Reads what a running job adds to its log: fairseq's --log-format json, train.py's lines, or any `[ 12 %]`.

    Attributes:
        share: of the job that is done, from 0 to 1.
        text: where it is, in words.
    """

    job: Job
    share: float = 0.0
    text: str = ""
    _position: int = field(default=0, init=False)
    _epochs: float = field(default=0.0, init=False)
    _updates: int = field(default=0, init=False)

    _EPOCH = re.compile(r"Epoch (\d+)/(\d+) (?: *\[ *(\d+)/(\d+)\]|(done))")
    _PERCENT = re.compile(r"\[ *(\d+) %\]")

    def __post_init__(self) -> None:
        self._position = self.job.log_file.stat().st_size if self.job.log_file.exists() else 0

    def look(self) -> None:
        """Take in what was written since the last call."""
        try:
            with self.job.log_file.open("rb") as log:
                log.seek(self._position)
                new = log.read()
        except OSError:
            return
        whole = new.rfind(b"\n") + 1
        self._position += whole
        for line in new[:whole].decode("utf-8", "replace").splitlines():
            if "| train_inner | " in line or "| train | " in line:
                with contextlib.suppress(ValueError, KeyError):
                    self._fairseq(json.loads(line[line.index("{") :]))
            elif found := self._EPOCH.search(line):
                epoch, epochs, step, steps, done = found.groups()
                passed = int(epoch) if done else int(epoch) - 1 + int(step) / int(steps)
                self.share, self.text = min(1.0, passed / int(epochs)), f"epoch {passed:.1f}/{epochs}"
            elif found := self._PERCENT.search(line):
                self.share, self.text = int(found[1]) / 100, f"{found[1]} %"

    def _fairseq(self, stats: dict) -> None:
        epochs, updates = max_epoch(self.job.command), float(value_of("--max-update", self.job.command) or "inf")
        self._epochs = float(stats.get("update", stats["epoch"]))
        self._updates = int(stats.get("num_updates", stats.get("train_num_updates", self._updates)))
        by_epochs, by_updates = self._epochs / epochs if epochs else 0.0, self._updates / updates
        self.share = min(1.0, max(by_epochs, by_updates))  # whichever ends the training first
        place = f"update {self._updates}/{updates:g}" if by_updates > by_epochs else f"epoch {self._epochs:.1f}"
        self.text = f"{place}/{epochs:g}" if by_updates <= by_epochs and epochs else place
        self.text += f" loss {stats.get('loss', stats.get('train_loss', ''))}"


class TimeLeft:
    """How long a run will still take, from what is done of its cost and how long that took.

    Of the first seconds nothing can be extrapolated: programs start, and a job that has written its first line has done
    a millionth of the whole. So a plan's estimate counts as much as a measured twentieth of the run. Without one the
    clock begins with the first sign of progress, and nothing is said until there is enough to go by.

    Args:
        total: cost of all that is to be done, in any unit.
        expected: seconds that it takes by a plan; None without one.
    """

    _SHARE = 0.05
    _SECONDS = 20

    def __init__(self, total: float, expected: float | None = None) -> None:
        self.expected = expected
        self._enough = self._SHARE * total
        self._per_cost = None if expected is None or not total else expected / total
        self._first: tuple[float, float] | None = None

    def seconds(self, elapsed: float, done: float, total: float) -> float | None:
        """Seconds left after `elapsed` seconds, `done` of the cost `total` as it is known by now; None: not known."""
        if self._per_cost is not None:
            rate = (elapsed + self._enough * self._per_cost) / (done + self._enough)
            return rate * (total - done)
        if self._first is None and done:
            self._first = elapsed, done
        if self._first is None:
            return None
        passed, moved = elapsed - self._first[0], done - self._first[1]
        if not moved or (passed < self._SECONDS and moved < self._enough):
            return None
        return passed / moved * (total - done)

    def text(self, elapsed: float, done: float, total: float) -> str:
        """`3:05 left`, and on what that rests where it is not on this run."""
        seconds = self.seconds(elapsed, done, total)
        if seconds is None:
            return "time left not known yet"
        if self._per_cost is not None and done < self._enough:
            return f"about {clock(seconds)} left by the plan's estimate"
        return f"{clock(seconds)} left"


class Progress:
    """Jobs done, running, failed, and the time left: a bar on a terminal, elsewhere a plain line now and then.

    Args:
        total: cost of what is to be done.
        jobs: how many there are, finished ones included.
        expected: seconds that it takes by a plan; None without one.
    """

    def __init__(self, total: float, jobs: int, expected: float | None = None) -> None:
        self.jobs = jobs
        self.began = self._shown = time.monotonic()
        self._total = total
        self._left = TimeLeft(total, expected)
        self._bar = None
        if sys.stderr.isatty():
            form = "{percentage:3.0f}%|{bar:20}| {elapsed} {postfix}"
            self._bar = tqdm(total=total, bar_format=form, mininterval=0.5, dynamic_ncols=True)

    def drop(self, cost: float) -> None:
        """Take from the total what took no time: jobs that failed, or whose earlier result came back."""
        self._total -= cost
        if self._bar is not None:
            self._bar.total = self._total

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.write(text, file=sys.stdout)

    def show(self, done: float, counts: dict[str, int], where: str) -> None:
        """`done` of the total cost, how many jobs are in which state, and what those that run are at."""
        text = ", ".join(f"{number} {name}" for name, number in counts.items() if number or name != "failed")
        elapsed = time.monotonic() - self.began
        left = self._left.text(elapsed, done, self._total)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{left}; {text} of {self.jobs}; {where}", refresh=False)
            self._bar.update(done - self._bar.n)
            return
        if time.monotonic() - self._shown < max(30, elapsed / 50):
            return
        self._shown = time.monotonic()
        share = done / self._total if self._total else 1
        print(f"jobs: {text} of {self.jobs}; {100 * share:.0f} %, {left}; {where}", flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def clock(seconds: float) -> str:
    """`3:05`, `2:03:05`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


# Many jobs


class Here:
    """Runs jobs on this machine, one in each slot.

    Args:
        slots: for each job at a time, what its environment holds on top of this process's.
    """

    def __init__(self, slots: list[dict[str, str]]) -> None:
        self._free = list(slots)
        self._taken: dict[str, dict[str, str]] = {}

    @property
    def room(self) -> int:
        """How many more jobs can be started now."""
        return len(self._free)

    def start(self, jobs: list[tuple[Job, dict[str, str | None]]]) -> Iterator[Process | UserError]:
        """Start jobs, given with what the jobs they depend on have made; for each its process or why there is none."""
        for job, inputs in jobs:
            slot = self._free.pop(0)
            try:
                process = Process(job, inputs, slot)
            except UserError as error:
                self._free.append(slot)
                yield error
            else:
                self._taken[job.name] = slot
                yield process

    def ended(self, job: Job) -> None:
        """Take note that the job's slot is free."""
        self._free.append(self._taken.pop(job.name))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs of this machine; empty where there is none."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [str(number) for number, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


def cpu_slots(jobs: int) -> list[dict[str, str]]:
    """`jobs` slots that share the cores; OMP_NUM_THREADS, where the user has set it, stays."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // jobs))
    return [{"OMP_NUM_THREADS": threads} for _ in range(jobs)]


def gpu_slots(names: list[str]) -> list[dict[str, str]]:
    """A slot for each GPU."""
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names]


class Stopped(Exception):
    """A signal ended the run; `status` is what the command should exit with."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise Stopped inside the block, also where they were ignored; a second one does not."""

    def stop(number: int, _) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Failure:
    """A job that did not finish: `reason` in one line, what its log ends with, and whether it was not even started."""

    job: Job
    reason: str
    lines: tuple[str, ...] = ()
    waited: bool = False


def run(
    jobs: Iterable[Job],
    launcher: Here,
    *,
    replace: bool = False,
    ended: Callable[[Job], None] = lambda job: None,
    expected: float | None = None,
) -> list[Failure]:
    """Run what is not finished, each job after those it depends on; a failed one keeps back only what depends on it.

    Args:
        jobs: all jobs, finished ones included.
        launcher: where they run.
        replace: set aside what was made with other settings, instead of refusing to start.
        ended: called with each job that has finished.
        expected: seconds that what is not finished will take by a plan; None: nobody knows.

    Returns:
        The jobs that failed, and those that had to wait for them.

    Raises:
        UserError: a job's folder was made with other settings, or its record is damaged; nothing was started then.
        Stopped: by SIGINT or SIGTERM; what ran was ended.
    """
    ordered = in_order(jobs)
    found = states(ordered)
    if not replace:
        for job in ordered:
            if (state := found[job.name]).kind in ("changed", "stale"):
                raise UserError(
                    f"{job.folder} was made with other settings ({state.why}); choose another folder or remove it"
                )
    made = {name: state.made for name, state in found.items() if state.kind == "finished"}
    for which in made if len(made) <= 5 else [f"{len(made)} jobs"]:
        print(f"{which}: finished before, skipped", flush=True)
    waiting = [job for job in ordered if job.name not in made]
    if not waiting:
        return []
    progress = Progress(sum(job.cost for job in waiting), len(ordered), expected)
    try:
        with stop_signals():
            return _run(waiting, launcher, made, replace, progress, ended)
    finally:
        progress.close()


def _run(
    waiting: list[Job],
    launcher: Here,
    made: dict[str, str | None],
    replace: bool,
    progress: Progress,
    ended: Callable[[Job], None],
) -> list[Failure]:
    running: dict[str, tuple[Process, Follower]] = {}
    failures: dict[str, Failure] = {}
    done = 0.0

    def finished(job: Job) -> None:
        made[job.name] = (load_record(job) or {}).get("made")
        ended(job)

    def failed(job: Job, reason: str, lines: Iterable[str] = (), waited: bool = False) -> None:
        failures[job.name] = Failure(job, reason, tuple(lines), waited)
        progress.drop(job.cost)
        if not waited:
            progress.say(f"{job.name}: {reason}")

    try:
        while waiting or running:
            ready = []
            for job in list(waiting):
                if lost := [name for name in job.after if name in failures]:
                    waiting.remove(job)
                    failed(job, f"not run, because {lost[0]} failed", waited=True)
                elif all(name in made for name in job.after) and len(ready) < launcher.room:
                    waiting.remove(job)
                    inputs = {name: made[name] for name in job.after}
                    state = state_of(job, inputs)
                    if replace and state.kind in ("changed", "stale"):
                        if in_use(job.folder):  # of a run that was killed; moved away, it would still write here
                            failed(job, f"{job.folder} is in use by another process; wait for it or end it")
                            continue
                        progress.say(f"{job.name}: made anew ({state.why})")
                        set_aside(job)
                    if replace and not job.folder.exists() and take_back(job, inputs):
                        progress.say(f"{job.name}: taken back from {REPLACED}/")
                        progress.drop(job.cost)
                        finished(job)
                        continue
                    ready.append((job, inputs, Follower(job)))
            started = launcher.start([(job, inputs) for job, inputs, _ in ready])
            for (job, _, follower), process in zip(ready, started, strict=True):
                if isinstance(process, UserError):
                    failed(job, str(process))
                else:
                    running[job.name] = process, follower
            for name, (process, follower) in list(running.items()):
                code = process.poll()
                follower.look()
                if code is None:
                    continue
                del running[name]
                launcher.ended(follower.job)
                if code == 0:
                    seconds = (load_record(follower.job) or {"seconds": 0.0})["seconds"]
                    done += follower.job.cost
                    finished(follower.job)
                    progress.say(f"{name}: done in {clock(seconds)}")
                else:
                    lines = last_lines(follower.job)
                    how = f"signal {-code}" if code < 0 else f"exit status {code}"
                    why = f"failed ({how}): {lines[-1] if lines else 'no output'}; see {follower.job.log_file}"
                    failed(follower.job, why, lines)
            share = sum(follower.job.cost * follower.share for _, follower in running.values())
            where = ", ".join(f"{name} {follower.text}".strip() for name, (_, follower) in running.items())
            counts = {"done": len(made), "running": len(running), "failed": len(failures)}
            progress.show(done + share, counts, where)
            if running:
                time.sleep(_POLL_SECONDS)
    finally:
        for process, _ in running.values():
            process.ask_to_end()
        for process, _ in running.values():
            process.stop()
    return list(failures.values())


def run_as_command(name: str, jobs: Iterable[Job], launcher: Here, **options) -> None:
    """`run` for a command line: what failed is told on stderr, and this process exits with 1, or 128 + the signal."""
    try:
        failures = run(jobs, launcher, **options)
    except Stopped as stopped:
        print(f"{name}: stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(stopped.status)
    for failure in failures:
        if not failure.waited:
            print(f"{name}: {failure.job.name} {failure.reason}", file=sys.stderr)
    if waited := sum(failure.waited for failure in failures):
        print(f"{name}: {waited} more jobs depend on these and were not run", file=sys.stderr)
    if failures:
        sys.exit(1)


def split_jobs(words: list[str]) -> list[Job]:
    """`DIR COMMAND... --- DIR COMMAND...` -> jobs.

    Raises:
        UserError: a part lacks its command, or a folder occurs twice.
    """
    groups: list[list[str]] = [[]]
    for word in words:
        if word == _SEPARATOR:
            groups.append([])
        else:
            groups[-1].append(word)
    if any(len(group) < 2 or not group[0].strip() for group in groups):
        raise UserError(f"every run needs a folder and a command, separated by {_SEPARATOR}")
    folders = [Path(group[0]) for group in groups]
    if len(set(folders)) < len(folders):
        raise UserError("two runs with the same folder; give each its own")
    short = [folder.name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    return [Job(name, folder, tuple(group[1:])) for name, folder, group in zip(names, folders, groups, strict=True)]


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many run side by side (default: 1)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    parser.add_argument(
        "--node-rank",
        type=int,
        default=0,
        metavar="N",
        help="of several machines that run one job together, the first keeps its record and the others only read it",
    )
    parser.add_argument("runs", nargs=argparse.REMAINDER, metavar=f"DIR COMMAND... [{_SEPARATOR} DIR COMMAND...]")
    args = parser.parse_args()
    jobs = split_jobs(args.runs[1:] if args.runs[:1] == ["--"] else args.runs)
    for job in jobs:
        max_epoch(job.command)  # a mistake there is told before anything is shown or started
    if args.dry_run:
        for job in jobs:
            print(shlex.join(job.command))
        return
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs} is below 1")
    if args.node_rank:
        for job in jobs:
            if state_of(job, {}).kind != "finished" and (code := subprocess.run(job.command).returncode):
                sys.exit(code)
        return
    run_as_command("jobs.py", jobs, Here(cpu_slots(min(args.jobs, len(jobs)))))


if __name__ == "__main__":
    run_command("jobs.py", main)

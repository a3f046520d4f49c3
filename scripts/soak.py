"""Kills real runs at random moments, lets each go on as its documentation says, and compares the results, bit by bit,
with those of runs that nobody disturbed.

    python scripts/soak.py --kills 200 --json results/soak.json
    python scripts/soak.py --kills 25 --only image-store translation-store
    python scripts/soak.py --kills 0 --steps 2000          memory, open files and processes over a long training

Most kills are SIGKILL, of the process alone or of all it has started; some are SIGTERM or Ctrl-C, which have to end
with the right status. Half fall at a moment drawn evenly over the time that an undisturbed run works, half follow a
change of the files in its folder, so that many fall between a file's first byte and its last. A run is killed up to
--each times before it may end. Any byte that differs is a finding, and so are a file too many, a process left behind,
and a run that does not go on; status 1 says that there is one, its folder stays.

The soak may be stopped itself: the same command goes on after the last run compared. Data and models are the built-in
digits and phrases, at a size that a run takes seconds on one core.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.lib.jobs import commit, cores, now
from scripts.nmt.lib.recipe import expert_command, filled, student_command
from vision_reference.errors import UserError, run_command
from vision_reference.files import journal_line, read_journal, try_lock, write_atomically, write_through

ROOT = Path(__file__).resolve().parents[1]
MARK = "soak.json"  # the folder of a soak is known by it
_TOKEN = "LSKD_SOAK"  # in the environment of all that a run starts, by which it is found
_POLL_SECONDS = 0.001
_WAIT_SECONDS = 60  # for processes to end, after which they count as left behind
_LIMIT_SECONDS = 900  # for one attempt
_SIGNALS = {"SIGKILL, all": 5, "SIGKILL, alone": 5, "SIGTERM": 2, "SIGINT": 2}
# What differs between two runs of one command by nature: times, names drawn for results, and fairseq's list of starts.
_VOLATILE = {
    "seconds", "cpu_seconds", "images_per_second", "time", "began", "ended", "attempts", "made", "inputs", "pid",
    "metrics", "previous_training_time", "host", "finished", "optimizer_history",
}  # fmt: skip
_UNCOMPARED = re.compile(r"(log\.txt|.*\.log|environment\.json|run\.json|.*\.lock|.*\.npz|report\.(md|html)|.*\.svg)$")
# What stock fairseq writes but neither sets nor reads: copies of weights for a fast path, and a buffer for its type.
_UNSET = re.compile(r"/model/.*(in_proj|out_proj|fc1|fc2)_(weight|bias)$|/model/.*_float_tensor$")
_LOGS = re.compile(r".*(\.log|log\.txt)$")


@dataclass(frozen=True)
class Kind:
    """A long command.

    Attributes:
        command: writes into the folder ``out`` below the one it is started in; the same command goes on.
        share: of the kills, in proportion to the others'.
        own_statuses: it ends with the statuses of ``vision_reference.errors``.
        patient: what it has started may go on without it for a while, and has to end before it is started again.
    """

    command: tuple[str, ...]
    share: int
    own_statuses: bool = True
    patient: bool = False


def all_kinds(inputs: Path) -> dict[str, Kind]:
    """Every long command, by the name that --only takes."""
    python, words = sys.executable, f"--output-dir out --data-path {inputs}/digits --preset digits --device cpu -b 16"
    teacher = f"--teacher resnet8 --teacher-weights {inputs}/teacher/checkpoint.pth"
    # A network with dropout, so that the random generators matter.
    training = f"{words} --model mobilenet_v3_small --epochs 3 --lr 0.01 --seed 1 --resume auto --print-freq 5"
    taught_by = {
        "none": "--mixup-alpha 0.2 --cutmix-alpha 1.0 --model-ema --model-ema-steps 2 --label-smoothing 0.1",
        "running": f"{teacher} --ra-sampler --ra-reps 2 --auto-augment ta_wide --save-every-minutes 0.01",
        "stored": f"--soft-labels {inputs}/store --kd-weight 0.5 --accumulate 2 --keep-checkpoints 2",
    }
    kinds = {
        f"training-{name}-{workers}": Kind(
            (python, str(ROOT / "vision_reference/train.py"), *f"{training} {flags} --workers {workers}".split()), 10
        )
        for name, flags in taught_by.items()
        for workers in (0, 2)
    }
    store = f"{words} {teacher} --views 12 --seed 1 --workers 2"
    kinds["image-store"] = Kind((python, str(ROOT / "vision_reference/store_soft_labels.py"), *store.split()), 14)
    expert = (
        f"--data-bin {inputs}/phrases/data-bin --lang-pair en-de --teacher {inputs}/phrases-expert/checkpoint_last.pt"
    )
    expert += " --output out --cpu --workers 1 --max-tokens 1024"
    kinds["translation-store"] = Kind((python, str(ROOT / "scripts/nmt/store_teacher_outputs.py"), *expert.split()), 14)
    student = student_command(
        inputs / "few-phrases/data-bin",
        ["en-de"],
        Path("out"),
        filled({**_TINY, "max_epoch": "3", "temperature": "2"}),
        True,
        ["--teachers", f"en-de={inputs}/few-phrases-expert/checkpoint_last.pt"],
    )
    # Epochs end it and not --max-update, because a finished run of stock fairseq takes one more update each time that
    # it is started again.
    student += ["--disable-validation", "--save-interval-updates", "10", "--keep-interval-updates", "1"]
    kinds["translation-training"] = Kind(_installed(student), 6, own_statuses=False)
    study = (
        python,
        str(ROOT / "scripts/study.py"),
        "run",
        str(inputs / "study.yaml"),
        "--output",
        "out",
        "--jobs",
        "1",
    )
    kinds["study"] = Kind(study, 5, patient=True)
    return kinds


_TINY = {
    "encoder_layers": "1", "decoder_layers": "1", "embed_dim": "64", "ffn_dim": "128", "heads": "2", "dropout": "0.1",
    "lr": "1e-3", "warmup_updates": "20", "max_tokens": "512", "max_epoch": "2", "log_interval": "10",
}  # fmt: skip
_STUDY = """\
title: Study of the soak
kind: images
data: {data}
seeds: [0]
settings: {{preset: digits, device: cpu, workers: 0, batch-size: 16, lr: 0.02}}
teacher: {{network: resnet8, epochs: 2}}
student: {{network: resnet8, epochs: 2}}
cells: [{{teacher: {{alpha: 0.1}}, student: {{temperature: 1}}}}]
"""


def prepare(inputs: Path, kinds: list[str]) -> None:
    """Make what the commands of ``kinds`` read; what is made already stays."""
    inputs.mkdir(exist_ok=True)
    python, images = sys.executable, f"--data-path {inputs}/digits --preset digits --device cpu -b 16 --workers 0"
    if not (inputs / "digits").is_dir():
        _run(inputs, (python, str(ROOT / "scripts/demo/digits.py"), "--output", str(inputs / "all-digits")))
        _few(inputs / "all-digits", inputs / "digits")
    (inputs / "study.yaml").write_text(_STUDY.format(data=inputs / "digits"))
    if any(word in kind for kind in kinds for word in ("running", "stored", "image-store")):
        flags = f"{images} --model resnet8 --epochs 2 --lr 0.02 --seed 2 --output-dir {inputs}/teacher --resume auto"
        _run(inputs, (python, str(ROOT / "vision_reference/train.py"), *flags.split()))
    if any("stored" in kind for kind in kinds):
        flags = f"{images} --teacher resnet8 --teacher-weights {inputs}/teacher/checkpoint.pth --views 3 --seed 1"
        flags += f" --output-dir {inputs}/store"
        _run(inputs, (python, str(ROOT / "vision_reference/store_soft_labels.py"), *flags.split()))
    for kind, name in (("translation-store", "phrases"), ("translation-training", "few-phrases")):
        if kind in kinds:
            _prepare_phrases(inputs, name)


def _prepare_phrases(inputs: Path, name: str) -> None:
    """The built-in phrases, all or a thousand, and an expert of them."""
    words = [sys.executable, str(ROOT / "scripts/nmt/prepare.py"), "builtin", "--output", str(inputs / name)]
    if name == "few-phrases":
        from scripts.nmt.lib.cldr_phrases import phrases

        texts, text = phrases(1_200), inputs / "text"
        text.mkdir(exist_ok=True)
        for split, part in (("train", texts[:1_000]), ("valid", texts[1_000:1_100]), ("test", texts[1_100:])):
            for language in ("en", "de"):
                (text / f"{split}.{language}").write_text("".join(phrase[language] + "\n" for phrase in part))
        words[2:3] = ["parallel", "--input", str(text), "--pairs", "en-de", "--vocab-size", "300"]
    _run(inputs, tuple(words))
    expert = inputs / f"{name}-expert"
    if not (expert / "checkpoint_last.pt").is_file():
        settings = filled({**_TINY, "max_epoch": "2", "max_update": "60"})
        command = expert_command(inputs / name / "data-bin", "en-de", expert, settings, True)
        _run(inputs, (*_installed(command), "--disable-validation"))


def _few(source: Path, target: Path, sizes: Mapping[str, int] = {"train": 12, "val": 6}) -> None:
    """The first images of each class."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split, size in sizes.items():
        for folder in sorted((source / split).iterdir()):
            (partial / split / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[:size]:
                shutil.copy(file, partial / split / folder.name)
    partial.rename(target)


def _installed(words: list[str]) -> tuple[str, ...]:
    """A command of an installed package, by its place beside this Python."""
    return (str(Path(sys.executable).parent / words[0]), *words[1:])


def _environment(token: str = "") -> dict[str, str]:
    """One core, no GPU, for anything that a soak starts."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), _TOKEN: token}


def _run(folder: Path, command: tuple[str, ...]) -> None:
    done = subprocess.run(
        command, cwd=folder, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise UserError(f"{' '.join(command[:3])} ... ended with status {done.returncode}: {_last_line(done.stdout)}")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")


# A run and its disturbance


def files_in(folder: Path, pattern: re.Pattern | None = None) -> dict[str, tuple[int, int, int]]:
    """What tells a change of any file below ``folder``, but for those whose name matches ``pattern``."""
    found, waiting = {}, [folder]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                elif not (pattern and pattern.match(entry.name)):
                    with contextlib.suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        found[entry.path] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def _sizes(folder: Path) -> dict[str, int]:
    """The files below ``folder`` but for logs; copies that are made anew are as large as before."""
    return {name: size for name, (_, size, _) in files_in(folder, _LOGS).items()}


def marked(token: str) -> list[int]:
    """The processes that a run has started, itself included, in whichever session."""
    found, wanted = [], f"{_TOKEN}={token}\0".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes() + b"\0":
                    found.append(int(entry.name))
    return found


def send(pids: list[int], number: int) -> None:
    """A signal to processes, some of which may have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_for_end(token: str, seconds: float = _WAIT_SECONDS) -> list[int]:
    """Wait for the processes of a run to end; those that have not."""
    limit = time.monotonic() + seconds
    while (left := marked(token)) and time.monotonic() < limit:
        time.sleep(0.1)
    return left


@dataclass(frozen=True)
class Undisturbed:
    """What an undisturbed run shows.

    Attributes:
        start: seconds until its folder had a file.
        seconds: from then on until it ended.
        changes: how many times its files were seen to have changed.
    """

    start: float
    seconds: float
    changes: int


class Attempt:
    """A command that runs in ``folder``, in a session of its own; what it prints is kept in ``folder/print.txt``."""

    def __init__(self, command: tuple[str, ...], folder: Path) -> None:
        self.folder, self.token = folder, str(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.before = files_in(folder / "out")
        self.began = time.monotonic()
        with (folder / "print.txt").open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=_environment(self.token),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def watch(self, until: Callable[[float, int], bool]) -> tuple[bool, Undisturbed]:
        """Watch the folder until the command ends (False) or ``until``(seconds of work, changes seen) holds (True).

        Raises:
            UserError: it takes too long.
        """
        first, changes, files = None, 0, self.before
        while self.process.poll() is None:
            time.sleep(_POLL_SECONDS)
            if (seen := files_in(self.folder / "out")) != files:
                first = first or time.monotonic()
                odd = {name for name in {**seen, **files} if seen.get(name) != files.get(name)}
                files, changes = seen, changes + any(not _LOGS.match(name) for name in odd)
            if first is not None and until(time.monotonic() - first, changes):
                return True, Undisturbed(first - self.began, time.monotonic() - first, changes)
            if time.monotonic() - self.began > _LIMIT_SECONDS:
                raise UserError(f"an attempt in {self.folder} has taken more than {_LIMIT_SECONDS} s")
        first = self.began if first is None else first
        return False, Undisturbed(first - self.began, time.monotonic() - first, changes)

    def kill(self, how: str) -> int:
        """End it by one of ``_SIGNALS``; its status."""
        name, _, whom = how.partition(", ")
        number = getattr(signal, name)
        if whom == "all":
            send(marked(self.token), signal.SIGSTOP)  # or one would see another one's end
            send(marked(self.token), number)
        elif number == signal.SIGINT:  # a terminal sends it to all in the foreground
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        try:
            return self.process.wait(_WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            send(marked(self.token), signal.SIGKILL)
            self.process.wait()
            raise _Finding(f"{how} did not end it within {_WAIT_SECONDS} s") from None

    def last_line(self) -> str:
        """What it printed last."""
        return _last_line((self.folder / "print.txt").read_text(errors="replace"))


class _Finding(Exception):
    """What a run should not have done."""


def disturb(kind: Kind, folder: Path, normal: Undisturbed, each: int, rng: random.Random) -> tuple[list[dict], str]:
    """Run ``kind`` in ``folder``, killed up to ``each`` times; the kills, and what went wrong ("" for nothing)."""
    kills: list[dict] = []
    ended: dict | None = None  # the files of a run that a signal met when its work was done
    names, weights = list(_SIGNALS), list(_SIGNALS.values())
    attempt = None
    try:
        while True:
            attempt = Attempt(kind.command, folder)
            how = rng.choices(names, weights)[0]
            moment, change = rng.uniform(0, normal.seconds), rng.randint(1, max(1, normal.changes // 2))
            at_write, later = rng.random() < 0.5, rng.uniform(0, 0.004)
            if len(kills) == each:
                reached = False
                attempt.watch(lambda seconds, changes: False)
            elif at_write:
                reached, _ = attempt.watch(lambda seconds, changes, change=change: changes >= change)
                time.sleep(later)
            else:
                reached, _ = attempt.watch(lambda seconds, changes, moment=moment: seconds >= moment)
            if not reached or attempt.process.poll() is not None:
                break
            status = attempt.kill(how)
            unfinished = [name for name in files_in(folder / "out") if re.search(r"\.(partial|tmp)$", name)]
            kills.append({"how": how, "at": "change" if at_write else "moment", "inside_write": bool(unfinished)})
            if status == 0:
                break
            if kind.own_statuses and not how.startswith("SIGKILL"):
                number = getattr(signal, how)
                if status == -number:
                    ended = _sizes(folder / "out")
                elif status != 128 + number:
                    raise _Finding(f"{how} ended it with status {status}, not {128 + number}: {attempt.last_line()}")
            if kind.patient and (left := wait_for_end(attempt.token)):
                raise _Finding(f"{len(left)} processes had not ended {_WAIT_SECONDS} s after {how}")
        if status := attempt.process.wait():
            raise _Finding(f"attempt {len(kills) + 1} ended with status {status}: {attempt.last_line()}")
        if left := wait_for_end(attempt.token, 10):
            raise _Finding(f"{len(left)} processes were left behind")
        if ended not in (None, _sizes(folder / "out")):
            raise _Finding("a signal ended it in the middle of its work as if it knew none")
    except _Finding as finding:
        return kills, str(finding)
    finally:
        if attempt:
            send(marked(attempt.token), signal.SIGKILL)
    return kills, ""


# What came of it


def facts_of(path: Path, folder: Path) -> dict[str, str]:
    """What a file holds, as names and digests, without what differs by nature (``_VOLATILE``, the run's own folder)."""
    if path.suffix in (".pth", ".pt"):
        import torch

        content = torch.load(path, map_location="cpu", weights_only=False)  # our own, written a moment ago
        content = {name: value for name, value in content.items() if name != "lskd_checksum"}  # of times, too
    elif path.suffix == ".jsonl":
        content = [json.loads(line) for line in path.read_text().splitlines()]
    elif path.suffix == ".json":
        content = json.loads(path.read_text())
    else:
        content = path.read_bytes()
    return {name: _digest(value, folder) for name, value in _leaves(content, "") if not _UNSET.match(name)}


def _leaves(value: object, name: str) -> Iterator[tuple[str, object]]:
    if hasattr(value, "__dict__") and type(value).__name__ in ("Namespace", "DictConfig"):
        value = dict(vars(value)) if type(value).__name__ == "Namespace" else dict(value)
    if isinstance(value, Mapping):
        for key, part in value.items():
            if key not in _VOLATILE:
                yield from _leaves(part, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        yield f"{name}/length", len(value)
        for number, part in enumerate(value):
            yield from _leaves(part, f"{name}/{number}")
    else:
        yield name, value


def _digest(value: object, folder: Path) -> str:
    if type(value).__name__ in ("Tensor", "Parameter"):
        data = f"{value.dtype} {tuple(value.shape)}".encode() + value.detach().contiguous().numpy().tobytes()
    else:
        data = value if isinstance(value, bytes) else repr(value).replace(str(folder), ".").encode()
    return hashlib.sha256(data).hexdigest()


def differences(one: Path, other: Path) -> list[str]:
    """What the folders ``out`` of two runs differ in, a line each; bits count, times do not."""
    names = [
        {str(Path(name).relative_to(folder / "out")) for name in files_in(folder / "out", _UNCOMPARED)}
        for folder in (one, other)
    ]
    found = [f"{name} is missing" for name in sorted(names[0] - names[1])]
    found += [f"{name} is left over" for name in sorted(names[1] - names[0])]
    for name in sorted(names[0] & names[1]):
        facts, others = (facts_of(folder / "out" / name, folder) for folder in (one, other))
        odd = [fact for fact in {**facts, **others} if facts.get(fact) != others.get(fact)]
        if odd:
            found.append(f"{name} differs in {len(odd)} of {len(facts)} parts: {', '.join(odd[:3])}")
    return found


# The soak


class Soak:
    """A folder of a soak: what was found so far, and the runs of the moment.

    Args:
        folder: new, empty, or of the same soak.
        kinds: those to run.
        seed: of all moments and signals.

    Raises:
        UserError: the folder is in use, or holds something else or a soak of another commit or seed.
    """

    def __init__(self, folder: Path, kinds: dict[str, Kind], seed: int) -> None:
        self.folder, self.kinds, self.seed = folder, kinds, seed
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"commit": commit(), "seed": seed}
        if (folder / MARK).is_file():
            if (then := json.loads((folder / MARK).read_text())) != facts:
                raise UserError(f"{folder} holds a soak of {then}, this one is of {facts}; give another --output")
        elif any(folder.iterdir()):
            raise UserError(f"{folder} holds other files; give a new folder")
        else:
            write_atomically(folder / MARK, json.dumps(facts).encode())
        self._journal = (folder / "journal.jsonl").open("ab", buffering=0)
        if not try_lock(self._journal):
            raise UserError(f"another soak is running in {folder}")
        self.runs = read_journal(folder / "journal.jsonl")

    def kills_of(self, name: str) -> int:
        """How many kills of a kind there have been."""
        return sum(len(run["kills"]) for run in self.runs if run["kind"] == name)

    def undisturbed(self, name: str) -> Undisturbed:
        """The undisturbed run of a kind, made where there is none yet."""
        folder = self.folder / "undisturbed" / name
        facts = folder / "facts.json"
        if not facts.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            attempt = Attempt(self.kinds[name].command, folder)
            try:
                _, seen = attempt.watch(lambda seconds, changes: False)
            finally:
                send(marked(attempt.token), signal.SIGKILL)
            if attempt.process.wait():
                raise UserError(f"an undisturbed {name} failed: {attempt.last_line()}; see {folder}/print.txt")
            write_atomically(facts, json.dumps(vars(seen)).encode())
        return Undisturbed(**json.loads(facts.read_text()))

    def disturbed(self, name: str, each: int) -> dict:
        """One more run of a kind, killed up to ``each`` times and compared; it is noted in the journal."""
        number = sum(run["kind"] == name for run in self.runs)
        normal = self.undisturbed(name)
        folder = self.folder / "runs" / f"{name}-{number}"
        shutil.rmtree(folder, ignore_errors=True)  # of a soak that was stopped
        rng = random.Random(f"{self.seed} {name} {number}")
        kills, finding = disturb(self.kinds[name], folder, normal, each, rng)
        found = [finding] if finding else differences(self.folder / "undisturbed" / name, folder)
        run = {"kind": name, "run": number, "kills": kills, "found": found, "time": now()}
        write_through(self._journal, journal_line(run))
        self.runs.append(run)
        if not found:
            shutil.rmtree(folder)
        return run

    def row(self, name: str) -> dict:
        """What was done to a kind and what was found."""
        runs = [run for run in self.runs if run["kind"] == name]
        kills = [kill for run in runs for kill in run["kills"]]
        how = Counter(kill["how"].partition(",")[0] for kill in kills)
        return {
            "kills": len(kills),
            **{number: how[number] for number in ("SIGKILL", "SIGTERM", "SIGINT")},
            "inside_write": sum(kill["inside_write"] for kill in kills),
            "runs": len(runs),
            "found": [f"run {run['run']}: {text}" for run in runs for text in run["found"]],
        }


def soak(folder: Path, kinds: dict[str, Kind], seed: int, kills: int, each: int) -> dict[str, dict]:
    """Kill until each kind has had its share of ``kills``; a row of the report for each."""
    place = Soak(folder, kinds, seed)
    whole = sum(kind.share for kind in kinds.values())
    wanted = {name: kills * kind.share / whole for name, kind in kinds.items()}
    while sum(map(place.kills_of, kinds)) < kills:
        name = min(kinds, key=lambda name: place.kills_of(name) / wanted[name])
        left = kills - sum(map(place.kills_of, kinds))
        run = place.disturbed(name, min(each, left))
        done = sum(map(place.kills_of, kinds))
        what = "; ".join(run["found"]) or "the same"
        print(
            f"[{done}/{kills}] {name}: {', '.join(kill['how'] for kill in run['kills']) or 'no kill'}: {what}",
            flush=True,
        )
    return {name: place.row(name) for name in kinds}


def table(rows: dict[str, dict]) -> str:
    """The report as Markdown."""
    columns = ("kills", "SIGKILL", "SIGTERM", "SIGINT", "inside_write", "runs")
    lines = ["| command | " + " | ".join(columns).replace("_", " a ") + " | findings |"]
    lines.append("|---|" + "---:|" * (len(columns) + 1))
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(str(row[column]) for column in columns) + f" | {len(row['found'])} |")
    totals = [str(sum(row[column] for row in rows.values())) for column in columns]
    lines.append(f"| all | {' | '.join(totals)} | {sum(len(row['found']) for row in rows.values())} |")
    lines += [f"\n{name}, {found}" for name, row in rows.items() for found in row["found"]]
    return "\n".join(lines)


# Long trainings


def watch_steps(folder: Path, inputs: Path, steps: int) -> dict:
    """Train for ``steps`` steps with a running teacher and two loader processes; what the run uses as it goes."""
    kind = all_kinds(inputs)["training-running-2"]
    per_epoch = 7  # 120 images, 16 a step, half of them twice
    words = ["--epochs", str(-(-steps // per_epoch)), "--print-freq", str(per_epoch)]
    shutil.rmtree(folder, ignore_errors=True)
    attempt = Attempt((*kind.command, *words), folder)
    samples, place = [], 0
    try:
        while attempt.process.poll() is None:
            time.sleep(0.05)
            with (folder / "print.txt").open() as output:
                output.seek(place)
                text = output.read()
            if found := re.findall(r"^Epoch (\d+)/\d+ done", text, re.MULTILINE):
                place += len(text.encode())
                samples.append({"step": int(found[-1]) * per_epoch, **usage(marked(attempt.token))})
        if status := attempt.process.wait():
            raise UserError(f"the training ended with status {status}: {attempt.last_line()}")
    finally:
        send(marked(attempt.token), signal.SIGKILL)
    early = next(sample for sample in samples if sample["step"] >= min(200, steps // 2))
    return {"early": early, "late": samples[-2]}  # the last one may see processes end


def usage(pids: list[int]) -> dict:
    """Resident memory in MB (shared pages counted for each), open files and number of processes."""
    memory = files = processes = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            files += len(os.listdir(f"/proc/{pid}/fd"))
            memory += pages * os.sysconf("SC_PAGE_SIZE")
            processes += 1
    return {"memory_mb": round(memory / 1e6, 1), "files": files, "processes": processes}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="soak.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(all_kinds(Path("inputs")))
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="in all (default: 20)")
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="KIND", help=f"of {', '.join(names)} (default: all)"
    )
    parser.add_argument("--each", type=int, default=6, metavar="N", help="kills of one run at most (default: 6)")
    parser.add_argument("--steps", type=int, default=0, metavar="N", help="also watch a training of N steps")
    parser.add_argument("--seed", type=int, default=0, help="of moments and signals (default: 0)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "results" / "soak", metavar="DIR", help="(default: results/soak)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report")
    args = parser.parse_args()
    if args.kills < 0 or args.each < 1 or (args.steps and args.steps < 100):
        raise UserError("--kills is a number from 0, --each from 1, --steps from 100")
    output = args.output.absolute()
    inputs = output.with_name(f"{output.name}-inputs")
    prepare_for = list(args.only) if args.kills else []
    output.parent.mkdir(parents=True, exist_ok=True)
    prepare(inputs, [*prepare_for, *(["training-running-2"] if args.steps else [])])
    kinds = {name: kind for name, kind in all_kinds(inputs).items() if name in args.only}
    rows = soak(output, kinds, args.seed, args.kills, args.each) if args.kills else {}
    report = {"date": now(), "commit": commit(), "cores": cores(), "command": sys.argv[1:], "kinds": rows}
    if rows:
        print(table(rows))
    if args.steps:
        report["steps"] = watch_steps(output.with_name(f"{output.name}-steps"), inputs, args.steps)
        for name in ("early", "late"):
            print(", ".join(f"{key} {value}" for key, value in report["steps"][name].items()))
    if args.json:
        write_atomically(args.json.absolute(), (json.dumps(report, indent=1) + "\n").encode())
    if any(row["found"] for row in rows.values()):
        sys.exit(1)


if __name__ == "__main__":
    run_command("soak.py", main, go_on="the same command goes on after the last run compared")

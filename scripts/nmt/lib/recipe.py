"""The translation recipe: the commands that train experts and students, store and evaluate, from a few settings.

    DATA=... OUT=... python scripts/nmt/lib/recipe.py experts [ARGUMENT...]      (train_experts.sh)
    DATA=... OUT=... python scripts/nmt/lib/recipe.py student [ARGUMENT...]      (train_student.sh)

Hyper-parameters are those of Tan et al. (2019) for IWSLT; their text names no number of epochs: 50 is ours. With
PAPER=1 those in `PAPER_DEFAULTS` are of their scripts, too. Studies build the same commands from the same functions.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from fairseq_plugins.multilingual.kept_vocabulary import dictionary_name, keep_vocabulary
from scripts.lib import jobs
from scripts.lib.environment import check_environment
from scripts.nmt.lib.lang_pair import parse_pairs
from scripts.nmt.lib.user_error import UserError, run_cli
from vision_reference.errors import run_command

ROOT = Path(__file__).resolve().parents[3]
TAILS = ("uniform", "drop", "bucket")  # of `fairseq_plugins.losses.soft_labels`, which needs torch
COMMANDS = ROOT / "scripts" / "nmt"


@dataclass(frozen=True)
class Setting:
    """A hyper-parameter: its default, what reads its value, the options of fairseq-train that take it, and the values
    that there are, where they are few."""

    default: str
    kind: Callable[[str], object]
    options: tuple[str, ...]
    choices: tuple[str, ...] = ()


SETTINGS = {
    "arch": Setting("transformer_iwslt_de_en", str, ("--arch",)),
    "encoder_layers": Setting("6", int, ("--encoder-layers",)),
    "decoder_layers": Setting("6", int, ("--decoder-layers",)),
    "embed_dim": Setting("512", int, ("--encoder-embed-dim", "--decoder-embed-dim")),
    "ffn_dim": Setting("1024", int, ("--encoder-ffn-embed-dim", "--decoder-ffn-embed-dim")),
    "heads": Setting("4", int, ("--encoder-attention-heads", "--decoder-attention-heads")),
    "dropout": Setting("0.3", float, ("--dropout",)),
    "label_smoothing": Setting("0.1", float, ("--label-smoothing",)),
    "adam_betas": Setting("(0.9, 0.98)", str, ("--adam-betas",)),
    "clip_norm": Setting("0", float, ("--clip-norm",)),
    "lr": Setting("5e-4", float, ("--lr",)),
    "lr_scheduler": Setting("inverse_sqrt", str, ("--lr-scheduler",)),
    "warmup_updates": Setting("4000", int, ("--warmup-updates",)),
    "warmup_init_lr": Setting("1e-7", float, ("--warmup-init-lr",)),
    "min_lr": Setting("1e-9", float, ("--stop-min-lr",)),
    "max_tokens": Setting("4096", int, ("--max-tokens",)),
    "update_freq": Setting("1", str, ("--update-freq",)),
    "max_epoch": Setting("50", int, ("--max-epoch",)),
    "max_update": Setting("", int, ("--max-update",)),
    # none: only the best and the last checkpoint; evaluate_bleu.py --average N needs the last N epochs'
    "keep_checkpoints": Setting("", int, ("--keep-last-epochs",)),
    "seed": Setting("1", int, ("--seed",)),
    "log_interval": Setting("20", int, ("--log-interval",)),
    # of students and of what teaches them
    "temperature": Setting("1", float, ("--kd-temperature",)),
    "kd_weight": Setting("0.9", float, ("--kd-weight",)),
    "kd_loss": Setting("", str, ("--kd-loss",)),  # kl
    "kd_tail": Setting("", str, ("--kd-tail",), TAILS),  # uniform
    "top_k": Setting("8", int, ("--top-k",)),
}
_OF_TEACHING = ("temperature", "kd_weight", "kd_loss", "kd_tail", "top_k")
# Where the scripts of Tan et al. differ from the recipe above; the tokenization stays ours.
PAPER_DEFAULTS = {
    "encoder_layers": "2",
    "decoder_layers": "2",
    "embed_dim": "256",
    "temperature": "0.6",
    "kd_tail": "drop",
    "top_k": "4",
}
STORED_TEMPERATURES = (1.0, 2.0, 3.0, 64.0)  # by store_teacher_outputs.py, where it is told none
_PLACES = ("DATA", "OUT", "PAIRS", "JOBS", "CPU", "DRY_RUN", "PAPER")
_PLACES_OF_STUDENTS = ("EXPERTS", "TEACHERS", "TEACHER_OUTPUTS")

# glibc returns big blocks to the system at every free; keeping them makes training on a CPU 20 % faster.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "8589934592", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


def check_setting(name: str, value: str, called: str = "") -> None:
    """Refuses a value that the setting cannot have.

    Args:
        called: how the message names the setting; none: in upper case, as in the environment.

    Raises:
        UserError: it is no number where one is needed, or none of the values that there are.
    """
    setting, called = SETTINGS[name], called or name.upper()
    if setting.choices and value not in setting.choices:
        raise UserError(f"{called} is '{value}'; give one of {', '.join(setting.choices)}")
    try:
        setting.kind(value)
    except ValueError:
        what = "a whole number" if setting.kind is int else "a number"
        raise UserError(f"{called} is '{value}'; give {what}, such as {setting.default or '1000'}") from None


def filled(given: Mapping[str, str], paper: bool = False) -> dict[str, str]:
    """All settings: `given` ones, which must fit, and the recipe's, or with `paper` those of Tan et al.

    Raises:
        UserError: a value that does not fit.
    """
    for name, value in given.items():
        check_setting(name, value)
    defaults = PAPER_DEFAULTS if paper else {}
    return {name: given.get(name) or defaults.get(name, setting.default) for name, setting in SETTINGS.items()}


def training_options(settings: Mapping[str, str], cpu: bool) -> list[str]:
    """What experts and students share; the plugin also where nothing is distilled: a kill then tears no checkpoint."""
    kept = [] if settings["keep_checkpoints"] else ["--no-epoch-checkpoints"]
    words = ["--user-dir", str(ROOT / "fairseq_plugins"), "--share-all-embeddings", "--optimizer", "adam"]
    words += [*kept, "--log-format", "json"]
    for name, setting in SETTINGS.items():
        if settings[name] and name not in _OF_TEACHING:
            words += [word for option in setting.options for word in (option, settings[name])]
    return words + (["--cpu", "--num-workers", "0"] if cpu else [])


def expert_command(data_bin: Path, pair: str, folder: Path, settings: Mapping[str, str], cpu: bool) -> list[str]:
    """Trains one bilingual expert by fairseq's own task and criterion."""
    source, _, target = pair.partition("-")
    return [
        *("fairseq-train", str(data_bin), "--task", "translation", "--source-lang", source, "--target-lang", target),
        *("--criterion", "label_smoothed_cross_entropy", *training_options(settings, cpu), "--save-dir", str(folder)),
    ]


def student_command(
    data_bin: Path,
    pairs: Iterable[str],
    folder: Path,
    settings: Mapping[str, str],
    cpu: bool,
    teaching: Iterable[str] = (),
) -> list[str]:
    """Trains one multilingual student; without `teaching` (--teachers X or --teacher-outputs X) on labels alone."""
    pairs, teaching = list(pairs), list(teaching)
    if teaching:
        learning = ["--task", "multilingual_translation_kd", *teaching]
        learning += ["--criterion", "label_smoothed_kd_cross_entropy"]
        learning += ["--kd-temperature", settings["temperature"], "--kd-weight", settings["kd_weight"]]
        learning += ["--kd-loss", settings["kd_loss"]] if settings["kd_loss"] else []
        if settings["kd_tail"] and teaching[0] == "--teacher-outputs":
            learning += ["--kd-tail", settings["kd_tail"]]
    else:
        learning = ["--task", "translation_multi_simple_epoch", "--criterion", "label_smoothed_cross_entropy"]
    # The order of --langs gives the language tokens their numbers, so it must not depend on anything but the pairs.
    langs = dict.fromkeys(language for pair in pairs for language in pair.split("-"))
    return [
        *("fairseq-train", str(data_bin), *learning, "--lang-pairs", ",".join(pairs), "--langs", ",".join(langs)),
        *("--encoder-langtok", "tgt", "--decoder-langtok", *training_options(settings, cpu), "--save-dir", str(folder)),
    ]


def store_command(
    data_bin: Path, pair: str, teacher: str, folder: Path, top_k: str, cpu: bool, temperatures: Iterable[float] = ()
) -> list[str]:
    """Stores what an expert predicts for the training set, for these temperatures (none: those of the command)."""
    listed = ",".join(f"{one:g}" for one in temperatures)
    return [
        *("python", str(COMMANDS / "store_teacher_outputs.py"), "--data-bin", str(data_bin), "--lang-pair", pair),
        *("--teacher", teacher, "--output", str(folder), "--top-k", top_k, *(["--cpu"] if cpu else [])),
        *(["--temperatures", listed] if listed else []),
    ]


def sequences_command(data: Path, experts: Mapping[str, str], output: Path, cpu: bool) -> list[str]:
    """Makes a prepared folder whose training targets are the experts' translations."""
    named = ",".join(f"{pair}={path}" for pair, path in experts.items())
    command = ["python", str(COMMANDS / "distil_sequences.py"), "--data", str(data), "--pairs", ",".join(experts)]
    return [*command, "--experts", named, "--output", str(output), *(["--cpu"] if cpu else [])]


def evaluate_command(data_bin: Path, checkpoint: Path, pairs: Iterable[str], output: Path) -> list[str]:
    """Translates and scores the test set."""
    return [
        *("python", str(COMMANDS / "evaluate_bleu.py"), "--data-bin", str(data_bin), "--checkpoint", str(checkpoint)),
        *("--lang-pairs", ",".join(pairs), "--output", str(output)),
    ]


def compare_command(first: Path, second: Path, output: Path) -> list[str]:
    """Compares two evaluations by paired bootstrap over the test set's sentences."""
    command = ["python", str(COMMANDS / "evaluate_bleu.py"), "--compare", str(first), str(second)]
    return [*command, "--output", str(output)]


def keep_vocabulary_of(data_bin: Path, pairs: Iterable[str], folder: Path) -> None:
    """Copy what the checkpoints in `folder` need beside them to translate plain text."""
    languages = dict.fromkeys(language for pair in pairs for language in pair.split("-"))
    keep_vocabulary(data_bin, {language: data_bin / dictionary_name(language) for language in languages}, folder)


# The shell scripts: settings from the environment


def choose_pairs(data: Path, wanted: str) -> list[str]:
    """The pairs to train on: `wanted`, such as en-de,en-ru, or all that the prepared folder `data` has.

    Raises:
        UserError: `data` is no prepared folder, or lacks a pair of `wanted`.
    """
    try:
        held = [str(pair) for pair in json.loads((data / "manifest.json").read_text(encoding="utf-8"))["pairs"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"DATA='{data}' is no prepared folder (no manifest.json in it); make one with scripts/nmt/prepare.py"
        ) from None
    for pair in parse_pairs(wanted) if wanted else []:
        if str(pair) not in held:
            raise UserError(f"PAIRS: pair {pair} is not in {data}; it holds {', '.join(held)}")
    return wanted.split(",") if wanted else held


def _from_environment(role: str) -> tuple[dict[str, str], dict[str, str]]:
    """Settings and places. Raises UserError for what is misspelt."""
    of_students = {*(name.upper() for name in _OF_TEACHING), *_PLACES_OF_STUDENTS}
    of_all = {*(name.upper() for name in SETTINGS), *_PLACES} - of_students
    if role == "student":
        check_environment(of_all | of_students)
    else:
        check_environment(of_all, of_students)
    settings = {name: os.environ[name.upper()] for name in SETTINGS if os.environ.get(name.upper())}
    if (paper := os.environ.get("PAPER", "")) not in ("", "0", "1"):
        raise UserError(f"PAPER is '{paper}'; give 1 for the settings of Tan et al.'s scripts")
    return filled(settings, paper == "1"), {name: os.environ.get(name, "") for name in (*_PLACES, *_PLACES_OF_STUDENTS)}


def _teaching(
    places: Mapping[str, str], pairs: list[str], settings: Mapping[str, str], cpu: bool
) -> tuple[list[list[str]], list[str]]:
    """Commands that store what is missing, and how the student is told of its teachers."""
    teachers = {}
    if places["EXPERTS"] and places["TEACHERS"]:
        raise UserError("both EXPERTS and TEACHERS are set; set one of them")
    if places["EXPERTS"]:
        teachers = {pair: f"{places['EXPERTS']}/{pair}/checkpoint_best.pt" for pair in pairs}
    elif places["TEACHERS"]:
        teachers = dict(item.partition("=")[::2] for item in places["TEACHERS"].split(","))
    if outputs := places["TEACHER_OUTPUTS"]:
        data_bin = Path(places["DATA"], "data-bin")
        temperature = float(settings["temperature"])
        wanted = [] if temperature in STORED_TEMPERATURES else sorted({*STORED_TEMPERATURES, temperature})
        storing = [
            store_command(data_bin, pair, teacher, Path(outputs, pair), settings["top_k"], cpu, wanted)
            for pair, teacher in teachers.items()
        ]
        stores = [f"{pair}={outputs}/{pair}" for pair in teachers or pairs]
        return storing, ["--teacher-outputs", ",".join(stores)]
    return [], ["--teachers", ",".join(f"{pair}={file}" for pair, file in teachers.items())] if teachers else []


def _read_by(teaching: list[str]) -> tuple[str, ...]:
    """Files that tell the teachers of `_teaching` from others: experts' checkpoints, or manifests of their outputs."""
    if not teaching:
        return ()
    places = [item.partition("=")[2] for item in teaching[1].split(",")]
    if teaching[0] == "--teacher-outputs":
        return tuple(f"{place}/manifest.json" for place in places)
    return tuple(file for place in places for file in place.split(":"))


def main() -> None:
    role, *more = sys.argv[1:]
    settings, places = _from_environment(role)
    pairs = choose_pairs(Path(places["DATA"]), places["PAIRS"])
    if not places["OUT"]:
        raise UserError("OUT is not set; set it to the folder for what is trained, such as results/experts")
    if places["CPU"] not in ("", "0", "1"):
        raise UserError(f"CPU is '{places['CPU']}'; give 1 to train on the CPU, 0 for GPUs")
    cpu = places["CPU"] == "1" or (not places["CPU"] and not jobs.gpus())
    if places["JOBS"] and not (places["JOBS"].isdecimal() and int(places["JOBS"])):
        raise UserError(f"JOBS is '{places['JOBS']}'; give how many run side by side, such as 2")
    # Small models gain little from a second thread: without a GPU as many side by side as there are cores.
    at_once = int(places["JOBS"] or (jobs.cores() if cpu else 1))
    teaches = [name for name in ("EXPERTS", "TEACHERS", "TEACHER_OUTPUTS") if places[name]]
    of_teaching = [name.upper() for name in _OF_TEACHING if name != "kd_tail" and os.environ.get(name.upper())]
    if role == "student" and of_teaching and not teaches:
        raise UserError(
            f"{of_teaching[0]} was given without a teacher; set EXPERTS, TEACHERS or TEACHER_OUTPUTS, or drop it to "
            "train on labels alone"
        )
    if role == "student" and not places["TEACHER_OUTPUTS"]:
        if os.environ.get("KD_TAIL"):
            raise UserError("KD_TAIL is about what TEACHER_OUTPUTS left out; set TEACHER_OUTPUTS, or drop KD_TAIL")
        if places["PAPER"] == "1" and (places["EXPERTS"] or places["TEACHERS"]):
            print("note: Tan et al. store the experts' outputs (TEACHER_OUTPUTS); here they run along", file=sys.stderr)
    data_bin, out = Path(places["DATA"], "data-bin"), Path(places["OUT"])
    storing: list[list[str]] = []
    teaching: list[str] = []
    if role == "experts":
        commands = {out / pair: expert_command(data_bin, pair, out / pair, settings, cpu) for pair in pairs}
    else:
        storing, teaching = _teaching(places, pairs, settings, cpu)
        commands = {out: student_command(data_bin, pairs, out, settings, cpu, teaching)}
    if places["DRY_RUN"] == "1":
        for command in [*storing, *([*command, *more] for command in commands.values())]:
            print(shlex.join(command))
        return
    shown = [f"{name}={value}" for name, value in places.items() if value]
    shown += [f"{name.upper()}={value}" for name, value in settings.items() if value]
    print(f"{role}: {shlex.join(shown)}", file=sys.stderr, flush=True)
    if cpu:
        for name, value in KEEP_MEMORY.items():
            os.environ.setdefault(name, value)
    for folder, spoken in ((out / pair, [pair]) for pair in pairs) if role == "experts" else [(out, pairs)]:
        keep_vocabulary_of(data_bin, spoken, folder)
    for command in storing:
        if code := subprocess.run(command).returncode:
            sys.exit(code)
    reads = _read_by(teaching)
    todo = [jobs.Job(folder.name, folder, (*command, *more), reads=reads) for folder, command in commands.items()]
    jobs.run_as_command(
        "train_experts.sh" if role == "experts" else "train_student.sh",
        todo,
        jobs.Here(jobs.cpu_slots(min(at_once, len(todo)))),
    )


if __name__ == "__main__":
    name = "train_experts.sh" if sys.argv[1:2] == ["experts"] else "train_student.sh"
    run_cli(name, lambda: run_command(name, main))  # the runner of jobs has an exception of its own for mistakes

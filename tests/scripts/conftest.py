"""What the tests of scripts share: the scripts as commands, and one small pipeline of translation run for all."""

import fcntl
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"

# A model of a few thousand weights: enough to learn the number words below in seconds.
TINY = {
    "CPU": "1",
    "OMP_NUM_THREADS": "1",
    "ENCODER_LAYERS": "1",
    "DECODER_LAYERS": "1",
    "EMBED_DIM": "32",
    "FFN_DIM": "64",
    "HEADS": "2",
    "DROPOUT": "0.0",
    "LR": "1e-2",
    "WARMUP_UPDATES": "40",
    "MAX_TOKENS": "512",
}
_NUMBERS = {
    "de": ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"],
    "en": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "ru": ["ноль", "один", "два", "три", "четыре", "пять", "шесть", "семь", "восемь", "девять"],
}


def counting_text(language: str, lines: int, seed: int) -> list[str]:
    """Sequences of number words; the same arguments but for the language give the translation."""
    rng = random.Random(seed)
    words = _NUMBERS[language]
    return [" ".join(words[rng.randrange(10)] for _ in range(rng.randint(2, 6))) for _ in range(lines)]


@pytest.fixture(scope="session")
def run_script() -> Callable[..., subprocess.CompletedProcess]:
    """Run a script of scripts/nmt/, or with its folder of scripts/; keyword arguments go into the environment."""

    def run(name: str, *arguments: object, **variables: object) -> subprocess.CompletedProcess:
        program = "bash" if name.endswith(".sh") else sys.executable
        environment = {**os.environ, **{key: str(value) for key, value in variables.items()}}
        command = [program, str(SCRIPTS / (name if "/" in name else f"nmt/{name}")), *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="session")
def refused(run_script) -> Callable[..., str]:
    """Run a script that must refuse what it is given; returns its one line of complaint."""

    def run(name: str, *arguments: object, **variables: object) -> str:
        done = run_script(name, *arguments, **variables)
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.strip().splitlines()
        return line

    return run


@pytest.fixture(scope="session")
def scripts_folder() -> Path:
    return SCRIPTS


@pytest.fixture(scope="session")
def tiny() -> dict[str, str]:
    """Hyper-parameters of a model that learns number words in seconds on a CPU."""
    return TINY


@pytest.fixture(scope="session")
def write_parallel() -> Callable[..., Path]:
    return _write_parallel


def _write_parallel(folder: Path, languages: tuple[str, ...] = ("en", "de", "ru"), train: int = 400) -> Path:
    """A folder of `{train,valid,test}.<lang>` files with number words."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, lines) in enumerate({"train": train, "valid": 40, "test": 60}.items()):
        for language in languages:
            text = counting_text(language, lines, seed)
            (folder / f"{split}.{language}").write_text("\n".join(text) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def pipeline(run_script, tmp_path_factory) -> Path:
    """Prepared data, two experts, a distilled student and BLEU of student and one expert, made by the command lines.

    Made once for all test processes: the first to come makes it while the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "nmt-pipeline"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "done").exists():
            _run_pipeline(run_script, shared)
            (shared / "done").touch()
    return shared


def _run_pipeline(run_script, folder: Path) -> None:
    text = _write_parallel(folder / "text")
    prepare = ["parallel", "--input", text, "--pairs", "en-de,en-ru", "--output", folder / "data"]
    evaluate = ["--data-bin", folder / "data" / "data-bin"]
    student, expert = folder / "student", folder / "experts" / "en-de"
    of_student = ["--checkpoint", student / "checkpoint_best.pt", "--output", student / "bleu.json"]
    of_expert = ["--checkpoint", expert / "checkpoint_best.pt", "--output", expert / "bleu.json"]
    steps = [
        ("prepare.py", [*prepare, "--vocab-size", "70", "--model-type", "unigram"], {}),
        ("train_experts.sh", [], {"OUT": folder / "experts", "MAX_EPOCH": 12}),
        ("train_student.sh", [], {"OUT": student, "EXPERTS": folder / "experts", "MAX_EPOCH": 8}),
        ("evaluate_bleu.py", [*evaluate, *of_student, "--lang-pairs", "en-de,en-ru"], {}),
        ("evaluate_bleu.py", [*evaluate, *of_expert, "--lang-pairs", "en-de", "--baseline", student / "bleu.json"], {}),
    ]
    for name, arguments, variables in steps:
        done = run_script(name, *arguments, **TINY, DATA=folder / "data", **variables)
        assert done.returncode == 0, done.stdout + done.stderr
    # What the last step printed is what it wrote.
    assert done.stdout == (expert / "bleu.md").read_text(encoding="utf-8")

"""A toy corpus, toy experts trained on it, and fairseq's command lines: in this process, or as a user runs them."""

import contextlib
import importlib
import json
import logging
import os
import random
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("fairseq", reason="the translation part needs fairseq 0.12.2 and Python 3.10")

import torch
from fairseq import checkpoint_utils, options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq_cli import generate as fairseq_generate
from fairseq_cli import preprocess
from fairseq_cli import train as fairseq_train

REPO = Path(__file__).parents[2]
USER_DIR = REPO / "fairseq_plugins"
utils.import_user_module(Namespace(user_dir=str(USER_DIR)))
# another test may have imported the package first, and then fairseq does not look for tasks
for module in ("translation_kd", "multilingual_translation_kd"):
    importlib.import_module(f"fairseq_plugins.tasks.{module}")

# how each toy language renders the English words e0 e1 ...
LANGUAGES = {
    "de": lambda words: [f"d{w}" for w in reversed(words)],
    "ru": lambda words: [f"r{w}" for w in sorted(words)],
    "fr": lambda words: [f"f{w}" for w in words],
}
TINY = [
    *("--arch", "transformer_tiny", "--share-all-embeddings", "--encoder-layers", "1", "--decoder-layers", "1"),
    *("--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "16", "--decoder-ffn-embed-dim", "16"),
]
TRAINING = [
    *("--cpu", "--num-workers", "0", "--seed", "5", "--optimizer", "adam", "--lr", "5e-3", "--max-tokens", "120"),
    *("--log-format", "json", "--log-interval", "1", "--dropout", "0", "--label-smoothing", "0.1"),
]


def write_corpus(folder, lang, sizes):
    rng = random.Random(lang)
    for split, size in sizes.items():
        with (
            open(folder / f"{split}.en-{lang}.en", "w") as english,
            open(folder / f"{split}.en-{lang}.{lang}", "w") as other,
        ):
            for _ in range(size):
                words = [rng.randrange(8) for _ in range(rng.randint(2, 7))]
                english.write(" ".join(f"e{w}" for w in words) + "\n")
                other.write(" ".join(LANGUAGES[lang](words)) + "\n")


def run_preprocess(*argv):
    preprocess.main(options.get_preprocessing_parser().parse_args([str(arg) for arg in argv]))


def parse(argv):
    """The options of a fairseq-train command line."""
    return options.parse_args_and_arch(options.get_training_parser(), input_args=[str(arg) for arg in argv])


class _JsonLines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        with contextlib.suppress(ValueError):
            self.lines.append((record.name, json.loads(record.getMessage())))


def train_in_process(argv):
    """fairseq-train without starting a process; the JSON log lines, by tag (`train_inner`, `valid`, `train`)."""
    vars(checkpoint_utils.save_checkpoint).pop("best", None)
    handler, root = _JsonLines(), logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        fairseq_train.main(convert_namespace_to_omegaconf(parse(argv)))
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    logs = {}
    for tag, line in handler.lines:
        logs.setdefault(tag, []).append(line)
    return logs


@pytest.fixture(scope="session")
def train():
    return train_in_process


@pytest.fixture(scope="session")
def generate():
    """fairseq-generate without starting a process; the corpus score."""

    def run(argv):
        argv = [str(arg) for arg in argv]
        args = options.parse_args_and_arch(options.get_generation_parser(), input_args=["--cpu", *argv])
        return fairseq_generate.main(convert_namespace_to_omegaconf(args)).score()

    return run


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """Data for en-de, en-ru and en-fr with one dictionary, and experts for the first two.

    Attributes:
        data: folder written by fairseq-preprocess.
        de, de2, ru: checkpoints of bilingual experts; `ru` has another width and depth.
        tiny, training, bilingual, multilingual: parts of command lines.
    """
    folder = tmp_path_factory.mktemp("toy")
    words = [f"{prefix}{w}" for prefix in "edrf" for w in range(8)]
    (folder / "dict.txt").write_text("".join(f"{word} 1\n" for word in words))
    data = folder / "data"
    for lang in LANGUAGES:
        write_corpus(folder, lang, {"train": 60, "valid": 12, "test": 6})
        pair = f"en-{lang}"
        prefixes = [
            arg for split in ("train", "valid", "test") for arg in (f"--{split}pref", folder / f"{split}.{pair}")
        ]
        dictionary = folder / "dict.txt"
        languages = ["-s", "en", "-t", lang, "--srcdict", dictionary, "--tgtdict", dictionary, "--destdir", data]
        run_preprocess(*languages, *prefixes, "--workers", 1)
    multilingual = [data, "--lang-pairs", "en-de,en-ru,en-fr", "--encoder-langtok", "tgt", "--decoder-langtok"]
    toy = SimpleNamespace(folder=folder, data=data, tiny=TINY, training=TRAINING, multilingual=multilingual)
    toy.task = ["--task", "multilingual_translation_kd", "--criterion", "label_smoothed_kd_cross_entropy"]

    def expert(name, lang, *extra):
        toy_expert = [data, "-s", "en", "-t", lang, "--task", "translation", *TINY, *TRAINING, *extra]
        criterion = ["--criterion", "label_smoothed_cross_entropy", "--max-update", 12]
        train_in_process([*toy_expert, *criterion, "--no-epoch-checkpoints", "--save-dir", folder / name])
        return folder / name / "checkpoint_last.pt"

    toy.de = expert("expert-de", "de")
    toy.de2 = expert("expert-de2", "de", "--seed", 6)
    wider = ["--encoder-embed-dim", 24, "--decoder-embed-dim", 24, "--decoder-layers", 2]
    toy.ru = expert("expert-ru", "ru", *wider)
    return toy


@pytest.fixture(scope="session")
def setup():
    """Task, model and criterion as fairseq-train sets them up, training data loaded."""

    def setup_training(argv):
        args = parse(argv)
        torch.manual_seed(args.seed)
        task = tasks.setup_task(args)
        model = task.build_model(args)
        criterion = task.build_criterion(args)
        task.load_dataset("train", epoch=1)
        return task, model, criterion

    return setup_training


@pytest.fixture(scope="session")
def batch():
    """Collates sentences of the training data."""

    def collate(task, indices):
        dataset = task.dataset("train")
        return dataset.collater([dataset[index] for index in indices])

    return collate


@pytest.fixture(scope="session")
def command_line():
    """Runs an installed command (`fairseq-train ...`) the way a user does."""

    def run(command, *argv, **kwargs):
        path = Path(sys.executable).parent / command
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        # fairseq logs to one stream and fails on the other
        return subprocess.run(
            [str(path), *map(str, argv)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
            **kwargs,
        )

    return run

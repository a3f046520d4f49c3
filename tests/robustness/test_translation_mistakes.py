"""A user's mistakes with the translation commands: a row is a mistake and the one line that answers it, status 2.

Everything runs in this process, on files made in a second: prepared text, an untrained student of two pairs and an
untrained expert.
"""

import contextlib
import copy
import gzip
import io
import json
import logging
import os
import re
import shlex
import shutil
import sys
from argparse import Namespace
from pathlib import Path

import pytest

pytest.importorskip("fairseq", reason="the translation scripts need fairseq 0.12.2 and Python 3.10")

import sentencepiece
import torch

from fairseq_plugins.files import seal, unseal
from fairseq_plugins.teachers.store import FORMAT
from scripts.nmt import (
    distil_sequences,
    evaluate_bleu,
    export,
    inspect_teacher,
    prepare,
    store_teacher_outputs,
    translate,
)
from scripts.nmt.lib import recipe
from scripts.nmt.lib.user_error import run_cli
from vision_reference.errors import run_command


def _open_store() -> None:
    """What fairseq-train --teacher-outputs opens, without its seconds of preparation."""
    from fairseq_plugins.teachers.stored import StoredTeacher
    from fairseq_plugins.teachers.vocabularies import Vocabulary

    folder, temperature = sys.argv[1:]
    teacher = StoredTeacher(
        Path(folder), Vocabulary("en", "de", "bin/dict.en.txt", "bin/dict.de.txt"), float(temperature), "uniform"
    )
    teacher.check_data(Path("bin"), "train", 4)


COMMANDS = {
    "prepare": prepare.main,
    "translate": translate.main,
    "evaluate_bleu": evaluate_bleu.main,
    "export": export.main,
    "inspect_teacher": inspect_teacher.main,
    "distil_sequences": distil_sequences.main,
    "store_teacher_outputs": store_teacher_outputs.main,
    "train_student": lambda: run_command("train_student.py", recipe.main),  # as the script calls it
    "train_experts": lambda: run_command("train_experts.py", recipe.main),
    "open_store": _open_store,
}
SENTENCES = {"en": "one two three\n", "de": "eins zwei drei\n", "ru": "один два три\n"}


def _text(folder: Path) -> None:
    for language, line in SENTENCES.items():
        for split in ("train", "valid", "test"):
            (folder / f"{split}.{language}").write_text(line * 4, encoding="utf-8")
    (folder / "short.de").write_text("eins\n")
    (folder / "latin.de").write_bytes("fünf\n".encode("latin-1") * 4)
    (folder / "huge.de").write_bytes(b"x" * (1 << 20) + b"xx\n" + b"y\n" * 3)
    (folder / "empty.de").write_text("eins\n\ndrei\nvier\n")
    (folder / "blank.de").write_text("\n\n\n\n")
    (folder / "null.de").touch()
    (folder / "broken.de.gz").write_bytes(gzip.compress(b"eins\n" * 5000)[:-20])
    (folder / "fake.de.gz").write_text("eins\n" * 4)
    (folder / "folder.de").mkdir()
    for prefix in ("short", "latin", "huge", "empty", "blank", "null", "broken", "fake", "folder"):
        (folder / f"{prefix}.en").write_text("one\n" * (5000 if prefix == "broken" else 4))


def _prepared(folder: Path, text: Path) -> None:
    """What the commands read of a folder that prepare.py made."""
    for name in ("text", "data-bin"):
        (folder / name).mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        input=[str(text / f"train.{language}") for language in SENTENCES],
        model_prefix=str(folder / "spm"),
        vocab_size=26,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    entries = "".join(f"{model.id_to_piece(n)} 1\n" for n in range(3, model.get_piece_size()))
    for language in SENTENCES:
        (folder / "data-bin" / f"dict.{language}.txt").write_text(entries)
    for split in ("train", "valid", "test"):
        for target in ("de", "ru"):
            for language in ("en", target):
                shutil.copy(text / f"{split}.{language}", folder / "text" / f"{split}.en-{target}.{language}")
    settings = {"vocab_size": 26, "model_type": "unigram", "character_coverage": 1.0}
    manifest = {"source": "parallel", "pairs": ["en-de", "en-ru"], "settings": settings, "inputs": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _checkpoint(path: Path, data_bin: Path, *task: str) -> None:
    """An untrained model as fairseq-train writes it, its vocabulary beside it."""
    from fairseq import options, tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from omegaconf import OmegaConf

    sizes = [f"--{side}-{name}={value}" for side in ("encoder", "decoder") for name, value in _TINY.items()]
    words = [str(data_bin), *task, "--arch", "transformer", "--share-all-embeddings", *sizes]
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), words))
    model = tasks.setup_task(cfg.task).build_model(cfg.model)
    state = {"args": None, "cfg": OmegaConf.to_container(cfg, resolve=True), "model": model.state_dict()}
    path.parent.mkdir(parents=True)
    torch.save({**state, "extra_state": {}, "optimizer_history": _HISTORY}, path)
    for file in (*data_bin.glob("dict.*"), data_bin.parent / "spm.model"):
        shutil.copy(file, path.parent)


_HISTORY = [{"criterion_name": "x", "optimizer_name": "x", "lr_scheduler_state": {}, "num_updates": 1}]
_TINY = {"layers": 1, "embed-dim": 8, "ffn-embed-dim": 8, "attention-heads": 1}
_STUDENT = ("--task", "translation_multi_simple_epoch", "--lang-pairs", "en-de,en-ru", "--langs", "en,de,ru")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with all that the rows name; the tests run in it."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "text").mkdir()
    _text(folder / "text")
    _prepared(folder / "data", folder / "text")
    data_bin = folder / "data" / "data-bin"
    _checkpoint(folder / "student" / "model.pt", data_bin, *_STUDENT, "--encoder-langtok", "tgt", "--decoder-langtok")
    _checkpoint(folder / "experts" / "en-de" / "checkpoint_best.pt", data_bin, "-s", "en", "-t", "de")
    student = torch.load(folder / "student" / "model.pt", weights_only=False)
    _variants(folder, student)
    (folder / "file").write_text("a file\n")
    (folder / "full").mkdir()
    (folder / "full" / "something").touch()
    (folder / "lines").write_text("one\ntwo\n")
    (folder / "latin1").write_bytes(b"one\nf\xfcnf\n")
    (folder / "old.json").write_text(json.dumps({"pairs": {"en-de": {"references_sha256": "0" * 64}}}))
    (folder / "list.json").write_text("[]")
    (folder / "half.json").write_text('{"pairs": {"en-de"')
    (folder / "other.json").write_text('{"pairs": {"en-de": {"bleu": 1}}}')
    for name, manifest in {
        "m-half": "{",
        "m-list": "[]",
        "m-none": "{}",
        "m-pairs": '{"pairs": 3, "settings": {}}',
    }.items():
        (folder / name).mkdir()
        (folder / name / "manifest.json").write_text(manifest)
    (folder / "no-text").mkdir()
    shutil.copy(folder / "data" / "manifest.json", folder / "no-text")
    shutil.copytree(folder / "data", folder / "unequal")
    (folder / "unequal" / "text" / "train.en-de.de").write_text("eins\n")
    shutil.copytree(folder / "data", folder / "anew")
    for language in SENTENCES:
        entries = (data_bin / f"dict.{language}.txt").read_text().splitlines()
        (folder / "anew" / "data-bin" / f"dict.{language}.txt").write_text("\n".join(entries[::-1]) + "\n")
    shutil.copytree(folder / "data", folder / "no-spm")
    (folder / "no-spm" / "spm.model").write_text("no model")
    _binarized(folder)
    return folder


def _binarized(folder: Path) -> None:
    """Data that can be trained on, a store of the expert's outputs about it, and folders of broken ones of each."""
    from fairseq import options
    from fairseq_cli import preprocess

    data, text = folder / "data" / "data-bin", folder / "text"
    with contextlib.redirect_stdout(io.StringIO()):
        for target in ("de", "ru"):
            words = ["-s", "en", "-t", target, "--destdir", folder / "bin", "--workers", "1"]
            words += ["--srcdict", data / "dict.en.txt", "--tgtdict", data / f"dict.{target}.txt"]
            for split in ("train", "valid", "test"):
                shutil.copy(text / f"{split}.en", folder / f"{split}.en-{target}.en")
                shutil.copy(text / f"{split}.{target}", folder / f"{split}.en-{target}.{target}")
                words += [f"--{split}pref", folder / f"{split}.en-{target}"]
            preprocess.main(options.get_preprocessing_parser().parse_args(list(map(str, words))))
        from scripts.nmt.lib import store_outputs
        from scripts.nmt.lib.lang_pair import LangPair

        expert, settings = folder / "experts" / "en-de" / "checkpoint_best.pt", {"subset": "train", "top_k": 4}
        settings |= {"temperatures": [1.0, 2.0], "max_tokens": 99, "workers": 1, "cpu": True, "precision": "fp32"}
        store_outputs.store(folder / "bin", LangPair("en", "de"), str(expert), folder / "store", **settings)
    for name, file, change in (
        ("bin-cut", "train.en-de.de.bin", lambda content: content[:-6]),
        ("bin-index", "train.en-de.en.idx", lambda content: content[:20]),
        ("bin-empty", "train.en-de.en.idx", lambda content: b""),
        ("bin-dict", "dict.de.txt", lambda content: content + b"no count\n"),
    ):
        shutil.copytree(folder / "bin", folder / name)
        (folder / name / file).write_bytes(change((folder / name / file).read_bytes()))
    manifest = unseal(folder / "store" / "manifest.json", FORMAT)

    def store(name: str) -> Path:
        return shutil.copytree(folder / "store", folder / "s" / name)

    for name, (*place, value) in {
        "format": ("format", "lskd teacher outputs 9"),
        "data-list": ("data", [1]),
        "pair": ("data", "lang_pair", "en-ru"),
        "pair-number": ("data", "lang_pair", 7),
        "sentences-text": ("data", "sentences", "four"),
        "sentences-huge": ("data", "sentences", 10**15),
        "tokens-more": ("data", "tokens", 99),
        "vocabulary-text": ("data", "vocabulary_size", "big"),
        "vocabulary-zero": ("data", "vocabulary_size", 0),
        "vocabulary-other": ("data", "vocabulary_sha256", "0" * 64),
        "data-other": ("data", "sha256", "0" * 64),
        "labels-none": ("labels", None),
        "top-k-huge": ("labels", "top_k", 10**9),
        "temperatures-text": ("labels", "temperatures", "warm"),
        "block-zero": ("block", 0),
        "block-none": ("block", None),
        "checksums-none": ("checksums", {"labels.bin": [], "offsets.bin": []}),
        "checksums-other": ("checksums", "labels.bin", [1]),
        "paths-short": ("paths", []),
        "paths-number": ("paths", 4),
        "smoothing": ("label_smoothing", "much"),
    }.items():
        changed = copy.deepcopy(manifest)
        part = changed
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = value
        (store(name) / "manifest.json").write_bytes(seal(changed))
    for name, content in {"half": "{", "list": "[]", "unsealed": "{}", "deep": "[" * 10**5, "empty": ""}.items():
        (store(name) / "manifest.json").write_text(content)
    for name in ("manifest.json", "labels.bin", "offsets.bin"):
        (store(f"no-{name}") / name).unlink()
    for name in ("labels.bin", "offsets.bin"):
        content = bytearray((folder / "store" / name).read_bytes())
        (store(f"cut-{name}") / name).write_bytes(content[:-4])
        content[len(content) // 2] ^= 1
        (store(f"flipped-{name}") / name).write_bytes(content)
    for name, content in {"run-list": "[]", "run-half": "{", "run-text": '{"finished": "maybe", "command": 3}'}.items():
        (folder / name).mkdir()
        (folder / name / "run.json").write_text(content)


def _variants(folder: Path, student: dict) -> None:
    """Checkpoints with something wrong, each in a folder with the right vocabulary."""

    def save(name: str, state: object) -> None:
        shutil.copytree(folder / "student", folder / name, ignore=shutil.ignore_patterns("*.pt"))
        torch.save(state, folder / name / "model.pt")

    task, model = student["cfg"]["task"], student["cfg"]["model"]
    weights = student["model"]
    save(
        "task",
        {**student, "cfg": {**student["cfg"], "task": Namespace(**{**vars(task), "_name": "language_modeling"})}},
    )
    save(
        "arch",
        {
            **student,
            "cfg": {**student["cfg"], "model": Namespace(**{**vars(model), "arch": "roberta", "_name": "roberta"})},
        },
    )
    save(
        "unknown-arch",
        {**student, "cfg": {**student["cfg"], "model": Namespace(**{**vars(model), "arch": "x", "_name": "x"})}},
    )
    save("pairs", {**student, "cfg": {**student["cfg"], "task": Namespace(**{**vars(task), "lang_pairs": 7})}})
    save("langs", {**student, "cfg": {**student["cfg"], "task": Namespace(**{**vars(task), "langs": ["en", "de"]})}})
    save(
        "dictionary",
        {**student, "cfg": {**student["cfg"], "task": Namespace(**{**vars(task), "source_dict": "/no/dict"})}},
    )
    save("weights", {**student, "model": {name: one for name, one in weights.items() if "layers.0" not in name}})
    save("shape", {**student, "model": {**weights, "encoder.layers.0.fc1.weight": torch.zeros(3, 3)}})
    save("state-dict", weights)
    save("list", [1, 2])
    save("no-options", {"model": weights})
    save("trap", {"model": weights, "cfg": _Trap()})
    for name, content in {"cut": None, "words": b"no checkpoint\n", "nothing": b""}.items():
        save(name, {})
        whole = (folder / "student" / "model.pt").read_bytes()
        (folder / name / "model.pt").write_bytes(whole[: len(whole) // 2] if content is None else content)
    shutil.copytree(folder / "student", folder / "short-dict")
    (folder / "short-dict" / "dict.en.txt").write_text("a 1\n")
    shutil.copytree(folder / "student", folder / "bad-dict")
    (folder / "bad-dict" / "dict.en.txt").write_text("no count here\n")
    shutil.copytree(folder / "student", folder / "bad-spm")
    (folder / "bad-spm" / "spm.model").write_bytes(b"\0" * 100)
    (folder / "alone").mkdir()
    away = {**student, "cfg": {**student["cfg"], "task": Namespace(**{**vars(task), "data": "/no/data-bin"})}}
    torch.save(away, folder / "alone" / "model.pt")


class _Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


P = "prepare parallel --input text --pairs en-de --output new"
T = "translate student/model.pt --to de"
E = "evaluate_bleu --data-bin data/data-bin --checkpoint student/model.pt --lang-pairs en-de --output new.json"
N = "evaluate_bleu --checkpoint student/model.pt --lang-pairs en-de --output new.json --test-set"
X = "export student/model.pt --format ctranslate2 --output new"
D = "distil_sequences --data data --experts experts --output new --pairs en-de"

MISTAKES = [
    # prepare: files
    (
        "prepare parallel --input nowhere --pairs en-de --output new",
        r"--input nowhere is not a folder; give the one that",
    ),
    ("prepare parallel --input file --pairs en-de --output new", "--input file is not a folder"),
    (f"{P} --train nothing", r"no files for pair en-de: neither nothing.en-de.en\[.gz\]"),
    (P.replace("en-de", "en-fr"), r"train.fr\[.gz\] is missing, though the other language's file is there"),
    (f"{P} --train short", "short.de: ends after line 1, but text/short.en goes on"),
    (f"{P} --train latin", "latin.de, line 1: byte 2 is not valid UTF-8; convert the file to UTF-8"),
    (f"{P} --train huge", "huge.de, line 1: longer than 1,048,576 bytes; give plain text, one sentence a line"),
    (f"{P} --train broken", r"broken.de.gz, line \d+: cannot be read \(.*\); is the file whole\?"),
    (f"{P} --train fake", r"fake.de.gz, line 1: cannot be read \(Not a gzipped file"),
    (f"{P} --train folder", r"folder.de\[.gz\] is missing"),
    (f"{P} --train blank", "pair en-de: the train set holds no sentence pair; it needs at least one"),
    (f"{P} --valid null", "null.de: ends after line 0, but"),
    (f"{P} --test empty", "empty.de, line 2: empty line in the test set; remove the pair from both files"),
    (f"{P} --test latin", "latin.de, line 1: byte 2 is not valid UTF-8"),
    # prepare: options
    (
        P.replace("en-de", "en"),
        "language pair 'en' .* is not of the form source-target; give pairs such as en-de,en-ru",
    ),
    (P.replace("en-de", "en-en"), "language pair 'en-en' .* is not of the form source-target"),
    (P.replace("en-de", "en-de,en-de"), "language pair 'en-de' is named twice"),
    (P.replace("en-de", "en-de,"), "language pair '' .* is not of the form source-target"),
    (P.replace("en-de", "../x-de"), "language pair '../x-de' .* is not of the form"),
    (f"{P} --vocab-size 0", r"sentencepiece cannot learn 0 bpe pieces from this text: "),
    (f"{P} --vocab-size -3", r"sentencepiece cannot learn -3 bpe pieces"),
    (f"{P} --vocab-size 5", r"sentencepiece cannot learn 5 bpe pieces from this text: .*Vocabulary size"),
    (f"{P} --vocab-size 100000", r"this text has [0-9,]+ bpe pieces at most, not 100,000; try --vocab-size \d+: "),
    (f"{P} --vocab-size many", "argument --vocab-size: invalid int value: 'many'"),
    (f"{P} --character-coverage 2", "--character-coverage 2.0 is outside 0.9 to 1.0; choose one inside"),
    (f"{P} --character-coverage nan", "--character-coverage nan is outside 0.9 to 1.0"),
    (f"{P} --model-type word", "argument --model-type: invalid choice: 'word'"),
    (f"{P} --max-ratio 0.5", "--max-ratio 0.5 must be a number of at least 1, such as 1.5"),
    (f"{P} --max-ratio nan", "--max-ratio nan must be a number of at least 1"),
    (f"{P} --max-ratio inf", "--max-ratio inf must be a number of at least 1"),
    (f"{P} --max-length 0", "--max-length 0 leaves no sentence; give at least 1 word, such as 175"),
    (f"{P} --max-length -1", "--max-length -1 leaves no sentence"),
    (f"{P} --max-length 2", "pair en-de: the train set holds no sentence pair within the limits"),
    (f"{P} --max-lenght 2", "unrecognized arguments: --max-lenght 2"),
    # prepare: output
    (P.replace("new", "file"), "file exists and holds no readable manifest.json; choose a new folder for --output"),
    (P.replace("new", "full"), "full exists and holds no readable manifest.json"),
    (P.replace("new", "m-half"), "m-half exists and holds no readable manifest.json"),
    (P.replace("new", "m-list"), "m-list exists and holds no readable manifest.json"),
    (P.replace("new", "data"), r"data was prepared with other pairs"),
    (P.replace("new", "file/new"), r"file/new.partial: cannot be made \(Not a directory\); check --output"),
    (P.replace("new", "x" * 300), "x+: File name too long"),
    # prepare: archives
    ("prepare iwslt nowhere.tgz --output new", "nowhere.tgz"),
    ("prepare iwslt file --output new", "file"),
    ("prepare iwslt text --output new", "text"),
    ("prepare iwslt --output new", "the following arguments are required: <lang>-en.tgz"),
    ("prepare", "the following arguments are required: command"),
    ("prepare paralel", "invalid choice: 'paralel'"),
    # translate: the checkpoint
    ("translate nowhere.pt --to de", "no checkpoint at nowhere.pt; give a .pt file written by fairseq-train"),
    (
        "translate experts/en-de --to de",
        "no checkpoint at experts/en-de; did you mean experts/en-de/checkpoint_best.pt?",
    ),
    ("translate student --to de", "no checkpoint at student; give a .pt file"),
    ("translate cut/model.pt --to de", "checkpoint cut/model.pt"),
    ("translate words/model.pt --to de", "checkpoint words/model.pt"),
    ("translate nothing/model.pt --to de", "checkpoint nothing/model.pt"),
    ("translate data/spm.model --to de", "checkpoint data/spm.model"),
    ("translate list/model.pt --to de", "list/model.pt is not a fairseq checkpoint"),
    ("translate state-dict/model.pt --to de", "state-dict/model.pt is not a fairseq checkpoint: it must hold"),
    ("translate no-options/model.pt --to de", "no-options/model.pt is not a fairseq checkpoint"),
    ("translate trap/model.pt --to de", "nothing of it was executed"),
    (
        "translate task/model.pt --to de",
        "was trained on task language_modeling; allowed are translation, translation_kd",
    ),
    (
        "translate arch/model.pt --to de",
        "arch/model.pt has --arch roberta; allowed are the architectures of transformer",
    ),
    ("translate unknown-arch/model.pt --to de", "unknown-arch/model.pt has --arch x; allowed are"),
    ("translate pairs/model.pt --to de", r"pairs/model.pt: its options cannot be read \(TypeError"),
    ("translate langs/model.pt --to ru", "langs/model.pt: .*not in the language dictionary"),
    ("translate dictionary/model.pt --to ru", "was trained with --source-dict /no/dict, which is missing"),
    (
        "translate weights/model.pt --to de",
        "weights/model.pt cannot be rebuilt from its options and weights: KeyError",
    ),
    ("translate shape/model.pt --to de", "shape/model.pt cannot be rebuilt from its options and weights: RuntimeError"),
    (
        "translate alone/model.pt --to de",
        "dict.en.txt, dict.de.txt, spm.model are neither beside alone/model.pt nor in /no",
    ),
    ("translate short-dict/model.pt --to de", "dictionaries in short-dict are not those of short-dict/model.pt"),
    ("translate bad-dict/model.pt --to de", r"bad-dict/dict.en.txt|bad-dict"),
    ("translate bad-spm/model.pt --to de", "bad-spm/spm.model is no sentencepiece model; give the spm.model of the"),
    # translate: what is asked for
    ("translate student/model.pt --to fr", "was not trained on a pair into fr; it knows en-de, en-ru"),
    (f"{T} --from ru", "was not trained on ru-de; it knows en-de, en-ru"),
    ("translate student/model.pt --to en", "was not trained on a pair into en; it knows en-de, en-ru"),
    ("translate student/model.pt --to DE", "was not trained on a pair into DE; it knows en-de, en-ru"),
    ("translate experts/en-de/checkpoint_best.pt --to ru", "was not trained on a pair into ru; it knows en-de"),
    ("translate student/model.pt", "the following arguments are required: --to"),
    ("translate --to de", "the following arguments are required: CHECKPOINT"),
    (f"{T} --beam 0", "--beam 0 is below 1"),
    (f"{T} --beam -5", "--beam -5 is below 1"),
    (f"{T} --beam x", "argument --beam: invalid int value: 'x'"),
    (f"{T} text.txt", "unrecognized arguments: text.txt"),
    (f"{T} < latin1", "standard input, line 2: byte 2 is not valid UTF-8; convert the file to UTF-8"),
    (f"{T} < text/huge.de", "standard input, line 1: longer than 1,048,576 bytes"),
    # evaluate_bleu
    ("evaluate_bleu", r"--checkpoint is needed \(or --compare A B\)"),
    ("evaluate_bleu --checkpoint student/model.pt", "--lang-pairs is needed"),
    ("evaluate_bleu --checkpoint student/model.pt --lang-pairs en-de", "--output is needed"),
    ("evaluate_bleu --checkpoint student/model.pt --lang-pairs en-de --output o.json", "give --data-bin, --test-set"),
    (E.replace("data/data-bin", "nowhere"), "text/test.en-de.en is missing: --data-bin must lie in a folder made by"),
    (E.replace("data/data-bin", "file"), "test.en-de.en is missing|is missing: --data-bin"),
    (
        E.replace("data/data-bin", "anew/data-bin"),
        "anew/data-bin/dict.en.txt is not the dictionary that student/model.pt",
    ),
    (E.replace("data/data-bin", "no-spm/data-bin"), "no-spm/spm.model is no sentencepiece model"),
    (E.replace("en-de", "en-fr"), "test.en-fr.en is missing"),
    (E.replace("en-de", "de"), "language pair 'de' .* is not of the form source-target"),
    (E.replace("student/model.pt", "nowhere.pt"), "no checkpoint at nowhere.pt"),
    (E.replace("student/model.pt", "cut/model.pt"), "checkpoint cut/model.pt"),
    (E.replace("student/model.pt", "trap/model.pt"), "nothing of it was executed"),
    (
        E.replace("student/model.pt --lang-pairs en-de", "experts/en-de/checkpoint_best.pt --lang-pairs en-ru"),
        "was trained on en-de, not on en-ru",
    ),
    (
        E.replace("new.json", "new.txt"),
        "--output new.txt must end in .json; the table and translations are written beside",
    ),
    (E.replace("new.json", "file/new.json"), "cannot be written|cannot be made|Not a directory|File exists"),
    (f"{E} --beam 0", "--beam 0 is below 1"),
    (f"{E} --average 0", "--average 0 is below 1"),
    (f"{E} --average 2", "--average 2: student holds none of the checkpoint<epoch>.pt; train with KEEP_CHECKPOINTS=2"),
    (f"{E} --subset tset", "argument --subset: invalid choice: 'tset'"),
    (f"{E} --baseline nowhere.json", "nowhere.json cannot be used"),
    (f"{E} --baseline list.json", "list.json cannot be used"),
    (f"{E} --baseline half.json", "half.json cannot be used"),
    (f"{E} --baseline other.json", "other.json cannot be used"),
    (
        f"{E} --baseline old.json",
        "--baseline old.json does not score en-de on the same references; evaluate it on them",
    ),
    (f"{E} --comet", "--comet needs the package unbabel-comet"),
    (f"{N} news", "--test-set news: give NAME=SRC,REF, such as news=news.en,news.de"),
    (f"{N} news=text/test.en", "--test-set news=text/test.en: give NAME=SRC,REF"),
    (f"{N} ../x=text/test.en,text/test.de", "give NAME=SRC,REF"),
    (f"{N} a=text/none.en,text/test.de", r"text/none.en: cannot be opened \(No such file or directory\)"),
    (f"{N} a=text/test.en,text/folder.de", r"text/folder.de"),
    (f"{N} a=text/short.en,text/short.de", "short.de: ends after line 1, but"),
    (f"{N} a=text/test.en,text/empty.de", "empty.de, line 2: empty line in the test set"),
    (f"{N} a=text/null.de,text/null.de", "hold no sentence; give at least one"),
    (f"{N} a=text/test.en,text/latin.de", "latin.de, line 1: byte 2 is not valid UTF-8"),
    (
        f"{N} a=text/test.en,text/test.de --test-set a=text/test.en,text/test.de",
        "two of the --test-set have one name and one",
    ),
    (
        f"{N} a=text/test.ru,text/test.de".replace("en-de", "en-de,en-ru"),
        r"of which pair\? Let the files end in the languages",
    ),
    ("evaluate_bleu --compare old.json nowhere.json", "nowhere.json cannot be used"),
    ("evaluate_bleu --compare list.json old.json", "list.json cannot be used"),
    ("evaluate_bleu --compare old.json old.json", r"old.en-de.reference.de cannot be read"),
    ("evaluate_bleu --compare old.json", "argument --compare: expected 2 arguments"),
    # export
    ("export nowhere.pt --format ctranslate2 --output new", "no checkpoint at nowhere.pt"),
    ("export trap/model.pt --format ctranslate2 --output new", "nothing of it was executed"),
    ("export arch/model.pt --format ctranslate2 --output new", "cannot be converted to CTranslate2's format"),
    ("export shape/model.pt --format ctranslate2 --output new", "cannot be converted to CTranslate2's format"),
    (
        "export alone/model.pt --format ctranslate2 --output new",
        "are neither beside alone/model.pt nor in /no/data-bin",
    ),
    ("export short-dict/model.pt --format ctranslate2 --output new", "dictionaries in short-dict are not those of"),
    ("export student/model.pt --format onnx --output new", "argument --format: invalid choice: 'onnx'"),
    ("export student/model.pt --output new", "the following arguments are required: --format"),
    (X.replace("new", "file"), "--output file exists already; choose a new folder or remove it"),
    (X.replace("new", "full"), "--output full exists already; choose a new folder or remove it"),
    (X.replace("new", "file/new"), r"file/new.partial: cannot be made \(Not a directory\)"),
    (f"{X} --test-set en-fr=a,b", "--test-set en-fr=a,b: give PAIR=SRC,REF with PAIR one of en-de, en-ru"),
    (f"{X} --test-set en-de=a", "--test-set en-de=a: give PAIR=SRC,REF"),
    (f"{X} --test-set en-de=text/test.en,none", r"none: cannot be opened \(No such file or directory\)"),
    (f"{X} --beam 0", "--beam 0 is too small"),
    (f"{X} --sentences -1", "--sentences -1 is too small"),
    # distil_sequences
    (D.replace("--data data", "--data nowhere"), "--data nowhere is no prepared folder"),
    (D.replace("--data data", "--data file"), "--data file is no prepared folder"),
    (D.replace("--data data", "--data m-half"), "--data m-half is no prepared folder"),
    (D.replace("--data data", "--data m-list"), "--data m-list is no prepared folder"),
    (D.replace("--data data", "--data m-none"), "--data m-none is no prepared folder"),
    (D.replace("--data data", "--data m-pairs"), "--data m-pairs is no prepared folder"),
    (D.replace("--data data", "--data no-text"), r"train.en-de.en: cannot be opened \(No such file or directory\)"),
    (D.replace("--data data", "--data unequal"), "the two sides of train.en-de have 4 and 1 lines"),
    (
        D.replace("--data data", "--data anew"),
        "is not the dictionary that experts/en-de/checkpoint_best.pt was trained with",
    ),
    (D.replace("--data data", "--data no-spm"), "no-spm/spm.model is no sentencepiece model"),
    (
        D.replace("--experts experts", "--experts nowhere"),
        "no expert of en-de at nowhere/en-de/checkpoint_best.pt; train it",
    ),
    (
        D.replace("en-de", "en-ru"),
        "no expert of en-ru at experts/en-ru/checkpoint_best.pt; train it with train_experts",
    ),
    (D.replace("en-de", "en-fr"), "--pairs: en-fr is not in data; it holds en-de, en-ru"),
    (f"{D} --beam 0", "--beam 0 is below 1"),
    (f"{D} --int8", "--int8 is of --ctranslate2; give both"),
    (f"{D} --monolingual file", "--monolingual file: give PAIR=FILE with PAIR one of en-de"),
    (f"{D} --monolingual en-ru=file", "--monolingual en-ru=file: give PAIR=FILE with PAIR one of en-de"),
    (f"{D} --monolingual en-de=nowhere", "cannot read nowhere"),
    (f"{D} --monolingual en-de=full", "cannot read full"),
    (f"{D} --monolingual en-de=latin1", "latin1, line 2: byte 2 is not valid UTF-8"),
    (f"{D} --monolingual en-de=file --monolingual en-de=file", "--monolingual en-de is given twice; join the files"),
    (D.replace("new", "file"), "file exists and holds no readable manifest.json"),
    (D.replace("new", "full"), "full exists and holds no readable manifest.json"),
    (D.replace("new", "data"), "data was prepared with other source"),
    (D.replace("new", "file/new"), r"file/new.partial: cannot be made \(Not a directory\)"),
]


@pytest.mark.parametrize(("words", "line"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_a_mistake_is_answered_in_one_line(here, monkeypatch, capsys, words, line):
    _mistake(here, monkeypatch, capsys, words, line)


def _mistake(here, monkeypatch, capsys, words, line):
    monkeypatch.chdir(here)
    words, _, given = words.partition(" < ")
    words = shlex.split(words)
    while "=" in words[0]:
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    command, *arguments = words
    monkeypatch.setattr(sys, "argv", [f"{command}.py", *arguments])
    before = {path for path in here.iterdir() if not path.name.endswith(".partial")}
    with (here / (given or "lines")).open("rb") as stream:
        monkeypatch.setattr(sys, "stdin", Namespace(buffer=stream))
        with pytest.raises(SystemExit) as end:
            run_cli(f"{command}.py", COMMANDS[command])
    logging.disable(logging.NOTSET)
    told = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2, told
    assert "Traceback" not in "".join(told)
    (complaint,) = (one for one in told if one.startswith(f"{command}.py"))
    assert complaint.split(": error: ")[0].split()[0] == f"{command}.py"
    assert told[-1] == complaint
    assert re.search(line, complaint), complaint
    assert {path for path in here.iterdir() if not path.name.endswith(".partial")} == before
    assert not (here / "trapped").exists()


@pytest.fixture(scope="module")
def more_mistakes(read_rows):
    """(command line, part of the answer) of the rows of translation_mistakes.txt."""
    return read_rows(Path(__file__).with_name("translation_mistakes.txt"))


def test_more_mistakes_are_answered_in_one_line(here, monkeypatch, capsys, more_mistakes):
    wrong = []
    for words, line in more_mistakes:
        with monkeypatch.context() as patch:
            try:
                _mistake(here, patch, capsys, words, re.escape(line))
            except (AssertionError, ValueError) as error:
                wrong.append(f"{words}: {error}")
    assert not wrong, "\n".join(wrong)


def test_the_rows_are_many(more_mistakes):
    assert len({words for words, _ in [*MISTAKES, *more_mistakes]}) == len(MISTAKES) + len(more_mistakes) >= 250

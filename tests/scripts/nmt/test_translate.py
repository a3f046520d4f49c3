"""Plain text in, plain text out, from a checkpoint and what training left beside it."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.recorded_model import find_vocabulary, read_recorded
from scripts.nmt.lib.translator import Translator, translate_blocks
from scripts.nmt.lib.user_error import UserError
from scripts.nmt.translate import read_blocks

EN_DE, EN_RU = LangPair("en", "de"), LangPair("en", "ru")
ROOT = Path(__file__).resolve().parents[3]
PLUGIN = str(ROOT / "fairseq_plugins" / "inference_only")


@pytest.fixture(scope="module")
def student(pipeline):
    return read_recorded(pipeline / "student" / "checkpoint_best.pt")


def translator(recorded, pair) -> Translator:
    return Translator(recorded, pair, find_vocabulary(recorded, pair))


def stock(capsys, folder, pair, source: Path, *task) -> list[str]:
    """Translations by stock fairseq-interactive, with the line that README gives, from the save folder alone."""
    from fairseq import options
    from fairseq_cli import interactive

    command = [str(folder), "--path", str(folder / "checkpoint_best.pt"), "--user-dir", PLUGIN, *task]
    command += ["--source-lang", pair.source, "--target-lang", pair.target]
    command += ["--bpe", "sentencepiece", "--sentencepiece-model", str(folder / "spm.model"), "--beam", "5"]
    command += ["--buffer-size", "512", "--max-tokens", "4096", "--cpu", "--input", str(source)]
    capsys.readouterr()
    interactive.main(options.parse_args_and_arch(options.get_interactive_generation_parser(), command))
    return [line.split("\t")[2] for line in capsys.readouterr().out.splitlines() if line.startswith("D-")]


MULTILINGUAL = ["--task", "translation_multi_simple_epoch", "--lang-pairs", "en-de,en-ru", "--langs", "en,de,ru"]
MULTILINGUAL += ["--encoder-langtok", "tgt", "--decoder-langtok"]


@pytest.mark.parametrize(
    ("folder", "pair", "task"),
    [("student", EN_DE, MULTILINGUAL), ("student", EN_RU, MULTILINGUAL), ("experts/en-de", EN_DE, [])],
)
def test_words_are_those_of_stock_fairseq(pipeline, capsys, folder, pair, task):
    source = pipeline / "text" / "test.en"
    expected = stock(capsys, pipeline / folder, pair, source, *task)
    recorded = read_recorded(pipeline / folder / "checkpoint_best.pt")
    found = translator(recorded, pair).translate(source.read_text().splitlines())
    assert len(expected) == 60
    assert [one.text.split() for one in found] == [line.split() for line in expected]


def test_several_processes_give_the_order_of_one(student, pipeline):
    lines = (pipeline / "text" / "test.en").read_text().splitlines()[:20]
    blocks = [lines[:7], None, lines[7:9], lines[9:]]
    one, two = (list(translate_blocks(translator(student, EN_DE), blocks, [""] * n)) for n in (1, 2))
    assert one == two
    assert [len(block) for block in two] == [7, 2, 11]


def test_the_command_keeps_lines_order_and_empty_lines_and_needs_nothing_but_the_folder(pipeline, tmp_path):
    for name in ("checkpoint_best.pt", "dict.en.txt", "dict.de.txt", "spm.model"):
        shutil.copy(pipeline / "student" / name, tmp_path / name)
    command = [sys.executable, str(ROOT / "scripts" / "nmt" / "translate.py"), str(tmp_path / "checkpoint_best.pt")]
    text = "\ufeffone two\r\n\n  three   four \n" + "five " * 1100 + "\n \nsix"
    done = subprocess.run([*command, "--to", "de"], input=text, capture_output=True, text=True, cwd="/")
    lines = done.stdout.split("\n")
    assert [bool(line) for line in lines] == [True, False, True, False, False, True, False], done.stderr
    assert done.returncode == 1
    assert "translate.py: line 4: " in done.stderr
    assert done.stderr.endswith(" pieces, the model reads at most 1,022: left empty\n")
    # the language was written by nobody but the checkpoint
    assert set(lines[0].split()) <= {"null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"}


def test_the_pair_is_chosen_by_its_target_and_unknown_ones_are_refused(student):
    assert student.pairs == (EN_DE, EN_RU)
    assert student.choose(None, "ru") == student.choose("en", "ru") == EN_RU
    with pytest.raises(UserError, match="was not trained on a pair into fr; it knows en-de, en-ru"):
        student.choose(None, "fr")
    with pytest.raises(UserError, match="was not trained on ru-de; it knows en-de, en-ru"):
        student.choose("ru", "de")


def test_a_vocabulary_of_other_data_is_refused(student, tmp_path):
    vocabulary = find_vocabulary(student, EN_DE)
    assert vocabulary.dictionaries == student.path.parent
    for language in EN_DE:
        entries = (vocabulary.dictionaries / f"dict.{language}.txt").read_text().splitlines()
        (tmp_path / f"dict.{language}.txt").write_text("\n".join(entries[1:]) + "\n")
    with pytest.raises(
        UserError, match=r"dict.en.txt is not the dictionary that .*checkpoint_best.pt was trained with"
    ):
        Translator(student, EN_DE, replace(vocabulary, dictionaries=tmp_path))
    # a checkpoint that was moved away from its dictionaries is judged by its weights
    moved = replace(student, path=tmp_path / "away" / "checkpoint_best.pt")
    with pytest.raises(UserError, match=r"they make 73 entries with the language tokens, the model has 74"):
        Translator(moved, EN_DE, replace(vocabulary, dictionaries=tmp_path))


def test_input_that_pauses_is_translated_before_more_comes():
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream:
        blocks = read_blocks(stream, lines_of_block=2)
        os.write(writing, b"one\ntwo\nthree\nfo")
        assert [next(blocks) for _ in range(3)] == [["one", "two"], ["three"], None]
        os.write(writing, b"ur\n\nlast")
        os.close(writing)
        assert list(blocks) == [["four", ""], ["last"]]


def test_text_that_is_not_utf8_is_refused_with_its_line():
    reading, writing = os.pipe()
    os.write(writing, b"one\n\xff\n")
    os.close(writing)
    with os.fdopen(reading, "rb") as stream, pytest.raises(UserError, match=r"standard input, line 2: byte 1 is not"):
        list(read_blocks(stream))

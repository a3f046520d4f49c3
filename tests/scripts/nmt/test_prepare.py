"""`prepare.py` as a command: what it leaves behind, and that a half-made folder is never taken for a whole one."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sentencepiece

from scripts.nmt.lib import data_bin, parallel_text
from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.user_error import UserError


@pytest.fixture
def text(tmp_path, write_parallel):
    return write_parallel(tmp_path / "text", train=120)


def arguments(text, output, *more):
    return ["parallel", "--input", text, "--pairs", "en-de", "--output", output, "--vocab-size", "70", *more]


AS_BEFORE = ("--model-type", "unigram")  # the settings of the shared pipeline
SMALL = (*AS_BEFORE, "--vocab-size", "40")  # 120 lines have not many more pieces


def test_the_manifest_tells_pairs_counts_settings_and_hashes(pipeline):
    manifest = json.loads((pipeline / "data" / "manifest.json").read_text())
    assert manifest["source"] == "parallel"
    assert manifest["pairs"] == ["en-de", "en-ru"]
    assert manifest["counts"]["en-de"] == {
        split: {"pairs": pairs, "skipped_empty": 0} for split, pairs in (("train", 400), ("valid", 40), ("test", 60))
    }
    settings = {"vocab_size": 70, "model_type": "unigram", "character_coverage": 1.0}
    assert manifest["settings"] == settings | {"train": "train", "valid": "valid", "test": "test"}
    assert sorted(manifest["inputs"]) == sorted(
        f"{s}.{c}" for s in ("train", "valid", "test") for c in ("en", "de", "ru")
    )
    held = {**manifest["files"]}
    for path in (pipeline / "data").rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            name = path.relative_to(pipeline / "data").as_posix()
            assert held.pop(name) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not held


def test_all_languages_have_the_same_dictionary_of_all_pieces(pipeline):
    dictionaries = [(pipeline / "data" / "data-bin" / f"dict.{code}.txt").read_text() for code in ("en", "de", "ru")]
    assert dictionaries[0] == dictionaries[1] == dictionaries[2]
    model = sentencepiece.SentencePieceProcessor(model_file=str(pipeline / "data" / "spm.model"))
    pieces = [line.rsplit(" ", 1)[0] for line in dictionaries[0].splitlines()]
    assert pieces == [model.id_to_piece(n) for n in range(3, model.get_piece_size())]  # without <unk>, <s>, </s>
    assert len(pieces) == 67


def test_binarized_text_decodes_to_the_text(pipeline):
    from fairseq.data import Dictionary, data_utils

    folder = pipeline / "data"
    dictionary = Dictionary.load(str(folder / "data-bin" / "dict.ru.txt"))
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    dataset = data_utils.load_indexed_dataset(str(folder / "data-bin" / "test.en-ru.ru"), dictionary)
    decoded = [model.decode(dictionary.string(tokens).split()) for tokens in dataset]
    assert decoded == (folder / "text" / "test.en-ru.ru").read_text().splitlines()


def test_a_second_run_does_nothing_and_other_settings_are_refused(pipeline, run_script, refused):
    before = {path: path.stat().st_mtime_ns for path in (pipeline / "data").rglob("*")}
    again = arguments(pipeline / "text", pipeline / "data", *AS_BEFORE, "--pairs", "en-de,en-ru")
    done = run_script("prepare.py", *again)
    assert done.returncode == 0
    assert done.stdout.strip().endswith("is already prepared with these settings")
    line = refused("prepare.py", *again, "--character-coverage", "0.99")
    assert "was prepared with other settings (character_coverage 1.0, now 0.99); choose another --output" in line
    assert before == {path: path.stat().st_mtime_ns for path in (pipeline / "data").rglob("*")}


def test_changed_input_is_noticed(tmp_path, pipeline, write_parallel, refused):
    text = write_parallel(tmp_path / "text", train=401)
    line = refused("prepare.py", *arguments(text, pipeline / "data", *AS_BEFORE, "--pairs", "en-de,en-ru"))
    assert "was prepared with other inputs (train.de" in line


def test_a_folder_of_something_else_is_never_overwritten(tmp_path, text, refused):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    line = refused("prepare.py", *arguments(text, tmp_path / "out"))
    assert "out exists and holds no readable manifest.json; choose a new folder" in line
    assert (tmp_path / "out" / "precious").exists()


def test_an_interrupted_run_leaves_no_output_and_the_next_one_makes_it_whole(
    tmp_path, text, scripts_folder, run_script
):
    command = [sys.executable, scripts_folder / "nmt" / "prepare.py", *arguments(text, tmp_path / "out", *SMALL)]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stdout:
        if line.startswith("running fairseq-preprocess"):
            time.sleep(0.5)
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial" / "spm.model").exists()
    (tmp_path / "out.partial" / "data-bin" / "leftover").touch()

    assert run_script(*("prepare.py", *arguments(text, tmp_path / "out", *SMALL))).returncode == 0
    assert (tmp_path / "out" / "manifest.json").exists()
    assert not (tmp_path / "out" / "data-bin" / "leftover").exists()
    assert not (tmp_path / "out.partial").exists()


def test_two_runs_cannot_make_the_same_folder(tmp_path):
    with (
        data_bin.partial_folder(tmp_path / "out"),
        pytest.raises(UserError, match="out is being prepared by another process"),
        data_bin.partial_folder(tmp_path / "out"),
    ):
        pass


def test_pairs_with_an_empty_side_are_left_out_counted_and_said(tmp_path, text, run_script):
    lines = (text / "train.de").read_text().split("\n")
    lines[4] = lines[9] = ""
    (text / "train.de").write_text("\n".join(lines))
    done = run_script("prepare.py", *arguments(text, tmp_path / "out", *SMALL))
    assert "en-de: train 118 pairs (2 left out: one side empty), valid 40 pairs, test 60 pairs" in done.stdout
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]
    assert counts["en-de"]["train"] == {"pairs": 118, "skipped_empty": 2}
    assert len((tmp_path / "out" / "text" / "train.en-de.en").read_text().splitlines()) == 118


def test_mistakes_are_told_in_one_line(tmp_path, text, refused):
    out = tmp_path / "out"
    assert "language pair 'en' (in 'en') is not of the form" in refused(
        "prepare.py", "parallel", "--input", text, "--pairs", "en", "--output", out
    )
    assert "is not a folder; give the one that holds" in refused("prepare.py", *arguments(tmp_path / "none", out))
    assert "no files for pair en-de: neither val.en-de.en[.gz]" in refused(
        "prepare.py", *arguments(text, out, "--valid", "val")
    )
    too_many = refused("prepare.py", *arguments(text, out, "--vocab-size", "5000", "--model-type", "bpe"))
    assert "pieces at most, not 5,000; try --vocab-size " in too_many
    assert "character-coverage 2.0 is outside 0.9 to 1.0" in refused(
        "prepare.py", *arguments(text, out, "--character-coverage", "2")
    )
    (text / "test.de").write_text("\n")
    assert "/test.de, line 1: empty line in the test set" in refused("prepare.py", *arguments(text, out))
    (text / "train.de").write_bytes(b"\xff\n")
    assert "/train.de, line 1: byte 1 is not valid UTF-8" in refused("prepare.py", *arguments(text, out))
    assert not out.exists()


def test_an_output_that_cannot_be_made_is_one_line(tmp_path, text, refused):
    (tmp_path / "file").touch()
    assert "cannot be made (Not a directory)" in refused("prepare.py", *arguments(text, tmp_path / "file" / "out"))
    with pytest.raises(UserError, match=r"--output \. cannot be made"), data_bin.partial_folder(Path(".")):
        pass


def test_pairs_that_are_too_long_or_too_unequal_are_left_out_of_training_alone(tmp_path):
    rows = [(split, "a b c d", "x y z") for split in ("train", "valid", "test")]
    rows += [("train", "a b c", "x y"), ("train", "a b c d e", "x y z"), ("train", "a " * 6, "x " * 6)]
    rows += [("train", "x y", "a b c"), ("valid", "a b c d e f g", "x"), ("train", "", "x")]
    limits = parallel_text.Limits(max_length=5, max_ratio=1.5)
    counts = data_bin.write_text(rows, LangPair("en", "de"), tmp_path, limits)
    # 4:3 and 3:2 stay, 5:3 is above the ratio, six words are above the length
    assert (tmp_path / "train.en-de.en").read_text() == "a b c d\na b c\nx y\n"
    assert counts["train"] == {"pairs": 3, "skipped_empty": 1, "skipped_length": 2}
    assert counts["valid"] == {"pairs": 2, "skipped_empty": 0}


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        # as in a corpus of two million pieces by the law of Zipf: the 14,000th piece is there about 100 times
        ([1_400_000 // rank for rank in range(1, 30_001)], "47% of 30,000 pieces .*about 14,700 would fit"),
        ([1_400_000 // rank for rank in range(1, 14_001)], "100% of 14,000 pieces .*; the size fits this corpus"),
        ([1_400_000 // rank for rank in range(1, 2_001)], "100% of 2,000 pieces .*: --vocab-size 14700"),
        ([10**9] * 2_000, "about 32,000 would fit this corpus better"),
        ([1] * 500, "0% of 500 pieces .*about 100 would fit"),
    ],
)
def test_advice_on_the_size_of_the_vocabulary(counts, line):
    assert re.search(line, data_bin.vocabulary_advice(counts)), data_bin.vocabulary_advice(counts)

"""Training data with the experts' translations as targets."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from scripts.nmt import distil_sequences
from scripts.nmt.lib import distilled_text
from scripts.nmt.lib.distilled_text import Blocks, usable
from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.recorded_model import find_vocabulary, read_recorded
from scripts.nmt.lib.translator import MAX_PIECES, Translation, Translator
from scripts.nmt.lib.user_error import UserError

EN_DE = LangPair("en", "de")


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["distil_sequences.py", *map(str, arguments)])
    distil_sequences.main()


@pytest.fixture(scope="module")
def data(pipeline, tmp_path_factory) -> Path:
    """The pipeline's data with no more than 30 training sentences."""
    folder = tmp_path_factory.mktemp("distil") / "data"
    shutil.copytree(pipeline / "data", folder)
    for path in (folder / "text").glob("train.*"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:30]))
    return folder


def lines(folder, name):
    return (folder / "text" / name).read_text().split("\n")[:-1]


def test_targets_are_the_experts_and_all_else_is_the_datas(pipeline, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distilled_text, "BLOCK_LINES", 12)
    further = tmp_path / "more.en"
    further.write_text("one two\n\nseven eight nine\n")
    output = tmp_path / "out"
    command = ("--data", data, "--experts", pipeline / "experts", "--output", output, "--pairs", "en-de", "--cpu")
    command += ("--monolingual", f"en-de={further}")

    # killed after the first block, it goes on with the second
    make = Blocks.make

    def dying(self, translate):
        made = make(self, translate)
        yield next(made)
        made.close()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Blocks, "make", dying)
        with pytest.raises(KeyboardInterrupt):
            run(patch, *command)
    (held,) = tmp_path.glob("out.partial/blocks/en-de/*")
    written = held.stat().st_mtime_ns
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(Blocks, "make", lambda self, work: (asked.append(self.missing()), make(self, work))[1])
        patch.setattr(shutil, "rmtree", lambda path, **_: None if Path(path).name == "blocks" else _rmtree(path, **_))
        run(patch, *command)
    assert asked == [[12, 24]]
    assert (output / "blocks" / "en-de" / held.name).stat().st_mtime_ns == written

    recorded = read_recorded(pipeline / "experts" / "en-de" / "checkpoint_best.pt")
    expert = Translator(recorded, EN_DE, find_vocabulary(recorded, EN_DE))
    sources = [*lines(data, "train.en-de.en"), "one two", "seven eight nine"]
    expected, counts = usable(expert.translate(sources), [len(expert.encode(source)) - 1 for source in sources])
    originals = lines(data, "train.en-de.de")
    assert lines(output, "train.en-de.en") == sources
    assert lines(output, "train.en-de.de") == [a or b for a, b in zip(expected, [*originals, None, None], strict=True)]
    assert counts.translated > 20
    assert f"en-de: 32 sentence pairs, {counts.translated - 2} translated by the expert" in capsys.readouterr().out

    for path in [path for kind in ("data-bin", "text") for path in (data / kind).glob("*en-de*")]:
        if not path.name.startswith("train."):
            assert (output / path.relative_to(data)).read_bytes() == path.read_bytes()
    assert (output / "spm.model").read_bytes() == (data / "spm.model").read_bytes()
    assert (output / "data-bin" / "dict.de.txt").read_bytes() == (data / "data-bin" / "dict.de.txt").read_bytes()

    from fairseq.data import Dictionary, data_utils

    dictionary = Dictionary.load(str(output / "data-bin" / "dict.de.txt"))
    binarized = data_utils.load_indexed_dataset(str(output / "data-bin" / "train.en-de.de"), dictionary)
    assert len(binarized) == 32
    pieces = expert.sentencepiece.encode(lines(output, "train.en-de.de")[5], out_type=str)
    assert dictionary.string(binarized[5]).split() == pieces

    # a second run finds it, one with other settings does not replace it
    run(monkeypatch, *command)
    assert "already distilled with these settings" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"was prepared with other settings \(beam 5, now 4\)"):
        run(monkeypatch, *command, "--beam", 4)


_rmtree = shutil.rmtree


def test_with_ctranslate2_beside_the_original_pairs(pipeline, data, tmp_path, monkeypatch):
    pytest.importorskip("ctranslate2")
    output = tmp_path / "out"
    places = ("--data", data, "--experts", pipeline / "experts", "--output", output, "--pairs", "en-de", "--cpu")
    monkeypatch.setattr(distil_sequences.data_bin, "binarize_all", lambda *_: None)  # seconds, and tested above
    run(monkeypatch, *places, "--ctranslate2", "--keep-original")
    sources, targets = lines(output, "train.en-de.en"), lines(output, "train.en-de.de")
    originals = list(zip(lines(data, "train.en-de.en"), lines(data, "train.en-de.de"), strict=True))
    pairs = list(zip(sources, targets, strict=True))
    assert sources[:30] == [source for source, _ in originals]
    assert set(originals) <= set(pairs)
    assert len(set(pairs)) == len(pairs)  # none twice
    counts = json.loads((output / "manifest.json").read_text())["counts"]["en-de"]
    assert counts["train"]["pairs"] == len(pairs) > 40
    assert counts["test"] == {"pairs": 60, "skipped_empty": 0}


def test_what_cannot_be_learned_from_is_sorted_out():
    translations = [
        Translation("gut", 2),
        Translation("", 0),
        Translation("a b", 46),
        Translation("a b", 45),
        Translation("immer weiter", MAX_PIECES - 1),
        Translation("", problem="too long"),
    ]
    texts, counts = usable(translations, [2, 3, 10, 10, 150, 2000])
    assert texts == ["gut", None, None, "a b", None, None]
    assert vars(counts) == {"translated": 2, "empty": 1, "runaway": 2, "too_long": 1}


def test_a_damaged_block_is_named_and_one_of_another_size_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(distilled_text, "BLOCK_LINES", 2)
    blocks = Blocks(tmp_path, ["a", "b", "c"])
    with pytest.raises(UserError, match="1 translations of 2 lines: nothing of them is kept"):
        list(blocks.make(lambda todo: ([Translation("x", 1)] for _ in todo)))
    assert blocks.missing() == [0, 2]
    assert list(blocks.make(lambda todo: ([Translation(line, 1) for line in lines] for lines in todo))) == [2, 1]
    assert [one.text for one in blocks.read()] == ["a", "b", "c"]
    (tmp_path / "000001.json").write_text("[[")
    with pytest.raises(UserError, match=r"000001.json is damaged; remove it and run the same command again"):
        blocks.read()


def test_blocks_of_other_settings_are_kept_and_refused(pipeline, data, tmp_path, monkeypatch):
    block = tmp_path / "out.partial" / "blocks" / "en-de" / "000000.json"
    block.parent.mkdir(parents=True)
    block.write_text("[]")
    (tmp_path / "out.partial" / "plan.json").write_text('{"source": "distilled"}')
    places = ("--data", data, "--experts", pipeline / "experts", "--output", tmp_path / "out")
    with pytest.raises(UserError, match="holds translations made with other settings; remove it, or choose another"):
        run(monkeypatch, *places)
    assert block.read_text() == "[]"


def test_an_expert_that_is_none_does_not_stand_in_the_way_of_the_right_one(pipeline, data, tmp_path, monkeypatch):
    (tmp_path / "wrong.pt").write_text("no checkpoint")
    places = ("--data", data, "--pairs", "en-de", "--output", tmp_path / "out")
    with pytest.raises(UserError, match="checkpoint"):
        run(monkeypatch, *places, "--experts", f"en-de={tmp_path / 'wrong.pt'}")
    run(monkeypatch, *places, "--experts", pipeline / "experts")
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_experts_are_a_folder_or_one_checkpoint_for_each_pair(tmp_path):
    german, russian = LangPair("en", "de"), LangPair("en", "ru")
    for place in ("experts/en-de/checkpoint_best.pt", "experts/en-ru/checkpoint_best.pt", "mine.pt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    folder = distil_sequences.expert_files(str(tmp_path / "experts"), (german,))
    assert folder == {german: tmp_path / "experts" / "en-de" / "checkpoint_best.pt"}
    (tmp_path / "experts").rename(tmp_path / "alpha=0.1")  # a folder, whatever its name has
    folder = distil_sequences.expert_files(str(tmp_path / "alpha=0.1"), (german,))
    assert folder == {german: tmp_path / "alpha=0.1" / "en-de" / "checkpoint_best.pt"}
    named = f"en-de={tmp_path}/mine.pt"
    assert distil_sequences.expert_files(named, (german,)) == {german: tmp_path / "mine.pt"}
    with pytest.raises(UserError, match="no expert of en-ru; train it with train_experts.sh"):
        distil_sequences.expert_files(named, (german, russian))
    with pytest.raises(UserError, match="en-fr is none of en-de"):
        distil_sequences.expert_files(f"en-fr={tmp_path}/mine.pt", (german,))

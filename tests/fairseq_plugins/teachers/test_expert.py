"""Teachers' files: read without executing them, and every mistake told in one line."""

import argparse
import os
import shutil

import pytest
import torch

from fairseq_plugins.errors import UserError
from fairseq_plugins.inference_only import checkpoints
from fairseq_plugins.inference_only.checkpoints import read_checkpoint
from fairseq_plugins.teachers.expert import load_teacher
from fairseq_plugins.teachers.vocabularies import Vocabulary


@pytest.fixture
def vocabulary(toy):
    return Vocabulary("en", "de", str(toy.data / "dict.en.txt"), str(toy.data / "dict.de.txt"))


def changed(path, destination, change):
    """A copy of a checkpoint after `change(state)`."""
    state = torch.load(path, weights_only=False)
    change(state)
    torch.save(state, destination)
    return str(destination)


def refusal(call, *arguments):
    """The one line that a user reads."""
    with pytest.raises(UserError) as error:
        call(*arguments)
    (line,) = str(error.value).splitlines()
    return line


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("entry", ["model", "cfg", "extra_state"])
def test_hostile_checkpoint_is_refused_in_one_line_and_not_executed(toy, tmp_path, vocabulary, entry):
    marker = tmp_path / "executed"
    path = changed(toy.de, tmp_path / "evil.pt", lambda state: state.update({entry: Hostile(marker)}))
    line = refusal(load_teacher, path, vocabulary)
    assert path in line
    assert "posix.system" in line
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file was harmless, so the test shows nothing"


def program(marker):
    return f"__import__('pathlib').Path({str(marker)!r}).touch() or True"


@pytest.mark.parametrize(
    ("task", "task_option", "model_option"),
    [
        ("multilingual_translation_kd", "langtoks", None),
        ("translation_multi_simple_epoch", "left_pad_source", None),
        ("translation", None, "adaptive_softmax_cutoff"),
    ],
)
def test_options_of_a_hostile_checkpoint_that_fairseq_would_evaluate_are_not_executed(
    toy, setup, tmp_path, vocabulary, task, task_option, model_option
):
    marker = tmp_path / "executed"
    options = vars(setup([*toy.multilingual, *toy.tiny, *toy.training, *toy.task])[0].kd)

    def poison(state):
        if task_option:
            poisoned = {**options, "data": str(toy.data), "_name": task, task_option: program(marker)}
            # as the two tasks leave them in a checkpoint
            stock = task == "translation_multi_simple_epoch"
            state["cfg"]["task"] = argparse.Namespace(**poisoned) if stock else poisoned
        if model_option:
            setattr(state["cfg"]["model"], model_option, program(marker))

    path = changed(toy.de, tmp_path / "evil.pt", poison)
    assert "nothing of it was executed" in refusal(load_teacher, path, vocabulary)
    assert not marker.exists()


def test_architectures_that_run_options_or_open_other_files_are_refused(toy, tmp_path, vocabulary):
    path = changed(toy.de, tmp_path / "evil.pt", lambda state: setattr(state["cfg"]["model"], "_name", "fconv"))
    line = refusal(load_teacher, path, vocabulary)
    assert "--arch fconv" in line
    assert "transformer" in line


def test_checkpoints_with_everything_that_fairseq_writes_are_read(toy, train, tmp_path):
    argv = [toy.data, "-s", "en", "-t", "de", "--task", "translation", "--criterion", "label_smoothed_cross_entropy"]
    extras = ["--eval-bleu", "--eval-bleu-args", '{"beam": 1, "max_len_b": 8}', "--report-accuracy", "--store-ema"]
    train([*argv, *toy.tiny, *toy.training, *extras, "--clip-norm", 1, "--max-update", 2, "--save-dir", tmp_path])
    assert read_checkpoint(str(tmp_path / "checkpoint_last.pt"))["model"]


def test_checkpoint_of_older_fairseq_with_args_in_place_of_cfg_teaches(toy, tmp_path, vocabulary):
    def older(state):
        cfg = state.pop("cfg")
        state["args"] = argparse.Namespace(**{**vars(cfg["model"]), "data": str(toy.data)})

    path = changed(toy.de, tmp_path / "old.pt", older)
    new, old = load_teacher(str(toy.de), vocabulary), load_teacher(path, vocabulary)
    for weight, same in zip(new.members.parameters(), old.members.parameters(), strict=True):
        assert torch.equal(weight, same)


def test_missing_file(vocabulary):
    assert "no checkpoint at nowhere.pt" in refusal(load_teacher, "nowhere.pt", vocabulary)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"text", bytes(range(256))])
def test_file_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "broken.pt"
    path.write_bytes(content)
    assert str(path) in refusal(read_checkpoint, str(path))


def test_checkpoint_without_model_or_options(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    assert "not a fairseq checkpoint" in refusal(read_checkpoint, str(tmp_path / "other.pt"))


def test_teacher_of_a_task_that_is_no_translation(toy, tmp_path, vocabulary):
    path = changed(toy.de, tmp_path / "lm.pt", lambda state: state["cfg"]["task"].update(_name="language_modeling"))
    line = refusal(load_teacher, path, vocabulary)
    assert "--task language_modeling" in line
    assert "translation_multi_simple_epoch" in line


def test_vocabulary_that_differs_is_named_with_its_first_entry_and_both_files(toy, tmp_path, vocabulary):
    lines = (toy.data / "dict.de.txt").read_text().splitlines(keepends=True)
    lines[5], lines[6] = lines[6], lines[5]
    own = tmp_path / "dict.de.txt"
    own.write_text("".join(lines))
    shutil.copy(toy.data / "dict.en.txt", tmp_path)
    path = changed(toy.de, tmp_path / "model.pt", lambda state: state["cfg"]["task"].update(data=str(tmp_path)))
    line = refusal(load_teacher, path, vocabulary)
    # fairseq puts four symbols of its own before the file's first line
    first, other = (entry.split()[0] for entry in (lines[6], lines[5]))
    assert (
        f"entry 9 is {first!r} in the student's {vocabulary.target_path} but {other!r} in the teacher's {own}" in line
    )


def test_vocabulary_that_is_longer_is_named_with_its_first_extra_entry(toy, tmp_path, vocabulary):
    shutil.copy(toy.data / "dict.en.txt", tmp_path)
    (tmp_path / "dict.de.txt").write_text((toy.data / "dict.de.txt").read_text() + "more 1\n")
    path = changed(toy.de, tmp_path / "model.pt", lambda state: state["cfg"]["task"].update(data=str(tmp_path)))
    assert "is nothing in the student's" in refusal(load_teacher, path, vocabulary)


def test_dictionary_next_to_the_checkpoint_is_used_where_the_training_data_are_gone(toy, tmp_path, vocabulary, caplog):
    path = changed(toy.de, tmp_path / "model.pt", lambda state: state["cfg"]["task"].update(data="/gone"))
    with caplog.at_level("WARNING"):
        load_teacher(path, vocabulary)
    assert "no dictionary of teacher" in caplog.text
    caplog.clear()
    for lang in ("en", "de"):
        shutil.copy(toy.data / f"dict.{lang}.txt", tmp_path)
    with caplog.at_level("WARNING"):
        load_teacher(path, vocabulary)
    assert not caplog.text


def test_weights_that_do_not_fit_their_options(toy, tmp_path, vocabulary):
    path = changed(toy.de, tmp_path / "odd.pt", lambda state: vars(state["cfg"]["model"]).update(encoder_layers=3))
    assert "cannot be rebuilt from its options and weights" in refusal(load_teacher, path, vocabulary)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--kd-temperature", 0], "--kd-temperature 0"),
        (["--kd-weight", 1.5], "--kd-weight 1.5"),
        (["--kd-strategy", "threshold"], "name them with --teachers"),
        (["--lang-pairs", "en-de,ende"], "list SOURCE-TARGET pairs"),
        (["--lang-pairs", "en-de,en-xx"], "dict.xx.txt"),
        (["--langs", "en,de"], "en-ru"),
        (["--eval-bleu", "--eval-bleu-args", "beam=4"], "not a JSON object"),
        (
            ["--eval-bleu", "--eval-bleu-args", '{"baem": 4}'],
            "baem is no option of fairseq-generate; did you mean beam",
        ),
        (["--eval-bleu", "--eval-bleu-args", '{"beam": "4"}'], "beam is '4'; give a value such as 5"),
        (["--eval-bleu", "--eval-bleu-args", '{"beam": 0}'], "give 1 or more"),
        (["--kd-temperature", "inf"], "--kd-temperature inf: give a finite number above 0"),
        (["--kd-temperature", "nan"], "--kd-temperature nan: give a finite number above 0"),
        (["--kd-weight", "nan"], "--kd-weight nan"),
        (["--label-smoothing", "1.1"], "--label-smoothing 1.1: give a number from 0 to 1"),
        (["--label-smoothing", "nan"], "--label-smoothing nan"),
        (["--ignore-prefix-size", "-1"], "--ignore-prefix-size -1"),
        (["--ignore-prefix-size", "9"], "leaves nothing to learn of train, whose longest target sentence has 9 tokens"),
        (["--kd-threshold", "2"], "is the margin of --kd-strategy"),
        (["--kd-strategy", "threshold", "--kd-threshold", "nan"], "--kd-threshold nan: give a finite number"),
        (["--lang-pairs", "en-de,en-ru,en-de"], "names en-de twice"),
    ],
)
def test_options_that_make_no_sense(toy, setup, flags, said):
    assert said in refusal(setup, [*toy.multilingual, *toy.tiny, *toy.training, *toy.task, *flags])


def test_teacher_given_to_a_criterion_that_does_not_learn_from_one(toy, setup):
    argv = [toy.data, "-s", "en", "-t", "de", "--task", "translation_kd", "--teacher", toy.de]
    line = refusal(setup, [*argv, "--criterion", "label_smoothed_cross_entropy", *toy.tiny, *toy.training])
    assert "--criterion label_smoothed_kd_cross_entropy" in line


def test_teacher_of_another_pair_or_direction_is_refused_unless_it_is_meant(toy, vocabulary, caplog):
    for source, target in (("en", "ru"), ("de", "en")):
        other = Vocabulary(source, target, vocabulary.source_path, vocabulary.target_path)
        line = refusal(load_teacher, str(toy.de), other)
        assert f"was trained on en-de and is to teach {source}-{target}" in line
        assert "--kd-allow-other-pair" in line
        with caplog.at_level("WARNING"):
            load_teacher(str(toy.de), other, other_pairs=True)
        assert f"was trained on en-de and now teaches {source}-{target}" in caplog.text


@pytest.mark.parametrize(("temperature", "told"), [(1, False), (2, True)])
def test_smoothed_teacher_at_high_temperature_is_told_the_rule_of_thumb(toy, setup, caplog, temperature, told):
    argv = [toy.data, "-s", "en", "-t", "de", "--task", "translation_kd", "--teacher", toy.de, *toy.task[2:]]
    with caplog.at_level("WARNING"):
        setup([*argv, *toy.tiny, *toy.training, "--kd-temperature", temperature])
    said = "the teacher of en-de was trained with --label-smoothing 0.1 and teaches at --kd-temperature 2"
    assert (said in caplog.text) == told


def damaged_data(toy, folder, name, change):
    data = shutil.copytree(toy.data, folder / "data")
    path = data / name
    path.write_bytes(change(path.read_bytes()))
    return data


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("train.en-de.de.bin", lambda content: content[:-6], "bytes where"),
        ("train.en-de.en.idx", lambda content: content[:-6], "bytes where"),
        ("train.en-de.en.idx", lambda content: b"", "bytes where"),
        ("train.en-de.en.idx", lambda content: content[:17] + b"\xff" + content[18:], "bytes where"),
        ("dict.de.txt", lambda content: content[:-1] + b" x\n", "cannot read the data in"),
        ("dict.de.txt", lambda content: b"\xff\xfe" + content, "cannot read the data in"),
        ("dict.de.txt", lambda content: b"\x00" * 99, "cannot read the data in"),
    ],
)
def test_damaged_data_and_dictionaries_are_told_in_one_line(toy, setup, tmp_path, name, change, said):
    data = damaged_data(toy, tmp_path, name, change)
    bilingual = ["-s", "en", "-t", "de", "--task", "translation_kd", *toy.task[2:]]
    for task in (bilingual, [*toy.multilingual[1:], *toy.task]):
        assert said in refusal(setup, [data, *task, *toy.tiny, *toy.training])


def test_multilingual_teacher_of_other_pairs(toy, train, tmp_path, vocabulary):
    argv = [toy.data, "--lang-pairs", "en-ru,en-fr", "--langs", "de,en,fr,ru", "--decoder-langtok", *toy.task]
    train([*argv, *toy.tiny, *toy.training, "--max-update", 1, "--save-dir", tmp_path])
    path = str(tmp_path / "checkpoint_last.pt")
    assert "it cannot teach en-de" in refusal(load_teacher, path, vocabulary)
    mixed = Vocabulary("en", "ru", vocabulary.source_path, str(toy.data / "dict.ru.txt"))
    assert load_teacher(path, mixed).language_tokens.target_prefix is not None
    assert "use one kind only" in refusal(load_teacher, f"{toy.ru}:{path}", mixed)


def test_an_expert_with_a_flipped_bit_is_refused_wherever_the_bit_is(toy, tmp_path, vocabulary):
    """Or has the same weights: a few bytes of the archive stand for nothing. Finite weights tell no damage."""
    whole = toy.de.read_bytes()
    weights = read_checkpoint(toy.de)["model"]
    path, refused = tmp_path / "flipped.pt", 0
    for place in range(137, len(whole), len(whole) // 60):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            found = read_checkpoint(path)["model"]
        except UserError:
            refused += 1
        else:
            assert all(torch.equal(found[name], tensor) for name, tensor in weights.items() if "_float_" not in name)
    assert refused > 40


@pytest.mark.parametrize("author", ["nobody", "the plugin", "a run of this project"])
def test_faults_of_torchs_reader_are_told_for_files_of_unknown_authors_only(toy, tmp_path, caplog, monkeypatch, author):
    monkeypatch.setattr(checkpoints, "_told", False)
    monkeypatch.setattr(checkpoints.torch, "__version__", "2.5.1")
    path = tmp_path / "checkpoint_best.pt"
    criterion = "label_smoothed_kd_cross_entropy" if author == "the plugin" else "cross_entropy"
    changed(toy.de, path, lambda state: state["cfg"].update(criterion={"_name": criterion}))
    if author == "a run of this project":
        (tmp_path / "run.json").write_text("{}")
    with caplog.at_level("INFO"):
        read_checkpoint(path)
        read_checkpoint(path)
    assert caplog.text.count("CVE-2025-32434") == (author == "nobody")

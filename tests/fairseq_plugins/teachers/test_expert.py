"""Teachers' files: read without executing them, and every mistake told in one line."""

import argparse
import os
import shutil

import pytest
import torch
from fairseq import utils

from fairseq_plugins.errors import UserError
from fairseq_plugins.teachers.expert import Vocabulary, load_teacher
from fairseq_plugins.teachers.safe_checkpoint import read_checkpoint


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
    assert "cannot rebuild teacher" in refusal(load_teacher, path, vocabulary)
    assert not marker.exists()
    assert utils.eval_bool("1 == 1"), "fairseq evaluates its own options as before"


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
    assert "no teacher checkpoint at nowhere.pt" in refusal(load_teacher, "nowhere.pt", vocabulary)


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
    assert "cannot rebuild teacher" in refusal(load_teacher, path, vocabulary)


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
    ],
)
def test_options_that_make_no_sense(toy, setup, flags, said):
    assert said in refusal(setup, [*toy.multilingual, *toy.tiny, *toy.training, *toy.task, *flags])


def test_teacher_given_to_a_criterion_that_does_not_learn_from_one(toy, setup):
    argv = [toy.data, "-s", "en", "-t", "de", "--task", "translation_kd", "--teacher", toy.de]
    line = refusal(setup, [*argv, "--criterion", "label_smoothed_cross_entropy", *toy.tiny, *toy.training])
    assert "--criterion label_smoothed_kd_cross_entropy" in line


def test_multilingual_teacher_of_other_pairs(toy, train, tmp_path, vocabulary):
    argv = [toy.data, "--lang-pairs", "en-ru,en-fr", "--langs", "de,en,fr,ru", "--decoder-langtok", *toy.task]
    train([*argv, *toy.tiny, *toy.training, "--max-update", 1, "--save-dir", tmp_path])
    path = str(tmp_path / "checkpoint_last.pt")
    assert "it cannot teach en-de" in refusal(load_teacher, path, vocabulary)
    mixed = Vocabulary("en", "ru", vocabulary.source_path, str(toy.data / "dict.ru.txt"))
    assert load_teacher(path, mixed).language_tokens.target_prefix is not None
    assert "use one kind only" in refusal(load_teacher, f"{toy.ru}:{path}", mixed)

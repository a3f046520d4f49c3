"""Selective distillation: the formulas, BLEU per pair in training, and weights that survive a restart."""

import re

import pytest
import sacrebleu
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq_plugins.multilingual.selective import Selection, strength
from fairseq_plugins.multilingual.validation import bleu as bleu_of
from fairseq_plugins.multilingual.validation import bleu_counts, count_names

bleu = st.floats(0, 100)


@pytest.mark.parametrize(
    ("strategy", "student", "teacher", "margin", "expected"),
    [
        ("fixed", 99, 1, 0, 1),
        ("threshold", 25.9, 25, 1, 1),
        ("threshold", 26.0, 25, 1, 0),
        ("adaptive", 22.9, 25, 2, 1),
        ("adaptive", 23.0, 25, 2, 1),
        ("adaptive", 24.0, 25, 2, 0.5),
        ("adaptive", 25.0, 25, 2, 0.25),
        ("adaptive", 27.0, 25, 2, 0.0625),
    ],
)
def test_weight_of_a_pair_equals_the_published_rule(strategy, student, teacher, margin, expected):
    assert strength(strategy, student, teacher, margin) == pytest.approx(expected)


@given(st.sampled_from(["fixed", "threshold", "adaptive"]), bleu, bleu, bleu)
def test_better_students_never_get_more_weight(strategy, student, other, teacher):
    low, high = sorted([student, other])
    weights = [strength(strategy, score, teacher, 1.0) for score in (low, high)]
    assert 1 >= weights[0] >= weights[1] >= 0


def test_every_pair_has_full_weight_until_it_was_validated():
    selection = Selection("threshold")
    assert selection.strength("en-de") == 1
    selection.teacher_bleu["en-de"] = 10
    selection.student_bleu["en-de"] = 50
    assert selection.strength("en-de") == 0
    assert selection.strength("en-ru") == 1


def test_margins_are_those_of_the_paper_unless_given():
    assert (Selection("threshold").margin, Selection("adaptive").margin) == (1, 2)
    assert Selection("adaptive", 0.5).margin == 0.5


def test_saved_selection_gives_the_same_weights():
    selection = Selection("adaptive")
    selection.teacher_bleu["en-de"], selection.student_bleu["en-de"] = 10.0, 11.5
    restored = Selection("adaptive")
    restored.load_state_dict(selection.state_dict())
    assert restored.strength("en-de") == selection.strength("en-de") < 1


def test_counts_of_batches_add_up_to_sacrebleus_corpus_score():
    hypotheses = ["the cat sat on the mat .", "a dog barks at night", "no", "we agree with you on this"]
    references = ["the cat sat on a mat .", "the dog barks at night", "yes", "we agree with you on that"]
    parts = [bleu_counts("bleu", hypotheses[i : i + 2], references[i : i + 2]) for i in (0, 2)]
    summed = [sum(part[key] for part in parts) for key in count_names("bleu")]
    assert bleu_of(summed) == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [references]).score)


def test_pair_without_validation_sentences_scores_zero():
    empty = bleu_counts("bleu", [], [])
    assert empty.keys() == bleu_counts("bleu", ["a"], ["a"]).keys()
    assert bleu_of(list(empty.values())) == 0


# a margin at which these hardly trained students count as ahead of their teachers
MARGIN = 10
ADAPTIVE = ["--kd-strategy", "adaptive", "--kd-threshold", MARGIN, "--eval-bleu-args", '{"beam": 2, "max_len_b": 10}']


@pytest.fixture(scope="module")
def student(toy):
    teachers = ["--teachers", f"en-de={toy.de},en-ru={toy.ru}", "--kd-temperature", 2]
    return [*toy.multilingual, *toy.tiny, *toy.training, *toy.task, *teachers, "--dropout", 0.1]


def test_resumed_run_equals_the_straight_one_weights_of_pairs_included(toy, student, train, tmp_path):
    argv = [*student, *ADAPTIVE, "--max-update", 8, "--save-interval-updates", 4]
    straight = train([*argv, "--save-dir", tmp_path / "straight"])
    halfway = tmp_path / "straight" / "checkpoint_1_4.pt"
    resumed = train([*argv, "--save-dir", tmp_path / "resumed", "--restore-file", halfway])

    def numbers(line):
        return {key: value for key, value in line.items() if not key.endswith(("wps", "ups", "wall"))}

    assert [numbers(line) for line in resumed["train_inner"]] == [numbers(line) for line in straight["train_inner"][4:]]
    # otherwise the comparison would hold for any weight
    assert float(resumed["train_inner"][0]["kd_weight_en-de"]) < 0.9
    one, two = (
        torch.load(tmp_path / run / "checkpoint_last.pt", weights_only=False) for run in ("straight", "resumed")
    )
    assert one["model"].keys() == two["model"].keys()
    # fairseq fills its encoder layers' second copy of some weights (`fc1_weight` of `fc1.weight`) only when it loads
    trained = [name for name in one["model"] if not re.search("_(float_tensor|weight|bias)$", name)]
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in trained)
    assert one["extra_state"]["train_iterator"] == two["extra_state"]["train_iterator"]


def test_scores_and_weights_of_each_pair_are_logged_and_follow_the_rule(toy, student, train, tmp_path):
    best = ["--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric", "--save-interval-updates", 2]
    logs = train([*student, *ADAPTIVE, *best, "--max-update", 4, "--save-dir", tmp_path])
    first, last = logs["valid"]
    for pair in ("en-de", "en-ru"):
        expected = 0.9 * strength(
            "adaptive", float(first[f"valid_bleu_{pair}"]), float(first[f"valid_teacher_bleu_{pair}"]), MARGIN
        )
        assert float(first[f"valid_kd_weight_{pair}"]) == pytest.approx(expected, abs=1e-3)
        in_force = [float(line[f"kd_weight_{pair}"]) for line in logs["train_inner"]]
        assert in_force[:2] == [0.9, 0.9]
        assert in_force[2:] == pytest.approx([expected, expected], abs=1e-3)
        # the teacher translates once
        assert last[f"valid_teacher_bleu_{pair}"] == first[f"valid_teacher_bleu_{pair}"]
    assert "valid_bleu_en-fr" in first
    assert "valid_teacher_bleu_en-fr" not in first
    assert "valid_best_bleu" in last


@pytest.mark.parametrize("replacing", [[], ["--lang-tok-replacing-bos-eos"]])
def test_validation_bleu_is_that_of_fairseq_generate_for_student_and_teacher(
    toy, student, train, generate, tmp_path, replacing
):
    bleu = ["--eval-bleu", "--eval-bleu-args", '{"beam": 2, "max_len_b": 10}', "--max-update", 30]
    logged = train([*student, *replacing, *bleu, "--max-tokens", 400, "--save-dir", tmp_path])["valid"][-1]
    search = ["-s", "en", "-t", "ru", "--beam", 2, "--max-len-b", 10, "--gen-subset", "valid", "--scoring", "sacrebleu"]
    task = ["--task", "translation_multi_simple_epoch", *toy.multilingual[1:], *replacing, "--langs", "de,en,fr,ru"]
    by_student = generate([toy.data, *task, *search, "--path", tmp_path / "checkpoint_last.pt"])
    by_teacher = generate([toy.data, "--task", "translation", *search, "--path", toy.ru])
    assert by_teacher > 0
    assert float(logged["valid_bleu_en-ru"]) == pytest.approx(by_student, abs=0.01)
    assert float(logged["valid_teacher_bleu_en-ru"]) == pytest.approx(by_teacher, abs=0.01)

"""Claims and the answer's sentences, from results made by hand so that each verdict is known."""

import re

import numpy as np
import pytest

from scripts.studies import statistics
from scripts.studies.answer import Choice, _is_told_apart, answer, choices, rise_at_end
from scripts.studies.claims import claims_of
from scripts.studies.results import Kind, read_study

# {(alpha, T): score}; what each seed adds is its own luck and cancels within the seed.
PAPERS = {(0.0, 1): 60, (0.0, 4): 60, (0.1, 1): 62, (0.1, 4): 58}
LABELS = {0.0: 55, 0.1: 56}


@pytest.fixture
def study(made_up, tmp_path):
    """A study of the given cell means, each seed with its luck and a little noise."""

    def make(cells=PAPERS, labels=LABELS, seeds=5, noise=0.05, **facts):
        written, rng = made_up(tmp_path), np.random.default_rng(0)
        for seed in range(seeds):
            luck = 3 * seed
            for alpha in (0.0, 0.1):
                written.job("teacher", seed, alpha, None, None, 66.0, epochs=2, network="resnet20")
            for (alpha, t), mean in cells.items():
                score = mean + luck + rng.normal(0, noise)
                written.job("student", seed, alpha, None, t, score, epochs=2, network="resnet8")
            for alpha, mean in labels.items():
                score = mean + luck + rng.normal(0, noise)
                written.job("baseline", seed, alpha, None, None, score, epochs=2, network="resnet8")
        found = read_study(written.write(**facts))
        (comparison,) = found.comparisons
        return found, comparison, claims_of(found, comparison)

    return make


def test_the_papers_world_supports_the_papers_claims(study):
    found, comparison, claims = study()
    assert [claim.verdict for claim in claims] == ["supported"] * 4 + ["not tested"]
    # (60 - 60) - (58 - 62) = 4; 62 - 58 = 4; 62 - 60 = 2; 62 - 56 = 6 against the stronger labels
    assert [round(claim.finding.interval.mean) for claim in claims[:4]] == [4, 4, 2, 6]
    assert all(claim.finding.p == 1 / 32 for claim in claims[:4])
    said = answer(found, comparison, claims)
    assert said[0].startswith("Distil from the smoothed teacher at T = 1: top-1 accuracy")
    assert "+5.98 [" in said[1]
    assert "every other way is told apart from it (corrected for picking the best of 6)" in said[1]
    assert len(said) <= 5


def test_the_opposite_world_contradicts_them(study):
    _, _, claims = study({(0.0, 1): 62, (0.0, 4): 58, (0.1, 1): 54, (0.1, 4): 58})
    # claim 4 has two parts, either of which might have been the one below zero: five seeds are too few to say so twice
    assert [claim.verdict for claim in claims[:4]] == ["contradicted"] * 3 + ["leaning"]
    # against labels alone (55) and smoothed ones (56): the weaker part is the latter
    assert claims[3].part.name.endswith("smoothed labels alone")


def test_luck_that_a_seed_has_in_all_cells_is_no_noise(study):
    """Scores spread by 12 points over seeds, the differences hardly at all."""
    _, _, claims = study()
    assert claims[1].finding.interval.half_width < 0.3


def test_beating_one_kind_of_labels_alone_is_not_enough(study):
    _, _, claims = study(labels={0.0: 55, 0.1: 62})
    assert claims[3].verdict == "undecided"
    assert {part.finding.reading for part in claims[3].parts} == {"supported", "undecided"}


def test_one_kind_of_labels_alone_does_not_make_the_claim(study):
    _, _, claims = study(labels={0.1: 50})
    assert claims[3].verdict == "not tested"
    assert claims[3].finding.reading == "supported"  # against the one that was trained
    assert claims[3].missing == "no student was trained on labels alone without smoothing"


def test_seeds_too_few_that_agree_to_the_last_image_tell_nothing_apart():
    same = {0: 0.3, 1: 0.3}
    assert not statistics.leaves_zero_out(list(same.values()))
    assert statistics.leaves_zero_out([0.3] * 5)
    assert statistics.leaves_zero_out([0.3, 0.31])
    assert not statistics.leaves_zero_out([0.3, -0.1])


def test_after_an_open_claim_the_others_are_exploratory(study):
    _, _, claims = study({(0.0, 1): 60, (0.0, 4): 58, (0.1, 1): 60, (0.1, 4): 58}, noise=0.5)
    assert claims[0].verdict == "undecided"
    assert [claim.verdict for claim in claims[1:4]] == ["exploratory"] * 3
    assert claims[1].finding.reading == "supported"


def test_when_labels_alone_are_best_the_answer_is_not_to_distil(study):
    found, comparison, claims = study(labels={0.0: 70, 0.1: 68})
    assert answer(found, comparison, claims)[0].startswith("Do not distil, train on labels alone: top-1 accuracy")


def test_when_nothing_stands_out_the_answer_is_undecided(study):
    same = dict.fromkeys(PAPERS, 60)
    found, comparison, claims = study(same, dict.fromkeys(LABELS, 60), noise=0.8)
    first = answer(found, comparison, claims)[0]
    assert first.startswith("Undecided: of 6 ways tried")


def test_equal_ways_are_rarely_told_apart_by_luck():
    """Ten ways that are the same: in at most 5 % of studies the best is told apart from any other."""
    rng, told = np.random.default_rng(2), 0
    for _ in range(300):
        ways = [Choice("", Kind(), None, dict(enumerate(row))) for row in rng.normal(0, 1, (10, 5))]
        best, *others = sorted(ways, key=lambda way: -way.interval.mean)
        told += any(_is_told_apart(best, other, len(ways)) for other in others)
    assert told / 300 <= 0.05


def test_few_seeds_cannot_say_more_than_leaning(study):
    found, comparison, claims = study(seeds=3)
    assert [claim.verdict for claim in claims[:4]] == ["leaning", *["exploratory"] * 3]
    assert "about 5 seeds would settle it" in answer(found, comparison, claims)[2]


def test_the_noise_of_the_test_set_is_told_apart_from_the_seeds(study):
    """2,500 images: a difference of two accuracies near 60 % moves by a point or two with another test set."""
    _, _, claims = study()
    noise, seeds = claims[1].part.noise, claims[1].finding.interval
    assert noise.mean == pytest.approx(seeds.mean)
    assert noise.half_width > 2 * seeds.half_width


def test_a_planned_grid_chooses_the_temperatures_before_it_is_finished(study):
    _, _, claims = study({(0.0, 1): 60, (0.1, 1): 62, (0.0, 2): 60, (0.1, 2): 61}, temperatures=[1, 2, 4], planned=99)
    assert "from 1 to 4" in claims[0].statement
    assert (claims[0].verdict, claims[1].verdict) == ("undecided", "exploratory")
    assert "no seed has all runs" in claims[0].missing


def test_the_smoothed_teacher_of_the_claims_is_the_one_nearest_to_a_tenth(made_up, tmp_path):
    written = made_up(tmp_path)
    for alpha in (0.0, 0.05, 0.1, 0.2):
        written.job("student", 0, alpha, None, 1, 60, epochs=2, network="resnet8")
    (comparison,) = read_study(written.write()).comparisons
    assert comparison.smoothed == Kind(0.1)
    assert [choice.name for choice in choices(comparison)][1] == "the smoothed 0.05 teacher at T = 1"


def test_eta_and_confusions_decide_the_fifth_claim(whole_study):
    found = read_study(whole_study)
    (comparison,) = found.comparisons
    fifth = claims_of(found, comparison)[4]
    assert [part.unit for part in fifth.parts] == ["% of eta", "% of eta", "points of share"]
    assert [part.finding.reading for part in fifth.parts] == ["supported"] * 3
    assert fifth.finding.reading == "supported"
    reason = answer(found, comparison, claims_of(found, comparison))[3]
    assert re.search(r"by \+4\.\d \[.*\] % under the smoothed teacher and \+0\.\d \[.*\] % under the plain one", reason)


def test_what_the_last_fifth_of_training_brought():
    epochs = np.arange(20.0)
    assert rise_at_end(epochs, 2 * epochs) == pytest.approx(8)  # four epochs at two points each
    assert rise_at_end(epochs, np.full(20, 60.0)) == pytest.approx(0)
    assert rise_at_end(np.arange(2.0), np.arange(2.0)) is None

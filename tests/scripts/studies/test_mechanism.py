"""What is measured of a study's networks, on features made by hand so that eta and the confusions are known."""

import numpy as np
import pytest

from scripts.studies.mechanism import Seen, analyse, get_args_parser, measure
from scripts.studies.results import read_study
from vision_reference.errors import UserError

NAMES = ["cat", "dog", "car", "bus"]
LABELS = np.repeat(np.arange(4), 3)


def _seen(distance: float, wrong: list[tuple[int, int]] = ()) -> Seen:
    """Cats and dogs, cars and buses lie ``distance`` apart, the pairs 10; ``wrong``: (image, class it is taken for)."""
    means = np.array([[0, 0], [distance, 0], [0, 10], [distance, 10]])
    logits = np.full((12, 4), -2.0)
    logits[np.arange(12), LABELS ^ 1] = 0  # a cat is a little like a dog
    logits[np.arange(12), LABELS] = 3
    for image, taken in wrong:
        logits[image, taken] = 4
    return Seen(means[LABELS], logits, LABELS)


@pytest.fixture
def records(made_up, tmp_path):
    """Records of a study whose students at T = 4 have drawn similar classes together, the smoothed teacher's more."""
    study = made_up(tmp_path)
    for seed in (0, 1):
        for alpha in (0.0, 0.1):
            study.job("teacher", seed, alpha, None, None, 66, epochs=2, network="resnet20")
            for t in (1, 4):
                study.job("student", seed, alpha, None, t, 60, epochs=2, network="resnet8")
    study.job("student", 2, 0.0, None, 1, 60, epochs=2, network="resnet8")

    def look(run):
        if run.seed == 2:
            return None  # its checkpoint is gone
        if run.role == "teacher":
            return _seen(5.0, [(0, 1)])
        if run.temperature == 1:
            return _seen(5.0, [(0, 2)])
        return _seen(2.0 if run.kind.alpha else 4.0, [(0, 1), (3, 0)])

    return list(measure(read_study(study.write()), look, NAMES, np.array([0, 0, 1, 1]), "two groups"))


def _by(records, kind, **wanted):
    return [r for r in records if r["kind"] == kind and all(r.get(name) == value for name, value in wanted.items())]


def test_eta_is_what_the_distances_give(records):
    def similar(distance):  # d(c, similar): by symmetry the same for all classes
        others = distance + 10 + np.hypot(distance, 10)
        return 3 * distance / others

    for alpha, distance in ((0.0, 4.0), (0.1, 2.0)):
        expected = 100 * (similar(5.0) - similar(distance)) / similar(5.0)
        found = _by(records, "eta", alpha=alpha)
        assert [(r["seed"], r["temperature"], r["reference"]) for r in found] == [(0, 4.0, 1.0), (1, 4.0, 1.0)]
        assert [r["eta"] for r in found] == pytest.approx([expected] * 2)
        assert all(r["control"] < 0 for r in found)  # what is not similar moved away, in proportion


def test_errors_are_counted_within_groups(records):
    (before,) = _by(records, "confusions", alpha=0.1, temperature=1.0, seed=0)
    (after,) = _by(records, "confusions", alpha=0.1, temperature=4.0, seed=0)
    assert (before["errors"], before["inside"], after["errors"], after["inside"]) == (1, 0, 2, 2)
    assert after["chance"] == pytest.approx(1 / 3)
    assert after["groups"] == "two groups"


def test_the_confusions_that_moved_are_named(records):
    moved = {(r["right"], r["taken_for"]): r["after"] - r["before"] for r in _by(records, "moved", alpha=0.0)}
    assert moved == {("cat", "car"): -1, ("cat", "dog"): 1, ("dog", "cat"): 1}


def test_teachers_are_inspected_once_each(records):
    teachers = _by(records, "teacher")
    assert sorted((r["seed"], r["alpha"]) for r in teachers) == [(0, 0.0), (0, 0.1), (1, 0.0), (1, 0.1)]
    assert teachers[0]["acc1"] == pytest.approx(100 * 11 / 12)
    assert sum(bin["count"] for bin in teachers[0]["reliability"]) == 12


def test_what_cannot_be_looked_into_is_refused(made_up, tmp_path):
    study = made_up(tmp_path)
    study.job("student", 0, 0.0, None, 1, 60, epochs=2, network="resnet8")
    with pytest.raises(UserError, match="give it with --data-path"):
        analyse(study.write())
    study.records[0]["metrics"] = {"bleu": {"en-de": 30.0}}
    with pytest.raises(UserError, match="a study of translation"):
        analyse(study.write())


def test_help_names_the_groups(capsys):
    with pytest.raises(SystemExit):
        get_args_parser().parse_args(["--help"])
    assert "classes.tsv" in capsys.readouterr().out

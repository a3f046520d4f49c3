"""What is measured of a study's networks, on features made by hand so that eta and the confusions are known."""

import json
import sys

import numpy as np
import pytest

from scripts.studies import translation_models
from scripts.studies.image_networks import Seen, measure
from scripts.studies.mechanism import analyse_images, analyse_translation, get_args_parser
from scripts.studies.results import read_study
from scripts.studies.translation_models import Pieces
from vision_reference.analysis import geometry, subjects
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


def test_what_was_measured_of_networks_that_are_gone_does_not_count(made_up, tmp_path):
    study = made_up(tmp_path)
    for alpha in (0.0, 0.1):
        study.job("teacher", 0, alpha, None, None, 66, epochs=2, network="resnet20")
        for t in (1, 4):
            study.job("student", 0, alpha, None, t, 60, epochs=2, network="resnet8")
    found = read_study(study.write())
    records = list(measure(found, lambda run: _seen(5.0 - (run.temperature or 0)), NAMES, None, "clusters"))
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "mechanism.json").write_text(json.dumps(records))
    assert len(read_study(tmp_path).analyses["eta"]) == 2
    again = next(record for record in study.records if record["temperature"] == 4 and record["alpha"] == 0.1)
    again["finished"] = "2027-01-01T00:00:00+00:00"
    reread = read_study(study.write())
    assert [record["alpha"] for record in reread.analyses["eta"]] == [0.0]
    assert "trained anew since are left out; python scripts/studies/mechanism.py" in reread.notes[0]


def test_words_of_several_language_pairs(made_up, tmp_path):
    """eta of a student is the mean over its pairs, each measured against its own expert's look-alikes."""
    study = made_up(tmp_path)
    for seed in (0, 1):
        for alpha in (0.0, 0.1):
            for pair, bleu in (("en-de", 30.0), ("en-fr", 40.0)):
                study.job("teacher", seed, alpha, None, None, 30, epochs=2, network="transformer")
                study.records[-1] |= {"job": f"expert_{pair}_{alpha}_{seed}", "metrics": {"bleu": {pair: bleu}}}
            for t in (1, 4):
                study.job("student", seed, alpha, None, t, 20, epochs=2, network="transformer")
                study.records[-1]["metrics"] = {"bleu": {"en-de": 20.0, "en-fr": 30.0}}

    distances = {("en-de", 1): 5.0, ("en-de", 4): 4.0, ("en-fr", 1): 5.0, ("en-fr", 4): 2.0}

    def look(run, pair):
        seen = _seen(5.0 if run.role == "teacher" else distances[pair, int(run.temperature)])
        means = geometry.class_means(seen.features, seen.labels, 4)
        return Pieces(means, geometry.mean_probabilities(seen.logits, seen.labels, 4))

    asked = []
    records = list(
        translation_models.measure(read_study(study.write()), ["en-de", "en-fr"], look, lambda *of: asked.append(of))
    )

    def similar(distance):
        return 3 * distance / (distance + 10 + np.hypot(distance, 10))

    expected = np.mean([100 * (similar(5.0) - similar(low)) / similar(5.0) for low in (4.0, 2.0)])
    assert [(r["seed"], r["alpha"], r["temperature"]) for r in records] == [
        (seed, alpha, 4.0) for seed in (0, 1) for alpha in (0.0, 0.1)
    ]
    assert [r["eta"] for r in records] == pytest.approx([expected] * 4)
    assert set(records[0]["of"]) >= {"expert_en-de_0.0_0", "expert_en-fr_0.0_0"}
    assert len(asked) == 8  # every expert was to be inspected


def test_images_are_those_that_the_trainings_counted(made_up, tmp_path, monkeypatch):
    study = made_up(tmp_path / "study")
    study.job("teacher", 0, 0.0, None, None, 66, epochs=2, network="resnet20")
    asked = []
    monkeypatch.setattr(subjects, "read_images", lambda root, **flags: asked.append(flags) or sys.exit())
    for words, expected in (
        ([], {}),
        (["--dataset", "mine:birds"], {"dataset": "mine:birds"}),
        (["--split", "0.2"], {"split": 0.2}),
    ):
        study.records[-1]["command"] = ["python", "vision_reference/train.py", *words]
        for given, flags in (({}, expected), ({"split": 0.1}, expected | {"split": 0.1})):
            with pytest.raises(SystemExit):
                analyse_images(study.write(), data=tmp_path, **given)
            assert asked.pop() == flags


def test_what_cannot_be_looked_into_is_refused(made_up, tmp_path):
    study = made_up(tmp_path)
    study.job("student", 0, 0.0, None, 1, 60, epochs=2, network="resnet8")
    with pytest.raises(UserError, match="give it with --data-path"):
        analyse_images(study.write())
    study.records[0]["metrics"] = {"bleu": {"en-de": 30.0}}
    with pytest.raises(UserError, match="holds no data-bin with the study's sentences"):
        analyse_translation(study.write(data=str(tmp_path)))


def test_help_names_the_groups(capsys):
    with pytest.raises(SystemExit):
        get_args_parser().parse_args(["--help"])
    assert "classes.tsv" in capsys.readouterr().out

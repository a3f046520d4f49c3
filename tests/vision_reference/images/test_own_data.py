"""Data sets by a function of the user's own: which classes there are, with and without training images."""

import sys
import types
from pathlib import Path

import pytest

from vision_reference.errors import UserError
from vision_reference.images.own_data import own_data


@pytest.fixture
def listing(monkeypatch):
    """A module ``mine`` whose function ``birds`` lists what is given for each part, or raises it."""

    def install(**parts):
        def birds(root: Path, split: str):
            if isinstance(parts[split], Exception):
                raise parts[split]
            return [(root / f"{split}-{number}.png", name) for number, name in enumerate(parts[split])]

        module = types.ModuleType("mine")
        module.birds = birds
        monkeypatch.setitem(sys.modules, "mine", module)
        return "mine:birds"

    return install


def test_classes_are_those_of_training_also_where_only_evaluation_is_asked_for(listing, tmp_path):
    name = listing(train=["b", "a", "c"], val=["c", "a"])
    for training in (True, False):
        train, val, classes = own_data(name, tmp_path, training=training)
        assert classes == ["a", "b", "c"]
        assert list(val) == [(str(tmp_path / "val-0.png"), 2), (str(tmp_path / "val-1.png"), 0)]
        assert [label for _, label in train or []] == ([1, 0, 2] if training else [])


@pytest.mark.parametrize("absent", [[], FileNotFoundError("no such folder")])
def test_evaluation_needs_no_training_images(listing, tmp_path, absent):
    train, val, classes = own_data(listing(train=absent, val=["b", "a"]), tmp_path, training=False)
    assert (train, [label for _, label in val], classes) == (None, [1, 0], ["a", "b"])


def test_a_class_that_is_only_evaluated_is_refused(listing, tmp_path):
    with pytest.raises(UserError, match="class 'z' has validation images and no training images"):
        own_data(listing(train=["a"], val=["z"]), tmp_path, training=True)

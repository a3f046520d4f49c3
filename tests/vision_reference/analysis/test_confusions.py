"""Confusions and groups of classes on hand-made cases."""

import numpy as np
import pytest

from vision_reference.analysis import confusions
from vision_reference.errors import UserError


def test_errors_inside_groups_and_what_chance_would_give():
    groups = np.array([0, 0, 0, 1, 1])
    labels = np.array([0, 0, 1, 3, 4, 2, 2])
    found = np.array([0, 1, 3, 4, 4, 0, 4])
    # Errors: 0 as 1 (inside), 1 as 3, 3 as 4 (inside), 2 as 0 (inside), 2 as 4.
    errors = confusions.errors_in_groups(labels, found, groups)
    assert (errors.errors, errors.inside, errors.share) == (5, 3, 0.6)
    # The right classes of the errors are 0, 1, 3, 2, 2: 2, 2, 1, 2, 2 of 4 wrong classes are in their group.
    assert errors.chance == pytest.approx((2 + 2 + 1 + 2 + 2) / 5 / 4)
    assert confusions.errors_in_groups(labels, labels, groups).share is None


def test_the_most_confused_pairs_count_both_ways():
    labels = np.array([0, 1, 1, 2, 2, 2])
    found = np.array([1, 0, 1, 0, 0, 0])
    assert confusions.most_confused(labels, found, 5) == [(0, 2, 3), (0, 1, 2)]
    assert confusions.most_confused(labels, found, 1) == [(0, 2, 3)]
    assert confusions.most_confused(labels, labels, 5) == []


def block_probabilities(sizes, inside=0.1, outside=1e-3, seed=0):
    numbers = np.repeat(np.arange(len(sizes)), sizes)
    noise = np.random.default_rng(seed).uniform(0.5, 2, (len(numbers), len(numbers)))
    found = np.where(numbers[:, None] == numbers, inside, outside) * noise
    np.fill_diagonal(found, 0.7)
    return found / found.sum(1, keepdims=True), numbers


@pytest.mark.parametrize("sizes", [(5, 5, 5, 5, 5), (3, 3), (8, 2, 5)])
def test_clustering_finds_blocks_of_look_alikes_in_any_order(sizes):
    probabilities, numbers = block_probabilities(sizes)
    order = np.random.default_rng(1).permutation(len(numbers))
    found = confusions.cluster_classes(probabilities[np.ix_(order, order)], len(sizes))
    same = found[:, None] == found
    assert (same == (numbers[order][:, None] == numbers[order])).all()
    assert found[0] == 0  # numbered by first appearance
    assert set(found) == set(range(len(sizes)))


def test_the_number_of_groups_and_its_limits():
    probabilities, _ = block_probabilities((5,) * 5)
    assert confusions.cluster_classes(probabilities).max() + 1 == 5
    for count in (1, 25, 26):
        with pytest.raises(UserError, match="groups; from 2 to 24"):
            confusions.cluster_classes(probabilities, count)
    with pytest.raises(UserError, match="at least 3"):
        confusions.cluster_classes(np.eye(2))


def test_groups_are_read_by_class_name(tmp_path):
    table = tmp_path / "classes.tsv"
    table.write_text('class\tgroup\twords\nn02\tcats\t5" cat, tabby\nn01\tdogs\tdog\nn03\tcats\t\nn09\tcars\tcar\n')
    assert confusions.read_groups(table, ["n01", "n02", "n03"]).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class\tgroup\na\tx\n", "gives no group to 1 of 2 classes: b"),
        ("class\tkind\na\tx\n", "columns class, group"),
        ("", "columns class, group"),
        ("class\tgroup\na\tx\nb\n", "lacks its class or its group: b"),
        ("class\tgroup\na\tx\nb\ty\na\ty\n", "puts class a into both x and y"),
    ],
)
def test_tables_that_make_no_sense_are_refused(tmp_path, text, message):
    table = tmp_path / "groups.tsv"
    table.write_text(text)
    with pytest.raises(UserError, match=message):
        confusions.read_groups(table, ["a", "b"])


def test_a_missing_or_binary_table_is_one_line(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x81")
    for name in ("missing", "binary"):
        with pytest.raises(UserError, match="cannot read the groups") as error:
            confusions.read_groups(tmp_path / name, ["a"])
        assert "\n" not in str(error.value)

"""Which classes a network takes for one another, and whether its errors stay among similar ones."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from vision_reference.errors import UserError, some

GROUP_SIZE = 5  # classes in a group that is found by clustering, in the mean


@dataclass(frozen=True)
class GroupErrors:
    """Errors inside groups of similar classes.

    Attributes:
        errors, inside: number of errors, and of those that name another class of the right one's group.
        share: inside / errors, 0 to 1; None without errors.
        chance: what share would be inside if errors fell evenly on all wrong classes; None without errors.
    """

    errors: int
    inside: int
    share: float | None
    chance: float | None


def errors_in_groups(labels: np.ndarray, predictions: np.ndarray, groups: np.ndarray) -> GroupErrors:
    """How many errors stay within a group of similar classes.

    Args:
        labels, predictions: (N,) class numbers.
        groups: (K,) group number of each class.
    """
    wrong = labels != predictions
    right_groups, found_groups = groups[labels[wrong]], groups[predictions[wrong]]
    errors, inside = int(wrong.sum()), int((right_groups == found_groups).sum())
    if not errors:
        return GroupErrors(0, 0, None, None)
    sizes = np.bincount(groups)
    chance = float(((sizes[right_groups] - 1) / (len(groups) - 1)).mean())
    return GroupErrors(errors, inside, inside / errors, chance)


def most_confused(labels: np.ndarray, predictions: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """The ``count`` pairs of classes with the most errors between them, both ways together: (class, class, errors).

    Pairs without errors are left out; equals come in the order of their numbers.

    Args:
        labels, predictions: (N,) class numbers.
    """
    wrong = labels != predictions
    pairs = np.sort(np.stack([labels[wrong], predictions[wrong]], axis=1), axis=1)
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:count]
    return [(int(found[place, 0]), int(found[place, 1]), int(counts[place])) for place in order]


def cluster_classes(probabilities: np.ndarray, count: int | None = None) -> np.ndarray:
    """Groups of classes that the plain teacher takes for one another.

    Average linkage on ``-log`` of the mean probability that the two classes are given on each other's images, so that
    joining goes by the geometric mean of the similarities.

    Args:
        probabilities: (K, K), row c the mean probabilities on class c's images (``geometry.mean_probabilities``).
        count: number of groups; by default K / 5, rounded, at least 2.

    Returns:
        (K,) group numbers from 0, in the order of each group's first class.

    Raises:
        UserError: fewer than 3 classes, or a ``count`` that is no number of groups for them.
    """
    classes = len(probabilities)
    if classes < 3:
        raise UserError(f"{classes} classes cannot be grouped by similarity; at least 3 are needed")
    count = max(2, round(classes / GROUP_SIZE)) if count is None else count
    if not 2 <= count < classes:
        raise UserError(f"{classes} classes cannot form {count} groups; from 2 to {classes - 1} are possible")
    similarity = np.maximum((probabilities + probabilities.T) / 2, 1e-30)
    distance = -np.log(similarity)
    distance -= distance.min() - 1e-9
    np.fill_diagonal(distance, 0.0)
    found = fcluster(linkage(squareform(distance, checks=False), "average"), count, "maxclust")
    _, first, numbers = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[numbers]


def read_groups(path: Path, classes: list[str]) -> np.ndarray:
    """Groups from a file of tab-separated columns ``class`` and ``group`` (others are passed over), with a head line.

    Classes that the data do not have are passed over.

    Returns:
        (K,) group numbers from 0, in the order of each group's first class.

    Raises:
        UserError: the file cannot be read, lacks a column or a class, or names a class twice with different groups.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the groups of classes in {path} ({error}); give a table of class and group"
        ) from None
    rows = list(csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows or not {"class", "group"} <= set(rows[0]):
        raise UserError(
            f"{path} is no table of groups: its first line must name the tab-separated columns class, group"
        )
    group_of: dict[str, str] = {}
    for row in rows:
        name, group = row["class"], row["group"]
        if not name or not group:
            raise UserError(f"{path}: a line lacks its class or its group: {name or group}")
        if group_of.setdefault(name, group) != group:
            raise UserError(f"{path} puts class {name} into both {group_of[name]} and {group}; keep one")
    missing = [name for name in classes if name not in group_of]
    if missing:
        raise UserError(f"{path} gives no group to {len(missing)} of {len(classes)} classes: {some(missing, 3)}")
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(group_of[name], len(numbers)) for name in classes])

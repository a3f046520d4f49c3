"""Data sets by a function of the user's own: ``--dataset package.module:function``."""

from collections.abc import Callable, Iterable
from pathlib import Path

from vision_reference.errors import UserError
from vision_reference.images.folders import Samples
from vision_reference.user_functions import import_function


def own_data(name: str, root: Path, *, training: bool) -> tuple[Samples | None, Samples, list[str]]:
    """What a function lists: training samples (None without ``training``), validation samples, names of the classes.

    The function is called with the folder ``root`` and ``"train"`` or ``"val"`` and returns (path, class name) pairs.
    Without ``training`` it is asked for both too, where the training images are there: for the names of all classes.
    Labels are places in the sorted names of the classes, so that they do not depend on the order of the files.

    Args:
        name: ``package.module:function``, from the command line.

    Raises:
        UserError: there is no such function, it lists no image, something else than such pairs, or other classes for
            validation than for training.
    """
    function = import_function(name, "--dataset")
    val = _pairs(name, "val", function(root, "val"))
    train = _pairs(name, "train", function(root, "train")) if training else _if_there(name, function, root)
    classes = sorted({label for _, label in train or val})
    if unknown := sorted({label for _, label in val} - set(classes)):
        raise UserError(f"--dataset {name}: class '{unknown[0]}' has validation images and no training images")
    numbers = {label: number for number, label in enumerate(classes)}

    def numbered(pairs: list[tuple[str, str]]) -> Samples:
        return Samples((path, numbers[label]) for path, label in pairs)

    return numbered(train) if training else None, numbered(val), classes


def _if_there(name: str, function: Callable, root: Path) -> list[tuple[str, str]]:
    """What is listed for training: evaluation needs its classes, of which not each need have validation images.

    Nothing where a machine that only evaluates has no training images.
    """
    try:
        listed = list(function(root, "train"))
    except OSError:
        return []
    return _pairs(name, "train", listed) if listed else []


def _pairs(name: str, split: str, listed: Iterable) -> list[tuple[str, str]]:
    try:
        pairs = [(str(path), label) for path, label in listed]
    except (TypeError, ValueError):
        pairs = [("", None)]
    if not pairs or not all(isinstance(label, str) for _, label in pairs):
        what = "no image" if not pairs else "something else than (path, class name) pairs"
        raise UserError(f"--dataset {name}: the function gave {what} for '{split}'")
    return pairs

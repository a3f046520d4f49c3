"""What there is to know about a data set before anything is trained on it: counts of all files, a look at some."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from vision_reference.errors import UserError, some
from vision_reference.images import cub200
from vision_reference.images.folders import ENDINGS, Sample, check_same_classes, image_folder
from vision_reference.progress import progress

_GREY = 2  # levels that the channels of a grey picture may be apart, after JPEG's rounding
_OTHER_NAMES = ("valid", "validation", "dev")  # that other people's data have for val/


@dataclass(frozen=True)
class Layout:
    """How a folder is laid out, and what shell commands would make of it what ``train.py`` reads.

    Attributes:
        root: what ``--data-path`` is to be once ``prepare`` was run.
        train: (path, label) pairs as they lie now.
        val: the same; None where there is no validation part.
        classes: their names.
        dataset: imagefolder or cub200.
        prepare: command lines, each a list of words.
        notes: for the user.
    """

    root: Path
    train: Sequence[Sample]
    val: Sequence[Sample] | None
    classes: list[str]
    dataset: str = "imagefolder"
    prepare: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Look:
    """What some images of a data set are like.

    Attributes:
        images: how many could be read.
        unreadable: a line for each that could not.
        shorter, longer: medians of the sides in pixels.
        smallest: the smallest shorter side in pixels.
        grey: share of images without colours.
        mean, std: per channel, of pixels scaled to 0..1.
    """

    images: int
    unreadable: list[str]
    shorter: int
    longer: int
    smallest: int
    grey: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def find_layout(root: Path) -> Layout:
    """The data in ``root``: train/ with or without val/, folders of classes alone, or CUB-200-2011.

    Raises:
        UserError: it is none of these, or a mistake in it, as ``folders.image_folder``.
    """
    if not root.is_dir():
        raise UserError(f"{root} is {'a file' if root.exists() else 'not there'}; give a folder of images")
    if any((folder / cub200.LISTS[0]).is_file() for folder in (root, root / cub200.FOLDER)):
        birds = cub200.cub200(root)
        return Layout(root, birds.train, birds.test, birds.classes, dataset="cub200")
    if not (root / "train").is_dir():
        return _classes_alone(root)
    train, classes = image_folder(root / "train")
    if (root / "val").exists():
        val, val_classes = image_folder(root / "val")
        check_same_classes(classes, val_classes)
        return Layout(root, train, val, classes)
    for name in _OTHER_NAMES:
        if (root / name).is_dir():
            val, val_classes = image_folder(root / name)
            check_same_classes(classes, val_classes)
            note = f"{root / name} is taken for the validation part, which train.py wants to be called val"
            return Layout(root, train, val, classes, prepare=(("ln", "-s", name, str(root / "val")),), notes=(note,))
    notes = ("test/ is left for the very end: what is chosen by it is no test any more",) * (root / "test").is_dir()
    return Layout(root, train, None, classes, notes=notes)


def _classes_alone(root: Path) -> Layout:
    """Folders of classes without train/ above them: a folder of links gives them one."""
    if (root / "train").exists() or (root / "val").is_dir():
        have = "train, which is a file" if (root / "train").exists() else "val/, but no train/"
        raise UserError(f"{root} has {have}; give a folder with train/, one folder of images per class in it")
    if not any(path.is_dir() for path in root.iterdir()):
        loose = sum(path.suffix.lower() in ENDINGS for path in root.iterdir())
        have = f"{loose} images, but no folders" if loose else "no folders"
        raise UserError(f"{root} has {have}; sort the images into one folder per class: {root}/train/<class>/<image>")
    train, classes = image_folder(root)
    whole = root if root.name else root.resolve()
    home = whole.with_name(whole.name + "-as-train")
    note = f"{root} has no train/: a link makes {root.name} the train/ of {home}, nothing is copied"
    link = ("ln", "-sfn", str(root.resolve()), str(home / "train"))
    return Layout(home, train, None, classes, prepare=(("mkdir", "-p", str(home)), link), notes=(note,))


def class_sizes(samples: Sequence[Sample], classes: Sequence[str]) -> list[int]:
    """Images of each class, in the order of ``classes``."""
    counts = Counter(label for _, label in samples)
    return [counts[label] for label in range(len(classes))]


def spread(samples: Sequence[Sample], most: int) -> list[str]:
    """Paths of up to ``most`` images, evenly spaced over all, which are sorted by class."""
    count = min(most, len(samples))
    return [samples[number * len(samples) // count][0] for number in range(count)]


def look_at(paths: Sequence[str], threads: int) -> Look:
    """Decode some images and measure them, ``threads`` at a time.

    Raises:
        UserError: none of them can be read.
    """
    sides, greys, sums, unreadable = [], [], [], []
    with ThreadPoolExecutor(threads) as pool:
        for found in progress(pool.map(_measure, paths), "looking", total=len(paths), unit="image"):
            if isinstance(found, str):
                unreadable.append(found)
                continue
            size, grey, moments = found
            sides.append(size)
            greys.append(grey)
            sums.append(moments)
    if not sides:
        raise UserError(f"none of {len(paths)} images can be read: {some(unreadable, 1)}")
    first, second = np.mean(sums, axis=0)
    return Look(
        images=len(sides),
        unreadable=unreadable,
        shorter=int(median(min(size) for size in sides)),
        longer=int(median(max(size) for size in sides)),
        smallest=min(min(size) for size in sides),
        grey=float(np.mean(greys)),
        mean=tuple(round(float(value), 3) for value in first),
        std=tuple(round(float(value), 3) for value in np.sqrt(np.maximum(second - first**2, 1e-6))),
    )


def _measure(path: str) -> tuple[tuple[int, int], bool, np.ndarray] | str:
    """Size, whether it is grey, and (2, 3) mean and mean square of the channels; a line where it cannot be read."""
    from vision_reference.images.decoding import read_image  # needs torch

    try:
        image = read_image(path)
    except UserError as error:
        return error.line
    size = image.size
    image.thumbnail((512, 512))
    pixels = np.asarray(image)
    grey = bool((pixels.max(axis=2).astype(int) - pixels.min(axis=2) <= _GREY).mean() > 0.99)
    shares = pixels.reshape(-1, 3) / 255
    return size, grey, np.stack([shares.mean(axis=0), (shares**2).mean(axis=0)])

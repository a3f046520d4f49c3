"""Folders of images: which files they hold and of which class, with mistakes in them told in one line. No torch."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import overload

import numpy as np

from vision_reference.errors import UserError, some
from vision_reference.files import cache_file, write_atomically

Sample = tuple[str, int]
UNLABELLED = -1  # the label of an image without one
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
_LAYOUT = "--data-path needs train/ and val/, each with one folder of images per class"


class Samples(Sequence[Sample]):
    """(path, label) pairs in three arrays.

    A list of a million tuples would be copied, little by little, into each of the worker processes that are forked:
    looking at a Python object writes into its page.
    """

    def __init__(self, pairs: Iterable[Sample]) -> None:
        paths, labels = [], []
        for path, label in pairs:
            paths.append(os.fsencode(path))
            labels.append(label)
        self._bytes = np.frombuffer(b"".join(paths), np.uint8)
        self._ends = np.cumsum([len(path) for path in paths], dtype=np.int64)
        self._labels = np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._labels)

    @overload
    def __getitem__(self, number: int) -> Sample: ...
    @overload
    def __getitem__(self, number: slice) -> "Samples": ...
    def __getitem__(self, number: int | slice) -> "Sample | Samples":
        if isinstance(number, slice):
            return Samples(self[one] for one in range(*number.indices(len(self))))
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        start = self._ends[number - 1] if number else 0
        return os.fsdecode(self._bytes[start : self._ends[number]].tobytes()), int(self._labels[number])

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(tuple.__eq__, self, other))


def image_folder(root: Path, *, cache: bool = False) -> tuple[Samples, list[str]]:
    """Samples and classes of a folder in ImageFolder layout: one subfolder of images per class, in torchvision's order.

    A symbolic link to a folder is followed where it leads out of ``root``, and once; one that leads back into or above
    ``root`` is not: what is there has its place and class already.

    Args:
        root: the folder.
        cache: keep the list between runs; it is used as long as no folder in it has changed.

    Raises:
        UserError: the folder is missing or cannot be read, holds no class, a class holds no image, or two classes hold
            the same folder.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; {_LAYOUT}")
    try:
        if not root.is_dir():
            raise UserError(f"no folder {root}; {_LAYOUT}")
        with os.scandir(root) as entries:
            folders = sorted(entry.name for entry in entries if _is_folder(entry))
        if not folders:
            raise UserError(f"{root} holds no class folder; expected {root}/<class>/<image>")
        index = cache_file("image_folders", [str(root.resolve()), folders])
        if cache and (listing := _read_listing(index)) is not None:
            return Samples((str(root / path), label) for path, label in listing), folders
        scan = _Scan(root)
        samples = Samples(scan.samples(folders))
    except OSError as error:
        raise UserError(f"cannot read {error.filename or root} ({error.strerror})") from None
    if cache:
        listing = [(os.path.relpath(path, root), label) for path, label in samples]
        text = json.dumps({"folders": scan.modified, "images": listing})
        index.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(index, text.encode())
    return samples, folders


def train_and_val(
    root: Path, split: float | None, training: bool, *, cache: bool = False
) -> tuple[Sequence[Sample] | None, Sequence[Sample], list[str]]:
    """Of a folder in ImageFolder layout: training samples (None if not ``training``), evaluation samples, classes.

    Args:
        split: the share of train/ that is for evaluation, where there is no val/.
        cache: see ``image_folder``.

    Raises:
        UserError: as ``image_folder``; the parts have other classes, or ``split`` does not go with what is there.
    """
    has_val = (root / "val").exists()
    if split:
        if has_val:
            raise UserError(f"--split {split:g} was given, but {root / 'val'} exists; drop --split or move that folder")
        everything, classes = image_folder(root / "train", cache=cache)
        rest, part = split_off(everything, classes, split, root / "train")
        return rest if training else None, part, classes
    if not has_val and (root / "train").is_dir():
        raise UserError(f"no folder {root / 'val'}; give --split 0.1 to evaluate on a tenth of each class of train/")
    val, classes = image_folder(root / "val", cache=cache)
    if not training:
        return None, val, classes
    train, train_classes = image_folder(root / "train", cache=cache)
    check_same_classes(train_classes, classes)
    return train, val, classes


def unlabelled_images(root: Path) -> Samples:
    """All images in and below a folder, without labels: folder by folder, sorted. Links are followed as in classes.

    Raises:
        UserError: the folder is missing, cannot be read, or holds no image.
    """
    if not root.is_dir():
        raise UserError(f"--unlabelled {root} is {'a file' if root.exists() else 'not there'}; give a folder of images")
    try:
        paths = _Scan(root).everything()
    except OSError as error:
        raise UserError(f"cannot read {error.filename or root} ({error.strerror})") from None
    if not paths:
        raise UserError(f"--unlabelled {root} holds no images ({' '.join(ENDINGS)}), in subfolders neither")
    return Samples((path, UNLABELLED) for path in paths)


def check_apart(unlabelled: Iterable[Sample], *labelled: Iterable[Sample]) -> None:
    """No unlabelled image is a training or validation image too, or occurs twice: by its file, whatever it is called.

    Raises:
        UserError: names both paths.
    """
    known: dict[tuple[int, int], str] = {}
    try:
        for path, _ in chain(*labelled):
            status = os.stat(path)
            known.setdefault((status.st_dev, status.st_ino), path)
        for path, _ in unlabelled:
            status = os.stat(path)
            if other := known.get((status.st_dev, status.st_ino)):
                raise UserError(f"--unlabelled: {path} and {other} are the same file; leave it out of one of the two")
            known[status.st_dev, status.st_ino] = path
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror})") from None


class _Scan:
    """One walk through a folder, all of it or class by class, which remembers where it has been."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = os.path.realpath(root)
        self.been: dict[tuple[int, int], str] = {}  # class by (device, inode) of a folder
        self.modified: dict[str, int] = {}  # when each folder was (ns), as it stood before it was read

    def samples(self, classes: Sequence[str]) -> Iterator[Sample]:
        empty = []
        for label, name in enumerate(classes):
            paths = self._images(name)
            if not paths:
                empty.append(name)
            yield from ((path, label) for path in paths)
        if empty:
            raise UserError(f"{self.root} has no images in the folder of {some(empty)}; fill or remove it")

    def everything(self) -> list[str]:
        self._enters(self.home, self.home, False)
        return self._below(str(self.root), self.home)

    def _images(self, name: str) -> list[str]:
        top = os.path.join(self.root, name)
        if not self._enters(top, name, os.path.islink(top)):
            raise UserError(f"{top} is a link back to {os.path.realpath(top)}, not a class of its own; remove the link")
        return self._below(top, name)

    def _below(self, top: str, name: str) -> list[str]:
        """Images in and below the folder ``top``, which is of the class ``name``."""
        waiting, found = [top], []
        while waiting:
            folder = waiting.pop()
            self.modified[os.path.abspath(folder)] = os.stat(folder).st_mtime_ns
            names = []
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _is_folder(entry):
                        if self._enters(entry.path, name, entry.is_symlink()):
                            waiting.append(entry.path)
                    elif entry.name.lower().endswith(ENDINGS):
                        names.append(entry.name)
            found.append((folder, sorted(names)))
        return [os.path.join(folder, file) for folder, names in sorted(found) for file in names]

    def _enters(self, folder: str, name: str, is_link: bool) -> bool:
        """Whether ``folder`` is one to go into, for the class ``name``."""
        if is_link and os.path.commonpath([target := os.path.realpath(folder), self.home]) in (target, self.home):
            return False
        status = os.stat(folder)
        known = self.been.setdefault((status.st_dev, status.st_ino), "")
        if known and known != name:
            raise UserError(f"{folder} is a folder that class {known} holds too; its images cannot be of both classes")
        self.been[status.st_dev, status.st_ino] = name
        return not known


def split_off(
    samples: Sequence[Sample], classes: Sequence[str], share: float, root: Path
) -> tuple[list[Sample], list[Sample]]:
    """The rest, and a share of each class that the names of its files decide on: the same on any machine, in any run.

    Args:
        samples: (path, label) pairs.
        classes: names for messages.
        share: of each class, rounded, but at least one image.
        root: folder of the samples; their paths count from there.

    Raises:
        UserError: a class would be left without images.
    """
    by_class: dict[int, list[tuple[bytes, str]]] = {}
    for path, label in samples:
        name = os.fsencode(os.path.relpath(path, root))
        by_class.setdefault(label, []).append((hashlib.sha256(name).digest(), path))
    chosen: set[str] = set()
    for label, images in by_class.items():
        count = max(1, round(share * len(images)))
        if count >= len(images):
            raise UserError(f"class {classes[label]} has {len(images)} images: too few to split {share:g} off")
        chosen |= {path for _, path in sorted(images)[:count]}
    return [one for one in samples if one[0] not in chosen], [one for one in samples if one[0] in chosen]


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _read_listing(index: Path) -> list[tuple[str, int]] | None:
    """A kept list; None where there is none, it is not as it was written, or one of its folders has changed.

    A folder's time of modification changes whenever a file is added to or removed from it.
    """
    try:
        kept = json.loads(index.read_bytes())
        if any(os.stat(folder).st_mtime_ns != then for folder, then in kept["folders"].items()):
            return None
        return [(str(path), int(label)) for path, label in kept["images"]]
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None


def check_same_classes(train: list[str], val: list[str]) -> None:
    """Labels are positions in the sorted class names, so both splits must have the same ones.

    Raises:
        UserError: they differ; names the differing classes.
    """
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    parts = [f"only in train/: {some(only_train)}"] * bool(only_train)
    parts += [f"only in val/: {some(only_val)}"] * bool(only_val)
    if parts:
        raise UserError(f"train/ and val/ have different classes ({'; '.join(parts)}); labels would not match")

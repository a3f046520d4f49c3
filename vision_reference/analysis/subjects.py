"""The networks under analysis and the images they are shown: from names on a command line to features."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vision_reference.analysis import features
from vision_reference.analysis.features import Outputs
from vision_reference.errors import UserError
from vision_reference.files import cache_file, file_digest
from vision_reference.images.batch import Batch
from vision_reference.images.cub200 import cub200
from vision_reference.images.folders import Sample, train_and_val
from vision_reference.images.own_data import own_data
from vision_reference.images.pipelines import Normalize, evaluation_pipeline
from vision_reference.images.samplers import EvalBatchSampler
from vision_reference.images.torch_loader import ImageDataset, TorchvisionLoader
from vision_reference.machine import choose_device, keep_freed_memory, move_network, usable_workers
from vision_reference.networks import by_name, heads
from vision_reference.networks.description import Description

_IMAGENET = 1000


@dataclass(frozen=True)
class Pixels:
    """How images are shown: shorter side to ``resize``, centre ``crop``, then ``(pixel / 255 - mean) / std``."""

    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Images:
    """A data set as lists of files.

    Attributes:
        root: folder they lie in.
        train: (path, label) pairs, none where only the validation part was asked for.
        val: the same.
        classes: folder names; labels index them.
        names: what to call the classes in pictures and text (ImageNet's words for its wnids).
    """

    root: Path
    train: Sequence[Sample]
    val: Sequence[Sample]
    classes: list[str]
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Subject:
    """A trained network and what is known of it.

    Attributes:
        name: what the user calls it.
        source: where it came from: a file or a name.
        arch: name of its architecture.
        network: in evaluation mode, on ``device``.
        device: where it computes.
        pixels: how it wants its images.
        numbers: (classes of the data,) the network's own number of each class of the data.
        preset: name of the preset it was trained with; None where its file does not say.
        recorded: the command line it was trained with, as far as its file says.
        digest: of its weights' file, or its name.
        folder: where what is collected of it is kept.
    """

    name: str
    source: str
    arch: str
    network: nn.Module
    device: torch.device
    pixels: Pixels
    numbers: np.ndarray
    preset: str | None
    recorded: dict
    digest: str
    folder: Path


def read_images(root: Path, *, dataset: str = "imagefolder", split: float | None = None, train: bool = True) -> Images:
    """The data set ``dataset`` in the folder ``root``.

    Args:
        dataset, split: as ``train.py`` has ``--dataset`` and ``--split``.
        train: False: there need be no training images.

    Raises:
        UserError: it is missing or makes no sense.
    """
    if split and dataset != "imagefolder":
        raise UserError(f"--split is for --dataset imagefolder; {dataset} has a split of its own")
    if dataset == "cub200":
        data = cub200(root, download=False)
        return Images(root, data.train if train else [], data.test, data.classes, data.classes)
    training: Sequence[Sample] | None
    val: Sequence[Sample]
    if dataset == "imagefolder":
        training, val, classes = train_and_val(root, split, train)
    else:
        training, val, classes = own_data(dataset, root, training=train)
    return Images(root, training or [], val, classes, _words(classes))


def load_subject(
    name: str,
    source: str,
    images: Images,
    *,
    model: str | None = None,
    device: str = "cuda",
    preset: str | None = None,
    resize: int | None = None,
    crop: int | None = None,
    interpolation: str | None = None,
) -> Subject:
    """The network behind ``source``.

    Args:
        name: what to call it.
        source: a checkpoint of any format that ``checkpoints`` reads, or a name of weights, see ``pretrained``.
        images: what it will be shown; its classes are looked up among the network's.
        model: architecture, for files that do not say theirs.
        device: cpu, cuda or cuda:N; the CPU where there is no GPU.
        preset, resize, crop, interpolation: how images are shown; None: as the network was trained.

    Raises:
        UserError: there is no such network, it has other classes than the data, or it cannot take images of that size.
    """
    network, described = by_name.load_network(source, model)
    pixels = _shown(described, preset, resize, crop, interpolation)
    heads.check_input_sizes("network", f"{name} ({described.arch})", network, {pixels.crop})
    place = choose_device(device, None)
    if place.type == "cpu":
        keep_freed_memory()
    numbers = _numbers_of(images, heads.class_count(network), described, f"{name} ({source})")
    move_network(network.eval().requires_grad_(False), place, torch.channels_last)
    path = Path(source)
    is_file = path.is_file()
    return Subject(
        name=name,
        source=source,
        arch=str(described.arch),
        network=network,
        device=place,
        pixels=pixels,
        numbers=numbers,
        preset=None if "preset" in described.assumed else described.preset,
        recorded=dict(described.args),
        digest=file_digest(path) if is_file else source,
        folder=path.with_name(path.name + ".features") if is_file else cache_file("features", source).parent,
    )


def outputs_of(
    subject: Subject, samples: Sequence[Sample], images: Images, *, batch_size: int, workers: int
) -> Outputs:
    """What the network makes of ``samples``, from an earlier run where nothing has changed since.

    ``labels`` are the data's class numbers; ``subject.numbers`` leads to the network's.

    Raises:
        UserError: an image cannot be read, or as ``features.collect``.
    """
    listing = [
        (str(Path(path).relative_to(images.root)), label, (stat := Path(path).stat()).st_size, stat.st_mtime_ns)
        for path, label in samples
    ]
    key = features.content_key(subject.digest, subject.arch, vars(subject.pixels), listing)
    path = subject.folder / f"{subject.digest[:12].replace('/', '_')}-{key}.npz"
    if (found := features.kept(path)) and len(found.labels) == len(samples):
        return found
    pipeline = evaluation_pipeline(
        resize_size=subject.pixels.resize,
        crop_size=subject.pixels.crop,
        interpolation=subject.pixels.interpolation,
    )
    loader = TorchvisionLoader(
        ImageDataset(samples, pipeline),
        EvalBatchSampler(len(samples), batch_size),
        workers=usable_workers(workers),
        normalize=Normalize(subject.pixels.mean, subject.pixels.std, subject.device),
        device=subject.device,
        memory_format=torch.channels_last,
    )
    outputs = features.collect(subject.network, _Epoch(loader), subject.name)
    if features.keep(path, outputs):
        for other in subject.folder.glob("*.npz"):  # of a checkpoint that has been overwritten since
            if Path(subject.source).is_file() and not other.name.startswith(subject.digest[:12]):
                other.unlink(missing_ok=True)
    return outputs


class _Epoch:
    """The batches of a loader, as many as ``len()`` says."""

    def __init__(self, loader: TorchvisionLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        return self.loader.epoch(0)


def spread_out(samples: Iterable[Sample], label: int, count: int) -> list[Sample]:
    """``count`` samples of class ``label``, evenly spaced over all it has; all where there are fewer."""
    own = [sample for sample in samples if sample[1] == label]
    if len(own) <= count:
        return own
    return [own[number] for number in np.linspace(0, len(own) - 1, count).round().astype(int)]


def all_names(subject: Subject, images: Images) -> list[str]:
    """(K,) names of all classes that the network tells apart; those that the data lack, by number."""
    count = heads.class_count(subject.network)
    if len(images.classes) < count == _IMAGENET and (synsets := _imagenet_synsets()):
        return _words(synsets)
    names = [f"class {number}" for number in range(count)]
    for name, number in zip(images.names, subject.numbers, strict=True):
        names[number] = name
    return names


def class_number(text: str, images: Images) -> int:
    """The class called ``text``: by folder name, else by the name in pictures, else by number.

    Raises:
        UserError: there is none; names the nearest.
    """
    for names in (images.classes, images.names):
        if text in names:
            return names.index(text)
    if text.isdecimal() and int(text) < len(images.classes):
        return int(text)
    known = list(dict.fromkeys([*images.names, *images.classes]))
    near = difflib.get_close_matches(text, known, n=4, cutoff=0.4) or known[:4]
    raise UserError(
        f"no class '{text}' in {images.root}; nearest: {', '.join(near)}; "
        f"or a number from 0 to {len(images.classes) - 1}"
    )


def _shown(
    described: Description,
    preset: str | None,
    resize: int | None,
    crop: int | None,
    interpolation: str | None,
) -> Pixels:
    """What the file says, or ``preset`` in its place, with single settings of the user's above either."""
    if preset:
        described = Description(described.source, preset=preset, interpolation=described.interpolation)
    complete = described.completed()
    resize, crop = resize or complete.val_resize_size, crop or complete.val_crop_size
    if crop > resize:
        raise UserError(
            f"--val-crop-size {crop} is larger than the image it is cut from, --val-resize-size {resize}: a black "
            "frame would be left; give both sizes"
        )
    return Pixels(
        resize,
        crop,
        interpolation or complete.interpolation,
        complete.mean,
        complete.std,
    )


def _numbers_of(images: Images, count: int, described: Description, who: str) -> np.ndarray:
    """The network's number of each class of the data.

    Raises:
        UserError: the network was trained on other classes.
    """
    synsets = _imagenet_synsets() if count == _IMAGENET else []
    for known in (list(described.classes or ()), synsets):
        if set(images.classes) <= set(known):
            return np.array([known.index(name) for name in images.classes])
    if count != len(images.classes):
        raise UserError(
            f"{who} tells {count} classes apart, {images.root} has {len(images.classes)}; "
            "give the data it was trained on"
        )
    if described.classes and described.args:  # a checkpoint of ours: its names are those of folders
        other = next(name for name in images.classes if name not in described.classes)
        raise UserError(
            f"{who} was trained on other classes ({', '.join(described.classes[:3])}, ...): it does not know '{other}' "
            f"of {images.root}; give the data it was trained on"
        )
    return np.arange(count)


def _imagenet_synsets() -> list[str]:
    """The wnids of ImageNet-1K in the order of its class numbers, from timm; empty where it is not installed."""
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        return []
    return ImageNetInfo().label_names()


def _words(classes: list[str]) -> list[str]:
    """ImageNet's first word for each class that is one of its wnids; the others, and doubles, as they are."""
    if not all(name[:1] == "n" and name[1:].isdecimal() and len(name) == 9 for name in classes):
        return classes
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        return classes
    info = ImageNetInfo()
    known = set(info.label_names())
    words = [info.label_name_to_description(name).split(",")[0] if name in known else name for name in classes]
    return [word if words.count(word) == 1 else f"{word} ({name})" for word, name in zip(words, classes, strict=True)]

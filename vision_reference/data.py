"""From the data flags to loaders: which files, seen how, through which loader. Assembly only.

``Source``, ``Look`` and ``Reading`` each take their part of a command line; nothing else here knows of flags.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from vision_reference.errors import UserError, some
from vision_reference.images.batch import Loader
from vision_reference.images.cub200 import cub200
from vision_reference.images.dali_loader import DaliLoader, DaliViewLoader
from vision_reference.images.dali_views import EvaluationView, StoredView, TrainingView
from vision_reference.images.decoding import read_image, read_pixels
from vision_reference.images.folders import Sample, Samples, check_apart, train_and_val, unlabelled_images
from vision_reference.images.own_data import own_data
from vision_reference.images.pipelines import Normalize, evaluation_pipeline, training_pipeline
from vision_reference.images.presets import Preset, chosen
from vision_reference.images.samplers import BatchSampler, EvalBatchSampler, TrainBatchSampler
from vision_reference.images.torch_loader import ImageDataset, TorchvisionLoader, ViewDataset
from vision_reference.images.unreadable_files import readable_samples, report
from vision_reference.loaders import MixingLoader, SoftLabelLoader, TeacherLoader
from vision_reference.machine import Rank, usable_workers
from vision_reference.soft_labels.stored_teachers import SoftLabels

# What a run trains on: plain batches, or such with a teacher's logits.
TrainLoader = Loader | SoftLabelLoader | TeacherLoader


@dataclass(frozen=True)
class Data:
    """What there is to train and to evaluate on.

    Attributes:
        train: (path, label) pairs, those without a label last; none where only evaluation was asked for.
        val: the same for evaluation.
        classes: their names; labels index them.
        unlabelled: how many of the training images have no label.
    """

    train: Samples
    val: Samples
    classes: list[str]
    unlabelled: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """Number of ``training``, ``unlabelled`` (part of these) and ``validation`` images."""
        return {"training": len(self.train), "unlabelled": self.unlabelled, "validation": len(self.val)}


@dataclass(frozen=True)
class Source:
    """Where samples come from.

    Attributes:
        root, dataset, unlabelled, split, download, cache, skip_unreadable: as ``--data-path``, ``--dataset`` and so on
            have them.
        workers: threads that look for broken files.
        report_to: folder for the list of those that are skipped.
    """

    root: Path
    dataset: str
    unlabelled: Path | None
    split: float | None
    download: bool
    cache: bool
    skip_unreadable: bool
    workers: int
    report_to: Path

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Source":
        """What the flags ask for."""
        return cls(
            root=Path(args.data_path),
            dataset=args.dataset,
            unlabelled=Path(args.unlabelled) if args.unlabelled else None,
            split=args.split,
            download=args.download,
            cache=args.cache_dataset,
            skip_unreadable=args.skip_unreadable,
            workers=args.workers,
            report_to=Path(args.output_dir),
        )


@dataclass(frozen=True)
class Reading:
    """How files become batches on the device.

    Attributes:
        loader: torchvision or dali.
        workers: processes (torchvision) or threads (DALI).
        device, memory_format: of the batches.
        decode_on: cpu or gpu; DALI only.
    """

    loader: str
    workers: int
    device: torch.device
    memory_format: torch.memory_format
    decode_on: str

    @classmethod
    def of(cls, args: argparse.Namespace, device: torch.device, memory_format: torch.memory_format) -> "Reading":
        """What the flags ask for."""
        decode_on = args.dali_device or ("gpu" if device.type == "cuda" else "cpu")
        return cls(args.loader, usable_workers(args.workers), device, memory_format, decode_on)


@dataclass(frozen=True)
class Look:
    """How images are shown: what, with a sample's seed, decides on its pixels.

    Attributes:
        preset: normalization, and the augmentation in training, with the colours of --mean and --std.
        train_crop_size, val_resize_size, val_crop_size: sides in pixels.
        interpolation: one of ``presets.INTERPOLATIONS``.
        backend, use_v2, auto_augment, ra_magnitude, augmix_severity, random_erase: see ``pipelines.training_pipeline``;
            nothing of these is done through DALI.
    """

    preset: Preset
    train_crop_size: int
    val_resize_size: int
    val_crop_size: int
    interpolation: str
    backend: str
    use_v2: bool
    auto_augment: str | None
    ra_magnitude: int
    augmix_severity: int
    random_erase: float

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Look":
        """What the flags ask for."""
        preset = chosen(args.preset, args.mean, args.std)
        return cls(
            preset=preset,
            train_crop_size=args.train_crop_size,
            # a command that only shows training images has no flags for the others
            val_resize_size=getattr(args, "val_resize_size", preset.val_resize_size),
            val_crop_size=getattr(args, "val_crop_size", preset.val_crop_size),
            interpolation=args.interpolation,
            backend=args.backend,
            use_v2=args.use_v2,
            auto_augment=args.auto_augment,
            ra_magnitude=args.ra_magnitude,
            augmix_severity=args.augmix_severity,
            random_erase=args.random_erase,
        )


def build_loaders(
    data: Data,
    look: Look,
    reading: Reading,
    rank: Rank,
    *,
    batch_size: int,
    seed: int,
    repetitions: int = 1,
    soft_labels: SoftLabels | None = None,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
) -> tuple[TrainLoader, Loader]:
    """The training loader and the evaluation loader.

    Args:
        batch_size: images per process and step.
        seed: of the run: order and augmentation follow from it.
        repetitions: see ``TrainBatchSampler``.
        soft_labels: stored teachers, whose views are shown.
        mixup_alpha, cutmix_alpha: see ``MixingLoader``; 0 for neither.

    Raises:
        UserError: more processes than images, or what the chosen loader cannot do.
    """
    batches = TrainBatchSampler(
        len(data.train),
        batch_size,
        seed=seed,
        rank=rank.rank,
        world_size=rank.world_size,
        repetitions=repetitions,
        view_seeds=soft_labels.views["seed"] if soft_labels else None,
    )
    images = train_loader(data.train, batches, look, reading, stored_views=soft_labels.views if soft_labels else None)
    train: TrainLoader = images
    if soft_labels:
        train = SoftLabelLoader(images, soft_labels)
    elif mixup_alpha or cutmix_alpha:
        train = MixingLoader(
            images,
            num_classes=len(data.classes),
            mixup_alpha=mixup_alpha,
            cutmix_alpha=cutmix_alpha,
            seed=seed,
            rank=rank.rank,
        )
    without = f" ({data.unlabelled} of them without a label)" if data.unlabelled else ""
    rank.say(f"{len(data.train)} training{without} and {len(data.val)} validation images, {len(data.classes)} classes")
    return train, build_val_loader(data, look, reading, rank, batch_size)


def build_val_loader(data: Data, look: Look, reading: Reading, rank: Rank, batch_size: int) -> Loader:
    """The evaluation loader alone: this process's share of all images, each once."""
    batches = EvalBatchSampler(len(data.val), batch_size, rank=rank.rank, world_size=rank.world_size)
    return val_loader(data.val, batches, look, reading)


def train_loader(
    samples: Sequence[Sample],
    batches: BatchSampler,
    look: Look,
    reading: Reading,
    *,
    stored_views: np.ndarray | None = None,
) -> TorchvisionLoader | DaliLoader:
    """Training images as ``look`` shows them.

    Args:
        stored_views: (M, N) records of a store, whose crops and flips DALI takes; torchvision draws the same from the
            seeds that ``batches`` gives.
    """
    if reading.loader == "dali":
        return _dali_training(DaliLoader, samples, batches, look, reading, stored_views)
    return _torchvision(ImageDataset(samples, *_pipeline_and_reader(look)), batches, look.preset, reading)


def view_loader(
    samples: Sequence[Sample], batches: BatchSampler, look: Look, reading: Reading
) -> TorchvisionLoader | DaliLoader:
    """As ``train_loader``, with each image's crop and flip as its target: (B, 5), see ``pipelines.Geometry``."""
    if reading.loader == "dali":
        return _dali_training(DaliViewLoader, samples, batches, look, reading, None)
    dataset = ViewDataset(samples, *_pipeline_and_reader(look), preset=look.preset)
    return _torchvision(dataset, batches, look.preset, reading)


def val_loader(
    samples: Sequence[Sample], batches: BatchSampler, look: Look, reading: Reading
) -> TorchvisionLoader | DaliLoader:
    """Images as ``look`` evaluates them."""
    if reading.loader == "dali":
        view = EvaluationView(look.val_resize_size, look.val_crop_size, look.interpolation)
        return _dali(DaliLoader, samples, batches, view, look.preset, reading)
    pipeline = evaluation_pipeline(
        resize_size=look.val_resize_size,
        crop_size=look.val_crop_size,
        interpolation=look.interpolation,
        backend=look.backend,
        use_v2=look.use_v2,
    )
    return _torchvision(ImageDataset(samples, pipeline, _reader(look)), batches, look.preset, reading)


def list_samples(source: Source, rank: Rank, *, training: bool = True) -> Data:
    """The samples of ``source``, without broken files where these are to be skipped.

    Args:
        training: False: for evaluation only, there need be no training images.

    Raises:
        UserError: data that is missing or makes no sense, or a class that is left without images.
    """
    root = source.root
    train: Sequence[Sample] | None
    val: Sequence[Sample]
    if source.dataset == "cub200":
        birds = cub200(root, download=source.download)
        train, val, classes = birds.train if training else None, birds.test, birds.classes
    elif source.dataset != "imagefolder":
        train, val, classes = own_data(source.dataset, root, training=training)
    else:
        if root.exists() and not root.is_dir():
            raise UserError(f"--data-path {root} is a file; it must be a folder with train/ and val/")
        train, val, classes = train_and_val(root, source.split, training, cache=source.cache)

    if len(classes) < 2:
        raise UserError(f"--data-path {root} has images of one class ({classes[0]}): there is nothing to tell apart")

    def kept(name: str, samples: Sequence[Sample]) -> Samples:
        if not source.skip_unreadable:
            return samples if isinstance(samples, Samples) else Samples(samples)
        good = readable_samples(
            samples,
            threads=usable_workers(source.workers),
            rank=rank,
            show_progress=rank.is_main and sys.stderr.isatty(),
        )
        if rank.is_main and (note := report(name, samples, good, source.report_to)):
            rank.say(note)
        if not good and name == "unlabelled":
            raise UserError(f"none of the images in --unlabelled {source.unlabelled} can be read")
        had, have = ({label for _, label in some_samples} for some_samples in (samples, good))
        if lost := sorted(had - have):
            names = some([classes[label] for label in lost])
            raise UserError(f"none of the {name} images of {names} can be read; replace them, or remove the class")
        return good

    val_samples = kept("validation", val)
    if train is None:
        return Data(Samples([]), val_samples, classes)
    train_samples = kept("training", train)
    if source.unlabelled is None:
        return Data(train_samples, val_samples, classes)
    unlabelled = kept("unlabelled", unlabelled_images(source.unlabelled))
    check_apart(unlabelled, train_samples, val_samples)
    return Data(Samples(chain(train_samples, unlabelled)), val_samples, classes, len(unlabelled))


def _pipeline_and_reader(look: Look) -> tuple[Callable, Callable]:
    pipeline = training_pipeline(
        look.preset,
        crop_size=look.train_crop_size,
        interpolation=look.interpolation,
        backend=look.backend,
        use_v2=look.use_v2,
        auto_augment=look.auto_augment,
        ra_magnitude=look.ra_magnitude,
        augmix_severity=look.augmix_severity,
        random_erase=look.random_erase,
    )
    return pipeline, _reader(look)


def _reader(look: Look) -> Callable:
    return read_pixels if look.backend == "tensor" else read_image


def _torchvision(dataset: ImageDataset, batches: BatchSampler, preset: Preset, reading: Reading) -> TorchvisionLoader:
    return TorchvisionLoader(
        dataset,
        batches,
        workers=reading.workers,
        normalize=Normalize(preset.mean, preset.std, reading.device),
        device=reading.device,
        memory_format=reading.memory_format,
    )


def _dali_training(
    kind: type[DaliLoader],
    samples: Sequence[Sample],
    batches: BatchSampler,
    look: Look,
    reading: Reading,
    stored_views: np.ndarray | None,
) -> DaliLoader:
    shown = look.preset, look.train_crop_size, look.interpolation
    view = TrainingView(*shown) if stored_views is None else StoredView(*shown, stored_views)
    return _dali(kind, samples, batches, view, look.preset, reading)


def _dali(
    kind: type[DaliLoader],
    samples: Sequence[Sample],
    batches: BatchSampler,
    view: TrainingView | EvaluationView,
    colours: Preset,
    reading: Reading,
) -> DaliLoader:
    return kind(
        samples,
        batches,
        view,
        threads=reading.workers,
        mean=colours.mean,
        std=colours.std,
        device=reading.device,
        memory_format=reading.memory_format,
        decode_on=reading.decode_on,
    )

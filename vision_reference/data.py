"""From the data flags to loaders: which files, seen how, through which loader."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from vision_reference.errors import UserError
from vision_reference.images.cub200 import cub200
from vision_reference.images.dali_loader import DaliLoader
from vision_reference.images.dali_views import EvaluationView, StoredView, TrainingView
from vision_reference.images.folders import (
    ImageDataset,
    Sample,
    check_same_classes,
    image_folder,
    read_image,
    read_pixels,
)
from vision_reference.images.pipelines import Normalize, evaluation_pipeline, training_pipeline
from vision_reference.images.presets import PRESETS
from vision_reference.images.samplers import EvalBatchSampler, TrainBatchSampler
from vision_reference.images.unreadable_files import readable_samples, report
from vision_reference.loaders import MixingLoader, SoftLabelLoader, TeacherLoader, TorchvisionLoader
from vision_reference.machine import Rank, usable_workers
from vision_reference.soft_labels.store import SoftLabels, open_soft_labels
from vision_reference.soft_labels.views import DaliViewLoader, KeyBatchSampler, ViewBatchSampler, ViewDataset

Loader = TorchvisionLoader | DaliLoader | MixingLoader | SoftLabelLoader | TeacherLoader


def build_loaders(
    args: argparse.Namespace, rank: Rank, device: torch.device, memory_format: torch.memory_format
) -> tuple[Loader | None, Loader, list[str]]:
    """The training loader (None with ``--test-only``), the evaluation loader, and the names of the classes.

    Raises:
        UserError: data that is missing or makes no sense, flags that the chosen loader cannot serve, or stored soft
            labels that do not belong to the data and the flags.
    """
    train_samples, val_samples, classes = list_samples(args, rank)
    stored = None
    if args.soft_labels and train_samples is not None:
        stored = open_soft_labels(args, train_samples, len(classes), rank)
    if args.loader == "dali":
        make_train, make_val = _dali(args, device, memory_format, stored)
    else:
        make_train, make_val = _torchvision(args, classes, device, memory_format)
    place = {"rank": rank.rank, "world_size": rank.world_size}
    val_loader = make_val(val_samples, EvalBatchSampler(len(val_samples), args.batch_size, **place))
    if train_samples is None:
        return None, val_loader, classes

    repetitions = args.ra_reps if args.ra_sampler else 1
    seeds = stored.views["seed"] if stored else None
    order = {"seed": args.seed, "repetitions": repetitions, "view_seeds": seeds}
    batches = TrainBatchSampler(len(train_samples), args.batch_size, **order, **place)
    train_loader = make_train(train_samples, batches)
    if stored:
        train_loader = SoftLabelLoader(train_loader, stored)
    if args.mixup_alpha or args.cutmix_alpha:
        train_loader = MixingLoader(
            train_loader,
            num_classes=len(classes),
            mixup_alpha=args.mixup_alpha,
            cutmix_alpha=args.cutmix_alpha,
            seed=args.seed,
            rank=rank.rank,
        )
    rank.say(f"{len(train_samples)} training and {len(val_samples)} validation images, {len(classes)} classes")
    return train_loader, val_loader, classes


def build_view_loader(
    args: argparse.Namespace,
    samples: list[Sample],
    batches: ViewBatchSampler | KeyBatchSampler,
    device: torch.device,
    memory_format: torch.memory_format,
) -> TorchvisionLoader | DaliLoader:
    """The training images of ``batches`` as ``build_loaders`` would show them, with crop and flip in place of labels.

    Iterating gives images and geometry (B, 5), see ``views.Geometry``.
    """
    if args.loader == "dali":
        return _dali(args, device, memory_format, None, DaliViewLoader)[0](samples, batches)
    dataset = partial(ViewDataset, preset=PRESETS[args.preset])
    return _torchvision(args, [], device, memory_format, dataset)[0](samples, batches)


def list_samples(args: argparse.Namespace, rank: Rank) -> tuple[list[Sample] | None, list[Sample], list[str]]:
    """Training samples (None with ``--test-only``), evaluation samples and class names of ``--dataset``.

    Raises:
        UserError: data that is missing or makes no sense.
    """
    root = Path(args.data_path)
    if args.dataset == "cub200":
        data = cub200(root, download=args.download)
        train, val, classes = data.train, data.test, data.classes
    else:
        val, classes = image_folder(root / "val", cache=args.cache_dataset)
        if not args.test_only:
            train, train_classes = image_folder(root / "train", cache=args.cache_dataset)
            check_same_classes(train_classes, classes)
    parts = {"validation": val} if args.test_only else {"training": train, "validation": val}
    if args.skip_unreadable:
        parts = {name: _skip_unreadable(name, samples, args, rank) for name, samples in parts.items()}
    return parts.get("training"), parts["validation"], classes


def _skip_unreadable(name: str, samples: list[Sample], args: argparse.Namespace, rank: Rank) -> list[Sample]:
    kept = readable_samples(samples, threads=usable_workers(args.workers), show_progress=rank.is_main)
    if not kept:
        raise UserError(f"none of the {len(samples)} {name} images in {args.data_path} can be read")
    if rank.is_main and (note := report(name, samples, kept, Path(args.output_dir))):
        rank.say(note)
    return kept


def _torchvision(
    args: argparse.Namespace,
    classes: list[str],
    device: torch.device,
    memory_format: torch.memory_format,
    dataset: Callable = ImageDataset,
) -> tuple[Callable, Callable]:
    """Makers of the training and the evaluation loader from (samples, batches)."""
    preset = PRESETS[args.preset]
    style = {"interpolation": args.interpolation, "backend": args.backend, "use_v2": args.use_v2}

    def loader(samples: list[Sample], batches: TrainBatchSampler | EvalBatchSampler, pipeline: Callable):
        return TorchvisionLoader(
            dataset(samples, classes, pipeline, read_pixels if args.backend == "tensor" else read_image),
            batches,
            workers=usable_workers(args.workers),
            normalize=Normalize(preset.mean, preset.std, device),
            device=device,
            memory_format=memory_format,
        )

    def train(samples: list[Sample], batches: TrainBatchSampler) -> TorchvisionLoader:
        pipeline = training_pipeline(
            preset,
            crop_size=args.train_crop_size,
            auto_augment=args.auto_augment,
            ra_magnitude=args.ra_magnitude,
            augmix_severity=args.augmix_severity,
            random_erase=args.random_erase,
            **style,
        )
        return loader(samples, batches, pipeline)

    def val(samples: list[Sample], batches: EvalBatchSampler) -> TorchvisionLoader:
        sizes = {"resize_size": args.val_resize_size, "crop_size": args.val_crop_size}
        return loader(samples, batches, evaluation_pipeline(**sizes, **style))

    return train, val


def _dali(
    args: argparse.Namespace,
    device: torch.device,
    memory_format: torch.memory_format,
    stored: SoftLabels | None,
    loader: Callable = DaliLoader,
) -> tuple[Callable, Callable]:
    """As ``_torchvision``, through DALI."""
    preset = PRESETS[args.preset]
    finish = {
        "threads": usable_workers(args.workers),
        "device": device,
        "memory_format": memory_format,
        "decode_on": args.dali_device or ("gpu" if device.type == "cuda" else "cpu"),
    }

    def train(samples: list[Sample], batches: TrainBatchSampler) -> DaliLoader:
        shown = preset, args.train_crop_size, args.interpolation
        view = StoredView(*shown, stored.views) if stored else TrainingView(*shown)
        return loader(samples, batches, view, mean=preset.mean, std=preset.std, **finish)

    def val(samples: list[Sample], batches: EvalBatchSampler) -> DaliLoader:
        view = EvaluationView(args.val_resize_size, args.val_crop_size, args.interpolation)
        return DaliLoader(samples, batches, view, mean=preset.mean, std=preset.std, **finish)

    return train, val

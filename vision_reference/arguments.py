"""The command lines of ``train.py`` (torchvision's classification flags and those of distillation) and of
``store_soft_labels.py``.

Nothing here imports torch, so that ``--help`` and mistakes are answered at once.
"""

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vision_reference.errors import Parser, UserError
from vision_reference.images.presets import INTERPOLATIONS, PRESETS, TENSOR_INTERPOLATIONS

if TYPE_CHECKING:
    from vision_reference.networks.description import Description

TRACKERS = ("tensorboard", "wandb", "mlflow")  # of ``runs.tracking``
TAILS = ("uniform", "drop", "bucket")  # of ``soft_labels.codec``, which needs torch
OPTIMIZERS = ("sgd", "sgd_nesterov", "rmsprop", "adamw")  # these three of ``optimization``, which needs torch
SCHEDULERS = ("steplr", "multisteplr", "cosineannealinglr", "exponentiallr")
WARMUP_METHODS = ("constant", "linear")

_EPILOG = """examples:
  python vision_reference/train.py --data-path data/digits --preset digits --model resnet18 --epochs 8 --lr 0.05
  python vision_reference/train.py --data-path data/digits --preset digits --model shufflenet_v2_x0_5 --epochs 8 \\
      --teacher resnet18 --teacher-weights teacher/best.pth --kd-temperature 1
  python vision_reference/train.py --data-path data/digits --preset digits --model shufflenet_v2_x0_5 --epochs 8 \\
      --soft-labels teacher/soft_labels --kd-temperature 1

rule of thumb: smooth the teacher (--label-smoothing 0.1) and distil at --kd-temperature 1; higher temperatures undo
what smoothing brings.
"""


_STORE_EPILOG = """examples:
  python vision_reference/store_soft_labels.py --data-path data/digits --preset digits --views 8 \\
      --teacher resnet18 --teacher-weights teacher/best.pth --output-dir teacher/soft_labels --check 100
  torchrun --nproc_per_node 8 vision_reference/store_soft_labels.py --data-path DATA --views 10 --top-k 50 --amp \\
      --teacher resnet50 --teacher-weights teacher/best.pth --output-dir teacher/soft_labels
  torchrun --nproc_per_node 8 vision_reference/store_soft_labels.py --data-path DATA --top-k 50 --amp \\
      --teacher resnet50 --teacher-weights smooth/best.pth --output-dir smooth/soft_labels \\
      --same-views-as teacher/soft_labels
"""


# Flags about where a run computes, reads and writes.
_NOT_THE_RESULT = {
    "data_path", "output_dir", "resume", "start_epoch", "workers", "cache_dataset", "download", "device", "dist_url",
    "world_size", "print_freq", "keep_checkpoints", "save_every_minutes", "track", "unlabelled", "require_gpu",
    "dali_device", "test_only", "teacher_weights", "init_weights", "weights", "soft_labels", "look_ahead", "overwrite",
    "per_class", "debug", "given",
}  # fmt: skip


class _Parser(Parser):
    """What it parses has ``given``: the names of the flags that the command line names, sorted."""

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        parsed = self.parse_args(argv)
        defaults = {action: action.default for action in self._actions}
        try:  # once more without defaults: what is there then was given
            for action in defaults:
                action.default = argparse.SUPPRESS
            parsed.given = sorted(vars(self.parse_args(argv)))
        finally:
            for action, default in defaults.items():
                action.default = default
        return parsed


def _number(kind: type, low: float, high: float = math.inf, *, open_low: bool = False):
    """An argparse type: a finite number from ``low`` (excluded with ``open_low``) to ``high``."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except (ValueError, OverflowError):
            value = math.nan
        if not (low < value if open_low else low <= value) or not value <= high or value == math.inf:
            what = "an integer" if kind is int else "a number"
            lower = f"above {low}" if open_low else f"from {low}"
            upper = "" if high == math.inf else f" to {high}"
            shown = text if len(text) <= 40 else text[:40] + "..."
            raise argparse.ArgumentTypeError(f"'{shown}' is not {what} {lower}{upper}")
        return value

    return parse


def filled_text(text: str) -> str:
    """An argparse type: text that is not empty, as an unset variable of a shell script would be."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; is a variable unset? Give a value or drop the flag")
    return text


count, natural = _number(int, 1), _number(int, 0)
_positive, _non_negative = _number(float, 0, 1e30, open_low=True), _number(float, 0, 1e30)  # fit into a float32
_share = _number(float, 0, 1)
_spread = _number(float, 0, 1, open_low=True)
share_of_a_class = _number(float, 0, 0.9, open_low=True)
_side = _number(int, 1, 4096)
_seed = _number(int, 0, 2**63 - 1)  # what torch's, numpy's and Python's generators take
temperature = _number(float, 0.01, 1000)


def dataset_name(text: str) -> str:
    """An argparse type: a data set by name, or package.module:function."""
    if text not in ("imagefolder", "cub200") and not re.fullmatch(r"[\w.]+:\w+", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not imagefolder, cub200 or package.module:function")
    return text


def device_name(text: str) -> str:
    """An argparse type: cpu, cuda, cuda:N or mps."""
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?|mps(:0)?", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not cpu, cuda, cuda:N or mps")
    return text


class _Track(argparse.Action):
    """Adds the services of one ``--track`` to those of others."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        before = list(getattr(namespace, self.dest, None) or [])
        names = [name.strip() for name in str(values).split(",")]
        if unknown := [name for name in names if name not in TRACKERS]:
            raise argparse.ArgumentError(self, f"'{unknown[0]}' is not one of {', '.join(TRACKERS)}")
        setattr(namespace, self.dest, list(dict.fromkeys(before + names)))


def add_track(group) -> None:
    """``--track``, of training and of studies."""
    group.add_argument(
        "--track",
        action=_Track,
        default=[],
        metavar="SERVICE[,SERVICE]",
        help="also log each epoch to tensorboard, wandb (offline unless WANDB_API_KEY or WANDB_MODE is set) or mlflow "
        "(into a folder unless MLFLOW_TRACKING_URI is set)",
    )


def temperatures(text: str) -> list[float]:
    """An argparse type: positive numbers with commas between them, sorted."""
    return sorted({temperature(part) for part in text.split(",")})


def get_args_parser() -> _Parser:
    """Parser of all flags of ``train.py``."""
    parser = _Parser(
        prog="train.py",
        description="Train, distil and evaluate an image classifier. All flags of torchvision's classification recipe "
        "work as they do there; see the groups 'distillation' and 'weights' for what comes on top.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_data(parser.add_argument_group("data"))
    augmentation = parser.add_argument_group("augmentation")
    _add_views(augmentation)
    _add_augmentation(augmentation)
    _add_model(parser.add_argument_group("model"))
    distillation = parser.add_argument_group("distillation")
    _add_teacher(distillation)
    _add_distillation(distillation)
    _add_weights(parser.add_argument_group("weights and checkpoints"))
    _add_optimization(parser.add_argument_group("optimization"))
    _add_schedule(parser.add_argument_group("learning-rate schedule"))
    _add_machine(parser.add_argument_group("precision, speed, processes"))
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parsed and checked flags; sizes left open are filled in from the preset.

    Raises:
        UserError: flags that contradict each other.
    """
    args = get_args_parser().parse(argv)
    _fill_in_sizes(args, "train_crop_size", "val_resize_size", "val_crop_size")
    _fill_in_colours(args)
    if "resume" in args.given and not args.resume.strip():
        raise UserError("--resume is empty; is a variable unset? Give a checkpoint, auto, or drop the flag")
    if not args.test_only and args.val_crop_size > args.val_resize_size:
        raise UserError(
            f"--val-crop-size {args.val_crop_size} is larger than the image it is cut from, --val-resize-size "
            f"{args.val_resize_size}: a black frame would be left; give --image-size, or both sizes"
        )
    if args.test_only and not (args.resume or args.init_weights or args.weights):
        raise UserError(
            "--test-only without weights would evaluate a random network; give --resume (a checkpoint of any origin), "
            "--init-weights or --weights"
        )
    _check_starts(args)
    if args.per_class and Path(args.per_class).is_dir():
        raise UserError(
            f"--per-class {args.per_class} is a folder; give a file, such as {args.per_class}/per_class.csv"
        )
    if args.teacher and not args.teacher_weights:
        raise UserError("--teacher needs --teacher-weights: an untrained teacher has nothing to teach")
    if args.teacher:
        named_teachers(args.teacher, args.teacher_weights)
    else:
        given = args.soft_labels is not None
        for flag, default in (
            ("teacher_weights", None),
            ("kd_temperature", 1.0),
            ("kd_weight", 1.0),
            ("kd_loss", "kl"),
        ):
            if getattr(args, flag) != default and not (given and flag != "teacher_weights"):
                name = "--" + flag.replace("_", "-")
                raise UserError(f"{name} was given without --teacher; name the teacher's network or drop {name}")
    _check_soft_labels(args)
    _check_unlabelled(args)
    if args.label_smoothing and args.max_suppression:
        raise UserError("--label-smoothing and --max-suppression hold down the same confidence; give one")
    if args.weights and args.init_weights:
        raise UserError("--weights and --init-weights both say where the model starts; give one")
    if args.opt == "sgd_nesterov" and not args.momentum:
        raise UserError("--opt sgd_nesterov needs a --momentum above 0, such as 0.9; without one give --opt sgd")
    if args.lr_warmup_per_step and not args.lr_warmup_epochs:
        raise UserError("--lr-warmup-per-step needs --lr-warmup-epochs: the length of the warm-up (the paper's: 5)")
    if (args.lr_scheduler == "multisteplr") != bool(args.lr_milestones):
        raise UserError(
            "--lr-scheduler multisteplr and --lr-milestones (such as 150 180 210) need each other; give both"
        )
    _check_data(args)
    return args


def get_store_args_parser() -> _Parser:
    """Parser of all flags of ``store_soft_labels.py``; those shared with ``train.py`` mean the same."""
    parser = _Parser(
        prog="store_soft_labels.py",
        description="Store what a teacher says about the training images, for train.py --soft-labels: M views of each, "
        "cropped, mirrored and augmented as in training. A run that was stopped goes on where it was.",
        epilog=_STORE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_data(parser.add_argument_group("data"))
    _add_views(parser.add_argument_group("augmentation"))
    _add_teacher(parser.add_argument_group("teacher"))
    _add_store(parser.add_argument_group("store"))
    _add_machine(parser.add_argument_group("precision, speed, processes"))
    return parser


def parse_store_args(argv: list[str] | None = None) -> argparse.Namespace:
    """As ``parse_args``, for ``store_soft_labels.py``.

    Raises:
        UserError: flags that contradict each other.
    """
    args = get_store_args_parser().parse(argv)
    _fill_in_sizes(args, "train_crop_size")
    _fill_in_colours(args)
    for flag in ("teacher", "teacher_weights", "output_dir"):
        if not getattr(args, flag):
            raise UserError(f"--{flag.replace('_', '-')} is needed: see --help")
    if len(named_teachers(args.teacher, args.teacher_weights)) > 1:
        raise UserError(
            f"--teacher {args.teacher}: a store is about one teacher; store each in its own folder, the others with "
            "--same-views-as the first, and give train.py --soft-labels DIR,DIR2"
        )
    if args.temperatures and args.top_k is None:
        raise UserError("--temperatures is for --top-k; with all classes stored, every temperature is served")
    if args.same_views_as and (args.seed is not None or args.views is not None):
        raise UserError("--same-views-as takes number and seed of the views from there; drop --views and --seed")
    args.temperatures = args.temperatures or [1.0, 2.0, 3.0, 64.0]
    _check_data(args)
    return args


def named_teachers(names: str, weights: str) -> list[tuple[str, str]]:
    """Network and weights of each teacher that ``--teacher`` and ``--teacher-weights`` name.

    Of one teacher the weights may have commas in their name.

    Raises:
        UserError: there are not as many of one as of the other, one is empty, or a teacher is named twice.
    """
    networks = [name.strip() for name in names.split(",")]
    files = [weights] if len(networks) == 1 and Path(weights).is_file() else [one.strip() for one in weights.split(",")]
    if len(networks) != len(files) or not all(networks + files):
        raise UserError(
            f"--teacher {names} and --teacher-weights {weights}: give one of each for every teacher, with commas "
            "between them"
        )
    teachers = list(zip(networks, files, strict=True))
    for number, (_, file) in enumerate(teachers):
        if file in files[:number]:
            raise UserError(f"--teacher-weights names {file} twice; a teacher that counts twice is one teacher")
    return teachers


def follow_description(args: argparse.Namespace, description: "Description") -> list[str]:
    """Have evaluation images prepared as those of the weights' own evaluation, but for what the command line names.

    Args:
        args: changed in place: preset, sizes, mean, std, interpolation, backend.
        description: of the weights that are to be evaluated.

    Returns:
        Lines to tell the user: what was taken over, which flags contradict the weights' own, and whether images count
        that these were trained on.

    Raises:
        UserError: the weights' preset is unknown here, or the loader cannot do their interpolation.
    """
    own = {name: getattr(description, name) for name in ("preset", "val_resize_size", "val_crop_size", "interpolation")}
    own |= {name: description.args.get(name) for name in ("backend", "use_v2")}
    own |= {"mean": description.mean and list(description.mean), "std": description.std and list(description.std)}
    own = {name: str(value).lower() if name == "backend" else value for name, value in own.items() if value is not None}
    against = {name: value for name, value in own.items() if name in args.given and getattr(args, name) != value}
    if "preset" not in against and "preset" in own and own["preset"] not in PRESETS:
        raise UserError(
            f"'{description.source}' was trained with --preset {own['preset']}, unknown here; give --preset"
        )
    if "preset" in against:  # sizes and colours of the preset that was given, as for any other weights
        own = {name: value for name, value in own.items() if name not in ("mean", "std") and name[-5:] != "_size"}
    taken = {}
    for name in own.keys() - set(args.given):
        if getattr(args, name) != own[name]:
            taken[name] = own[name]
        setattr(args, name, own[name])
    usual = {name: list(getattr(PRESETS[args.preset], name)) for name in ("mean", "std")}
    taken = {name: value for name, value in taken.items() if value != usual.get(name)}
    for name in usual.keys() - own.keys() - set(args.given):  # the preset may be another one now
        setattr(args, name, usual[name])
    _check_interpolation(args)
    notes = []
    left_out = description.args.get("split")
    if isinstance(left_out, float) and args.split and args.split > left_out:  # a larger part holds the smaller one
        notes.append(
            f"note: {description.source} was trained with --split {left_out:g}: of the images that count with --split "
            f"{args.split:g} it has seen some in training"
        )
    if taken:
        notes.append(f"note: images are prepared as {description.source} says: {_as_flags(taken)}")
    if against:
        here = {name: getattr(args, name) for name in against}
        notes.append(
            f"note: {description.source} was trained with {_as_flags(against)}, but here {_as_flags(here)} holds"
        )
    return notes


def _as_flags(values: dict) -> str:
    return " ".join(f"--{name.replace('_', '-')} {_as_given(value)}" for name, value in sorted(values.items()))


def _as_given(value: object) -> str:
    return " ".join(f"{part:g}" for part in value) if isinstance(value, list | tuple) else str(value)


def follow_start(args: argparse.Namespace, description: "Description") -> str | None:
    """Have a run show its images as the weights that it starts from saw theirs, but for what the command line names.

    That is for weights of timm and of the Hub, which come with colours, sizes and interpolation of their own; those of
    torchvision are trained on as in torchvision's recipe, by the preset.

    Args:
        args: changed in place: mean, std, interpolation and, without --preset, the sizes.

    Returns:
        A line to tell the user; None where nothing changes.

    Raises:
        UserError: the loader cannot do their interpolation.
    """
    names = ["mean", "std", "interpolation"]
    if "preset" not in args.given:
        names += ["train_crop_size", "val_resize_size", "val_crop_size"]
    taken = {}
    for name in names:
        own = getattr(description, name)
        own = list(own) if isinstance(own, tuple) else own
        if own is not None and name not in args.given and getattr(args, name) != own:
            setattr(args, name, own)
            taken[name] = own
    _check_interpolation(args)
    return f"note: images are prepared as {description.source} says: {_as_flags(taken)}" if taken else None


def changed_flags(before: dict, now: dict) -> str:
    """The flags that shape the result and differ between two command lines, as ``--lr 0.1 -> 0.01``; "" if none does.

    Args:
        before, now: flag names (underscores) to values; flags that only one of the two knows are passed over.
    """
    names = sorted((before.keys() & now.keys()) - _NOT_THE_RESULT)
    changes = [
        f"--{name.replace('_', '-')} {before[name]} -> {now[name]}" for name in names if before[name] != now[name]
    ]
    return ", ".join(changes)


def _fill_in_sizes(args: argparse.Namespace, *names: str) -> None:
    """Sizes that were not given: those of ``--image-size``, in the preset's proportion, or the preset's own."""
    preset = PRESETS[args.preset]
    for name in names:
        if getattr(args, name) is not None:
            continue
        size = getattr(preset, name)
        if args.image_size:
            size = round(size * args.image_size / preset.val_crop_size)
            args.given = sorted({*args.given, name})
        setattr(args, name, size)


def _fill_in_colours(args: argparse.Namespace) -> None:
    """Mean and std that were not given: the preset's."""
    for name in ("mean", "std"):
        if getattr(args, name) is None:
            setattr(args, name, list(getattr(PRESETS[args.preset], name)))


def _check_starts(args: argparse.Namespace) -> None:
    """Refuses weights to start from that are neither a file nor a name of any."""
    for flag, source in (("--weights", args.weights), ("--init-weights", args.init_weights)):
        named = source and (source.startswith(("timm:", "hf://")) or "_Weights." in source)
        if source and not named and not Path(source).is_file():
            raise UserError(f"{flag}: there is no file '{source}', nor is it a name such as ResNet18_Weights.DEFAULT")


def _check_soft_labels(args: argparse.Namespace) -> None:
    """Refuses what stored soft labels cannot serve."""
    if args.soft_labels is None:
        if args.kd_tail:
            raise UserError("--kd-tail was given without --soft-labels; drop it")
        return
    if args.kd_tail == "bucket" and args.kd_loss != "kl":
        raise UserError("--kd-tail bucket changes the classes that are compared, which --kd-loss kl alone knows of")
    unserved = {
        "--teacher": (args.teacher, "both say who teaches"),
        "--mixup-alpha": (args.mixup_alpha, "the teacher would have to see the mixed images"),
        "--cutmix-alpha": (args.cutmix_alpha, "the teacher would have to see the mixed images"),
        "--ra-sampler": (args.ra_sampler, "an epoch shows one stored view of each image"),
    }
    for flag, (given, reason) in unserved.items():
        if given:
            raise UserError(f"{flag} does not go with --soft-labels ({reason}); drop one of them")


def _check_unlabelled(args: argparse.Namespace) -> None:
    """Refuses what images without labels cannot be part of."""
    if args.unlabelled is None:
        return
    if not (args.teacher or args.soft_labels):
        raise UserError("--unlabelled: images without labels need a teacher; give --teacher or --soft-labels")
    if args.kd_weight == 0:
        raise UserError("--unlabelled with --kd-weight 0: images without labels would teach nothing; drop one of them")
    for flag, given in (("--mixup-alpha", args.mixup_alpha), ("--cutmix-alpha", args.cutmix_alpha)):
        if given:
            raise UserError(f"{flag} mixes labels, which images of --unlabelled do not have; drop one of them")


def _check_data(args: argparse.Namespace) -> None:
    """Refuses what the chosen data set or loader would have to ignore."""
    if args.download and args.dataset != "cub200":
        raise UserError("--download fetches CUB-200-2011 only; give --dataset cub200 or drop it")
    if args.split and args.dataset != "imagefolder":
        raise UserError(f"--split is for --dataset imagefolder; {args.dataset} has a split of its own")
    _check_interpolation(args)
    if args.loader != "dali":
        if args.dali_device:
            raise UserError("--dali-device was given without --loader dali; give both or neither")
        return
    unknown_to_dali = {
        "--auto-augment": args.auto_augment is not None,
        "--random-erase": args.random_erase > 0,
        "--use-v2": args.use_v2,
        "--backend tensor": args.backend == "tensor",
    }
    for flag, given in unknown_to_dali.items():
        if given:
            raise UserError(f"{flag} has no equal in the DALI loader; drop it or use --loader torchvision")


def _check_interpolation(args: argparse.Namespace) -> None:
    """Refuses filters that the chosen way to resize or to augment does not have."""
    allowed: Sequence[str] = INTERPOLATIONS
    way = ""
    if args.loader == "dali":
        allowed, way = TENSOR_INTERPOLATIONS, "--loader dali"
    elif args.backend == "tensor":
        allowed, way = TENSOR_INTERPOLATIONS, "--backend tensor"
    if args.auto_augment and (args.backend == "tensor" or args.auto_augment == "augmix"):
        allowed, way = ("bilinear", "nearest"), f"--auto-augment {args.auto_augment} of tensors"
    elif args.auto_augment:
        allowed, way = TENSOR_INTERPOLATIONS, f"--auto-augment {args.auto_augment}"
    if args.interpolation not in allowed:
        raise UserError(
            f"--interpolation {args.interpolation} does not go with {way}, which takes {', '.join(allowed)}"
        )


def _add_data(group) -> None:
    group.add_argument(
        "--data-path",
        type=filled_text,
        default="data",
        metavar="DIR",
        help="folder with train/ and val/, one subfolder of images per class; for cub200 the folder of CUB_200_2011/ "
        "(default: data)",
    )
    group.add_argument(
        "--dataset",
        type=dataset_name,
        default="imagefolder",
        metavar="NAME",
        help="imagefolder, cub200, or a function of your own as package.module:function, listing (path, class name) "
        "pairs for (folder, 'train' or 'val') (default: imagefolder)",
    )
    group.add_argument(
        "--unlabelled",
        type=filled_text,
        metavar="DIR",
        help="further training images without labels, any nested folder of them: the student learns from the teacher "
        "alone what they are; each image counts once, and --kd-weight's other part is for those with labels",
    )
    group.add_argument(
        "--split",
        type=share_of_a_class,
        metavar="SHARE",
        help="imagefolder without val/: evaluate on this share of each class of train/ (by the files' names), "
        "train on the rest",
    )
    group.add_argument("--download", action="store_true", help="cub200: fetch it into --data-path where it is missing")
    group.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave out broken image files (found by decoding all once) instead of stopping at the first",
    )
    group.add_argument(
        "--loader", choices=("torchvision", "dali"), default="torchvision", help="(default: torchvision)"
    )
    group.add_argument(
        "--dali-device",
        choices=("cpu", "gpu"),
        help="where DALI decodes and augments (default: gpu where there is one)",
    )
    group.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default="imagenet",
        help="augmentation and normalization: imagenet (torchvision's), cub (birds: larger crops, rotation, colour), "
        "digits (small shifts, never mirrored), cifar10 and cifar100 (small shifts, mirrored) (default: imagenet)",
    )
    group.add_argument(
        "-j",
        "--workers",
        type=natural,
        default=16,
        help="loader processes per process, at most its cores (default: 16)",
    )
    group.add_argument("--cache-dataset", action="store_true", help="keep the list of image files between runs")
    group.add_argument("-b", "--batch-size", type=count, default=32, help="images per process and step (default: 32)")


_SIZES = "side in pixels (default: {}; digits, cifar10, cifar100: 32)"


def _add_views(group) -> None:
    group.add_argument("--train-crop-size", type=_side, help="training crop: " + _SIZES.format(224))
    group.add_argument(
        "--image-size",
        type=_side,
        metavar="N",
        help="crops of N pixels in training and evaluation; resizing before the latter by the preset's proportion",
    )
    group.add_argument(
        "--interpolation",
        choices=INTERPOLATIONS,
        default="bilinear",
        metavar="NAME",
        help=f"how images are resized: {', '.join(INTERPOLATIONS)}; tensors and DALI know the first "
        f"{len(TENSOR_INTERPOLATIONS)} (default: bilinear)",
    )
    colours = "of pixels scaled to 0..1, three numbers for red, green and blue (default: the preset's)"
    group.add_argument("--mean", type=_share, nargs=3, metavar=("R", "G", "B"), help="mean " + colours)
    group.add_argument("--std", type=_spread, nargs=3, metavar=("R", "G", "B"), help="standard deviation " + colours)
    policies = ("ra", "ta_wide", "augmix", "imagenet", "cifar10", "svhn")
    group.add_argument(
        "--auto-augment",
        choices=policies,
        help="RandAugment (ra), TrivialAugmentWide (ta_wide), AugMix, or the AutoAugment policy learnt on a data set",
    )
    group.add_argument(
        "--ra-magnitude", type=_number(int, 0, 30), default=9, help="strength of RandAugment, 0 to 30 (default: 9)"
    )
    group.add_argument(
        "--augmix-severity", type=_number(int, 1, 10), default=3, help="strength of AugMix, 1 to 10 (default: 3)"
    )
    group.add_argument(
        "--random-erase", type=_share, default=0.0, metavar="P", help="probability of erasing a rectangle"
    )
    group.add_argument(
        "--backend", type=str.lower, choices=("pil", "tensor"), default="pil", help="augment PIL images or tensors"
    )
    group.add_argument("--use-v2", action="store_true", help="augment with torchvision.transforms.v2")


def _add_augmentation(group) -> None:
    group.add_argument(
        "--val-resize-size", type=_side, help="evaluation, before the crop: shorter " + _SIZES.format(256)
    )
    group.add_argument("--val-crop-size", type=_side, help="evaluation, centre crop: " + _SIZES.format(224))
    mixing = "Beta distribution's parameter of {}; 0: off. With both, each batch takes either (default: 0)"
    group.add_argument("--mixup-alpha", type=_number(float, 0, 1000), default=0.0, help=mixing.format("mixup"))
    group.add_argument("--cutmix-alpha", type=_number(float, 0, 1000), default=0.0, help=mixing.format("cutmix"))
    group.add_argument(
        "--ra-sampler", action="store_true", help="repeated augmentation: several copies of an image per epoch"
    )
    group.add_argument(
        "--ra-reps", type=_number(int, 1, 100), default=3, help="copies per image with --ra-sampler (default: 3)"
    )


def _add_model(group) -> None:
    group.add_argument(
        "--model",
        type=filled_text,
        default="resnet18",
        help="any torchvision classification network (default: resnet18; with --test-only that of the checkpoint)",
    )
    group.add_argument("--sync-bn", action="store_true", help="batch-norm statistics over all processes (GPU only)")
    group.add_argument(
        "--model-ema", action="store_true", help="also keep and evaluate a moving average of the weights"
    )
    group.add_argument("--model-ema-steps", type=count, default=32, help="steps between its updates (default: 32)")
    group.add_argument(
        "--model-ema-decay",
        type=_share,
        default=0.99998,
        help="its decay, adjusted by processes x batch x steps / epochs (default: 0.99998)",
    )


def _add_teacher(group) -> None:
    group.add_argument(
        "--teacher",
        type=filled_text,
        metavar="NAME[,NAME2]",
        help="teacher's network, as --model; of several teachers the probabilities at T are averaged (when stored: see "
        "--soft-labels)",
    )
    group.add_argument(
        "--teacher-weights",
        type=filled_text,
        metavar="X[,X2]",
        help="its weights: a checkpoint file (ours, torchvision's, *.pth.tar, a state dict, safetensors) or a "
        "name as for --weights, such as ResNet50_Weights.IMAGENET1K_V1; for several, in the order of --teacher",
    )


def _add_distillation(group) -> None:
    group.add_argument(
        "--look-ahead",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="GPU: the teacher answers the next batch while the student learns from this one; without it, its memory "
        "is one batch smaller",
    )
    group.add_argument(
        "--soft-labels",
        type=filled_text,
        metavar="DIR[,DIR2]",
        help="what store_soft_labels.py stored, in place of --teacher: epoch e shows view e mod M of every image; of "
        "several stores with the same views the probabilities are averaged",
    )
    group.add_argument(
        "--kd-tail",
        choices=TAILS,
        help="classes beyond the stored top k: spread their probability evenly (uniform), renormalize without them "
        "(drop), or match their sum alone (bucket) (default: uniform)",
    )
    group.add_argument(
        "--kd-temperature",
        type=temperature,
        default=1.0,
        metavar="T",
        help="temperature of teacher and student (default: 1)",
    )
    group.add_argument(
        "--kd-loss",
        type=filled_text,
        default="kl",
        metavar="NAME[:a=1,b=2]",
        help="what the student is to match: kl, dkd (alpha, beta), dist (beta, gamma), standardized, ttm, or a "
        "function of your own as package.module:function; hyper-parameters after a colon (default: kl)",
    )
    group.add_argument(
        "--kd-weight",
        type=_share,
        default=1.0,
        metavar="L",
        help="L of the loss L * T^2 * KL(teacher^T || student^T) + (1 - L) * cross entropy (default: 1)",
    )
    group.add_argument(
        "--label-smoothing",
        type=_share,
        default=0.0,
        metavar="ALPHA",
        help="share of each label spread evenly over all classes (default: 0)",
    )
    group.add_argument(
        "--max-suppression",
        type=_share,
        default=0.0,
        metavar="ALPHA",
        help="instead of --label-smoothing: MaxSup, which adds ALPHA * (largest logit - mean logit) to the cross "
        "entropy and so holds down what the network believes most, right or wrong (default: 0)",
    )


def _add_store(group) -> None:
    group.add_argument(
        "--output-dir", type=filled_text, metavar="DIR", help="the store: new, empty, or one to go on with"
    )
    group.add_argument("--views", type=_number(int, 1, 10_000), metavar="M", help="views of each image (default: 1)")
    group.add_argument(
        "--seed", type=_seed, help="fixes the views: train.py's epochs 0 to M-1 with this seed (default: drawn)"
    )
    group.add_argument(
        "--same-views-as",
        type=filled_text,
        metavar="DIR",
        help="the views of that store, for a second teacher of the same students",
    )
    group.add_argument("--top-k", type=count, metavar="K", help="keep the K largest logits only (default: all classes)")
    group.add_argument(
        "--temperatures",
        type=temperatures,
        metavar="T,T",
        help="with --top-k: at which the classes beyond are accounted for (default: 1,2,3,64)",
    )
    group.add_argument(
        "--check",
        type=count,
        metavar="N",
        help="then recompute N random stored views and say how far they are off; status 1 if too far",
    )


def _add_weights(group) -> None:
    group.add_argument(
        "--weights",
        type=filled_text,
        metavar="X",
        help="start from trained weights by name: torchvision's, such as ResNet50_Weights.IMAGENET1K_V2; timm:NAME; "
        "hf://owner/name, a repository of safetensors on the Hugging Face Hub",
    )
    group.add_argument(
        "--init-weights",
        type=filled_text,
        metavar="X",
        help="start from these weights: a file in any accepted format or a name as for --weights",
    )
    group.add_argument(
        "--output-dir",
        type=filled_text,
        default=".",
        metavar="DIR",
        help="for checkpoint.pth, best.pth, metrics.jsonl, log.txt; never replaces another run's (default: .)",
    )
    group.add_argument(
        "--resume",
        default="",
        metavar="FILE",
        help="go on from this checkpoint; 'auto': from checkpoint.pth in --output-dir if there is one",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace what another run left in --output-dir instead of refusing"
    )
    group.add_argument("--start-epoch", type=natural, default=0, help="count epochs from here (default: 0)")
    group.add_argument(
        "--keep-checkpoints",
        type=natural,
        default=1,
        metavar="N",
        help="keep the newest N model_<epoch>.pth (default: 1)",
    )
    group.add_argument(
        "--save-every-minutes",
        type=_positive,
        metavar="M",
        help="also save within an epoch, to within_epoch.pth, from which --resume auto goes on at the next batch, to "
        "the bit; SIGTERM and SIGUSR1 always save there and stop",
    )
    group.add_argument("--test-only", action="store_true", help="evaluate (see --resume, --weights) and stop")
    add_track(group)
    group.add_argument(
        "--per-class",
        type=filled_text,
        metavar="FILE.csv",
        help="write how many validation images of each class are right, after each epoch or with --test-only",
    )
    group.add_argument("--print-freq", type=count, default=10, help="steps between progress lines (default: 10)")


def _add_optimization(group) -> None:
    group.add_argument("--epochs", type=natural, default=90, help="(default: 90)")
    group.add_argument("--opt", type=str.lower, choices=OPTIMIZERS, default="sgd", help="(default: sgd)")
    group.add_argument(
        "--lr", type=_non_negative, default=0.1, help="learning rate, not scaled with the batch (default: 0.1)"
    )
    group.add_argument(
        "--scale-lr",
        action="store_true",
        help="multiply --lr by (batch x processes x accumulated batches) / 256 (linear scaling)",
    )
    group.add_argument(
        "--accumulate",
        type=count,
        default=1,
        metavar="N",
        help="batches whose gradients are added up to one step, as if they were one large batch (default: 1)",
    )
    group.add_argument("--momentum", type=_non_negative, default=0.9, help="(default: 0.9)")
    group.add_argument(
        "--wd", "--weight-decay", type=_non_negative, default=1e-4, dest="weight_decay", help="(default: 1e-4)"
    )
    separate = "weight decay of {} (default: as --weight-decay)"
    group.add_argument("--norm-weight-decay", type=_non_negative, help=separate.format("normalization layers"))
    group.add_argument("--bias-weight-decay", type=_non_negative, help=separate.format("biases"))
    group.add_argument(
        "--transformer-embedding-decay", type=_non_negative, help=separate.format("class token and position embeddings")
    )
    group.add_argument("--clip-grad-norm", type=_positive, help="clip the gradient's norm (default: no clipping)")
    group.add_argument(
        "--seed",
        type=_seed,
        help="fixes initialization, order and augmentation (default: drawn, printed and recorded)",
    )


def _add_schedule(group) -> None:
    group.add_argument(
        "--lr-scheduler",
        type=str.lower,
        choices=SCHEDULERS,
        default="steplr",
        help="(default: steplr)",
    )
    group.add_argument(
        "--lr-milestones", type=count, nargs="+", metavar="EPOCH", help="multisteplr: epochs at which the rate decays"
    )
    group.add_argument("--lr-step-size", type=count, default=30, help="steplr: epochs between decays (default: 30)")
    group.add_argument("--lr-gamma", type=_non_negative, default=0.1, help="decay factor (default: 0.1)")
    group.add_argument("--lr-min", type=_non_negative, default=0.0, help="cosine: final learning rate (default: 0)")
    group.add_argument("--lr-warmup-epochs", type=natural, default=0, help="(default: 0)")
    group.add_argument(
        "--lr-warmup-method",
        type=str.lower,
        choices=WARMUP_METHODS,
        default="constant",
        help="stepped each epoch (default: constant)",
    )
    group.add_argument(
        "--lr-warmup-decay", type=_non_negative, default=0.01, help="factor at the warm-up's start (default: 0.01)"
    )
    group.add_argument(
        "--lr-warmup-per-step",
        action="store_true",
        help="the paper's warm-up instead: from 0 to --lr linearly in every step of the first --lr-warmup-epochs",
    )


def _add_machine(group) -> None:
    group.add_argument(
        "--device",
        type=device_name,
        default="cuda",
        help="cuda, cuda:N for one of several GPUs, mps (Apple's), or cpu; falls back to cpu where no GPU is "
        "(default: cuda)",
    )
    group.add_argument(
        "--require-gpu", action="store_true", help="stop where no GPU can be used instead of running on the CPU"
    )
    group.add_argument(
        "--amp",
        action="store_true",
        help="mixed precision: forward and loss under autocast (CPUs: needs AMX to pay)",
    )
    group.add_argument(
        "--amp-dtype",
        choices=("bf16", "fp16"),
        help="type of --amp (default: bf16 on CPUs and on GPUs that have it, else fp16 with gradient scaling)",
    )
    group.add_argument(
        "--channels-last",
        action=argparse.BooleanOptionalAction,
        help="memory layout of images and convolutions (default: on where it is faster: on CPUs, on GPUs with --amp)",
    )
    group.add_argument("--compile", action="store_true", help="compile teacher and student with torch.compile")
    group.add_argument(
        "--use-deterministic-algorithms",
        action="store_true",
        help="same weights from the same command, resumed or not; only GPUs need it",
    )
    group.add_argument("--world-size", type=count, default=1, help="ignored: torchrun tells it")
    group.add_argument(
        "--dist-url", default="env://", help="where processes meet (default: env://, as torchrun sets it)"
    )
    group.add_argument("--debug", action="store_true", help="show the traceback behind an error's one line")

"""What a file of weights says about itself: its network, its classes, how its images were prepared, what made it."""

import math
import platform
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from vision_reference.errors import UserError
from vision_reference.images.presets import INTERPOLATIONS, PRESETS, chosen

ROOT = Path(__file__).resolve().parents[2]
LARGEST_SIDE = 4096  # of images, in pixels: beyond it a forged file would only fill the memory
_SIDES = ("train_crop_size", "val_resize_size", "val_crop_size")


@dataclass(frozen=True)
class Description:
    """What is known of a network's weights; None (or empty) is what their file does not say.

    Attributes:
        source: file or name that they came from; names them in messages.
        arch: name of the network, torchvision's or ``timm:NAME``.
        classes: their names in the order of the logits.
        preset: key of ``PRESETS`` that the images were prepared with.
        train_crop_size, val_resize_size, val_crop_size: sides in pixels.
        interpolation: one of ``presets.INTERPOLATIONS``.
        mean, std: per channel, of pixels scaled to 0..1.
        accuracy: top-1 of these weights on their author's evaluation data, percent.
        args: the command line they were trained with, flag names (underscores) to values.
        made_by: ``code`` (version, commit), ``versions`` (of libraries), ``host`` and ``time`` of their training.
        assumed: names of the attributes above that ``completed`` filled in from a preset.
    """

    source: str
    arch: str | None = None
    classes: tuple[str, ...] | None = None
    preset: str | None = None
    train_crop_size: int | None = None
    val_resize_size: int | None = None
    val_crop_size: int | None = None
    interpolation: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    accuracy: float | None = None
    args: Mapping = field(default_factory=dict)
    made_by: Mapping = field(default_factory=dict)
    assumed: tuple[str, ...] = ()

    def completed(self, preset: str | None = None) -> "CompleteDescription":
        """The same with what is unknown of sizes, interpolation, mean and std taken from a preset.

        Args:
            preset: used where the file names none; None: imagenet.

        Raises:
            UserError: the file names a preset that this version does not have.
        """
        name = self.preset or preset or "imagenet"
        if name not in PRESETS:
            raise UserError(f"'{self.source}': its preset '{name}' is unknown here; known: {', '.join(PRESETS)}")
        defaults = PRESETS[name]
        known: dict[str, object] = {
            "preset": name,
            "interpolation": "bilinear",
            "mean": defaults.mean,
            "std": defaults.std,
        }
        known |= {side: getattr(defaults, side) for side in _SIDES}
        missing = {name: value for name, value in known.items() if getattr(self, name) is None}
        return CompleteDescription(**{**vars(self), **missing, "assumed": tuple(missing)})


@dataclass(frozen=True, kw_only=True)
class CompleteDescription(Description):
    """A ``Description`` that says how images are prepared: what it was told and, for the rest, what a preset says."""

    preset: str
    train_crop_size: int
    val_resize_size: int
    val_crop_size: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def from_checkpoint(checkpoint: object, source: str, *, ema: bool = False) -> Description:
    """What the content of a checkpoint file says: ours, torchvision's recipe's, the authors' or bare weights.

    Raises:
        UserError: it says something that cannot be (a size of -1, a name that is no text).
    """
    if not isinstance(checkpoint, Mapping):
        return Description(source)
    args = recorded_args(checkpoint)
    told = checkpoint.get("description")
    told = told if isinstance(told, Mapping) else args
    preset = _checked(told, "preset", source, lambda value: isinstance(value, str), "a name")
    described = Description(
        source,
        arch=recorded_arch(checkpoint),
        classes=_classes(told, source),
        preset=preset,
        interpolation=_checked(told, "interpolation", source, INTERPOLATIONS.__contains__, " or ".join(INTERPOLATIONS)),
        mean=_colours(told, "mean", source),
        std=_colours(told, "std", source),
        accuracy=_accuracy(checkpoint, told, ema),
        args=args,
        made_by={
            name: told[name] for name in ("code", "versions", "host", "time") if told is not args and name in told
        },
        **{side: _checked(told, side, source, _is_side, f"from 1 to {LARGEST_SIDE}") for side in _SIDES},
    )
    if preset in PRESETS and described.mean is None and described.std is None:  # files of before descriptions
        described = replace(described, mean=PRESETS[preset].mean, std=PRESETS[preset].std)
    return described


def describe_run(
    args: Mapping,
    classes: Sequence[str],
    accuracy: Mapping[str, float],
    teachers: Sequence[Mapping[str, str]] = (),
    images: Mapping[str, int] | None = None,
) -> dict:
    """What ``train.py`` writes into its checkpoints under ``description``; plain values only.

    Args:
        args: the command line; without ``mean`` and ``std``, they are the preset's.
        classes: names in the order of the logits.
        accuracy: of the weights in this file, percent, by name (``acc1`` of ``model``, ``ema_acc1`` of ``model_ema``).
        teachers: of each, ``arch``, ``source`` (file or store) and ``weights_sha256``, as ``hash_weights`` has it.
        images: how many there were, by name (``training``, ``unlabelled``, ``validation``).
    """
    preset = chosen(args["preset"], args.get("mean"), args.get("std"))
    return {
        "format": 1,
        "classes": list(classes),
        **{name: args[name] for name in ("preset", "interpolation", *_SIDES)},
        "mean": list(preset.mean),
        "std": list(preset.std),
        "accuracy": dict(accuracy),
        "images": dict(images or {}),
        "teachers": [dict(teacher) for teacher in teachers],
        **made_here(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


_made_here: dict = {}


def made_here() -> dict:
    """``code``, ``versions`` and ``host`` of this process; looked up once."""
    if not _made_here:
        _made_here.update(code=code_version(), versions=library_versions(), host=socket.gethostname())
    return dict(_made_here)


def code_version() -> dict[str, str | None]:
    """Version of this project and, in a clone, its commit; ``-dirty`` follows where files were changed since."""
    try:
        version = metadata.version("lskd")
    except metadata.PackageNotFoundError:  # runs from a plain clone
        version = None
    commit = _git("rev-parse", "HEAD") if (ROOT / ".git").exists() else None
    if commit and _git("status", "--porcelain", "--untracked-files=no"):
        commit += "-dirty"
    return {"version": version, "commit": commit}


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a run's numbers depend on, as far as they are installed."""
    names = {"torch", "torchvision", "numpy", "pillow", "timm", "nvidia-dali-cuda110", "nvidia-dali-cuda120"}
    found = {"python": platform.python_version()}
    for name in sorted(names):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def recorded_args(checkpoint: object) -> dict:
    """The command line that a checkpoint was trained with, as far as it says: flag names (underscores) to values."""
    args = checkpoint.get("args") if isinstance(checkpoint, Mapping) else None
    args = args if isinstance(args, Mapping) else getattr(args, "__dict__", {})
    return {name: value for name, value in args.items() if isinstance(name, str) and _is_plain(value)}


def recorded_teachers(checkpoint: Mapping) -> list[object]:
    """SHA-256 of the weights of each teacher that a checkpoint's network learnt from, as far as it says."""
    told = checkpoint.get("description")
    teachers = told.get("teachers") if isinstance(told, Mapping) else None
    return [one.get("weights_sha256") for one in teachers or () if isinstance(one, Mapping)]


def _is_plain(value: object) -> bool:
    """Whether ``value`` is what a command line can give: text, a number, a truth value, nothing, or a list of these."""
    if isinstance(value, list | tuple):
        return all(isinstance(part, str | int | float) for part in value)
    return value is None or isinstance(value, str | int | float)


def recorded_arch(checkpoint: object) -> str | None:
    """Name of the network that a checkpoint says it holds: ``arch``, else ``args.model`` or ``args.arch``."""
    if not isinstance(checkpoint, Mapping):
        return None
    args = recorded_args(checkpoint)
    names = (checkpoint.get("arch"), args.get("model"), args.get("arch"))
    return next((name for name in names if isinstance(name, str)), None)


def _checked(told: Mapping, name: str, source: str, allowed: Callable[[Any], bool], what: str) -> Any:
    value = told.get(name)
    if value is not None and not (isinstance(value, str | int | float | list | tuple) and allowed(value)):
        raise UserError(f"'{source}' is damaged or forged: its {name} is '{str(value)[:40]}', not {what}")
    return value


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_SIDE


def _classes(told: Mapping, source: str) -> tuple[str, ...] | None:
    def allowed(names: Any) -> bool:
        return isinstance(names, list | tuple) and all(isinstance(name, str) for name in names) and len(names) > 0

    classes = _checked(told, "classes", source, allowed, "a list of names")
    if classes is not None and len(set(classes)) < len(classes):
        raise UserError(f"'{source}' is damaged or forged: it names a class twice")
    return tuple(classes) if classes else None


def _colours(told: Mapping, name: str, source: str) -> tuple[float, float, float] | None:
    def allowed(values: Any) -> bool:
        numbers = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
        return numbers and len(values) == 3 and all(map(math.isfinite, values)) and (name == "mean" or min(values) > 0)

    values = _checked(told, name, source, allowed, "three numbers" + " above 0" * (name == "std"))
    if values is None:
        return None
    red, green, blue = map(float, values)
    return red, green, blue


def _accuracy(checkpoint: Mapping, told: Mapping, ema: bool) -> float | None:
    """Ours says that of the very weights; the authors' files say the best of their run, which is what they hold."""
    own = told.get("accuracy")
    value: Any = own.get("ema_acc1" if ema else "acc1") if isinstance(own, Mapping) else checkpoint.get("best_acc1")
    try:
        value = float(value)  # a tensor of one element, too
    except (TypeError, ValueError, RuntimeError):
        return None
    return value if math.isfinite(value) else None


def _git(*command: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

"""What training images are and what makes pixels of them, in a form that tells whether another run sees the same."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import compress

from vision_reference.errors import UserError
from vision_reference.images.presets import PRESETS

# The flags that, with a view's seed, decide on its pixels.
_PIXEL_FLAGS = (
    "loader", "preset", "train_crop_size", "interpolation", "backend", "use_v2", "auto_augment", "ra_magnitude",
    "augmix_severity", "random_erase", "mean", "std",
)  # fmt: skip


def pixel_flags(flags: Mapping) -> dict:
    """Of a command line's flags those that, with a view's seed, decide on its pixels; None for those that are idle.

    Or as the preset has them: stores of before --mean and --std, which have none, are thus read as what they are.
    """
    idle = {"ra_magnitude": flags["auto_augment"] != "ra", "augmix_severity": flags["auto_augment"] != "augmix"}
    preset = PRESETS[flags["preset"]]
    idle |= {"mean": tuple(flags["mean"]) == preset.mean, "std": tuple(flags["std"]) == preset.std}
    return {name: None if idle.get(name) else flags[name] for name in _PIXEL_FLAGS}


def describe_data(samples: Sequence[tuple[str, int]], classes: Sequence[str]) -> dict:
    """Number of images, class names, and the SHA-256 of the list of relative paths, file sizes and labels, in order.

    The paths of images without labels (label -1) count from a folder of their own.

    Cheap: no file is opened, so a changed image of the same size goes unnoticed.

    Raises:
        UserError: a file is gone.
    """
    digest, labelled = hashlib.sha256(), [label >= 0 for _, label in samples]
    try:
        for kind in sorted(set(labelled), reverse=True):
            part = list(compress(samples, (one is kind for one in labelled)))
            # common to the first and the last in alphabetical order, so it is to all
            root = os.path.commonpath([os.path.dirname(end(part)[0]) for end in (min, max)])
            for path, label in part:
                line = f"{path[len(root) :]}\0{os.stat(path).st_size}\0{label}\n"
                digest.update(line.encode(errors="surrogateescape"))
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror})") from None
    return {
        "images": len(samples),
        "unlabelled": labelled.count(False),
        "classes": len(classes),
        "class_names": list(classes),
        "sha256": digest.hexdigest(),
        "covers": "relative paths, file sizes and labels of the training images in order, not their contents",
    }


def versions(loader: str) -> dict[str, str]:
    """Versions of what decodes and augments: pixels are the same to the bit under the same ones."""
    names = ["torch", "torchvision", "pillow"]
    if loader == "dali":
        installed = {(distribution.metadata["Name"] or "").lower() for distribution in metadata.distributions()}
        names += sorted(name for name in installed if name.startswith("nvidia-dali-"))
    return {name: metadata.version(name) for name in names}

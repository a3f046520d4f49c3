"""What each kind of images asks for: sizes, normalization, augmentation. A table that needs no torch.

``pipelines`` makes torchvision's transforms of it, ``dali_views`` DALI's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

# torchvision's names; what is not a tensor's is PIL's alone
TENSOR_INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "nearest-exact")
INTERPOLATIONS = (*TENSOR_INTERPOLATIONS, "box", "hamming", "lanczos")

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preset:
    """What a kind of data asks for.

    Attributes:
        mean, std: per channel, of pixels scaled to 0..1.
        train_crop_size, val_resize_size, val_crop_size: default sizes in pixels.
        crop_scale, crop_ratio: ranges of the random crop's share of the area and of its aspect ratio; None: no crop.
        mirror: whether a mirrored image still shows its class.
        shift: random translation as a share of the side.
        rotation: random rotation up to so many degrees, bilinear.
        grayscale: probability of dropping the colours.
        brightness, contrast: strength of the colour jitter.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    train_crop_size: int = 224
    val_resize_size: int = 256
    val_crop_size: int = 224
    crop_scale: tuple[float, float] | None = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    mirror: bool = True
    shift: float = 0.0
    rotation: float = 0.0
    grayscale: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0


PRESETS = {
    "imagenet": Preset(),
    # CUB-200-2011 as the paper's code augments it: birds stay recognizable in larger crops.
    "cub": Preset(
        crop_scale=(0.20, 1.0),
        crop_ratio=(0.80, 1.25),
        rotation=45,
        grayscale=0.2,
        brightness=0.20,
        contrast=0.20,
    ),
    # Handwritten digits: a mirrored or half-cropped digit is another digit or none, a slightly moved one is the same.
    "digits": Preset(
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        train_crop_size=32,
        val_resize_size=32,
        val_crop_size=32,
        crop_scale=None,
        mirror=False,
        shift=0.1,
    ),
    # Small photographs: moved by up to 4 of 32 pixels and mirrored, as is usual for CIFAR-10.
    "cifar10": Preset(
        train_crop_size=32,
        val_resize_size=32,
        val_crop_size=32,
        crop_scale=None,
        shift=0.125,
    ),
    # The same for CIFAR-100, normalized by its own colours, as is usual where distillation methods are compared.
    "cifar100": Preset(
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        train_crop_size=32,
        val_resize_size=32,
        val_crop_size=32,
        crop_scale=None,
        shift=0.125,
    ),
}


def chosen(name: str, mean: Sequence[float] | None, std: Sequence[float] | None) -> Preset:
    """The preset ``name`` with other colours: ``mean`` and ``std`` of three numbers each; None: its own."""
    preset = PRESETS[name]
    return replace(preset, mean=_of_three(mean or preset.mean), std=_of_three(std or preset.std))


def _of_three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue

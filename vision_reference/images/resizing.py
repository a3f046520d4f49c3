"""Resizing decoded pixels as they lie in memory: uint8, channels last."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.functional import InterpolationMode


def resize_pixels(pixels: Tensor, size: Sequence[int], mode: InterpolationMode) -> Tensor:
    """Pixels resized with antialiasing, in integer arithmetic as Pillow's: bilinear ones equal to a grey level.

    torchvision's transforms go through float32 on many CPUs, those with AVX-512 among them: that takes several times as
    long and rounds a fifth of the pixels otherwise.

    Args:
        pixels: (C, H, W) uint8.
        size: height and width of the result.
        mode: one of ``presets.TENSOR_INTERPOLATIONS``.

    Returns:
        (C, *size) uint8, channels last in memory if those of ``pixels`` are.
    """
    # The fast kernel looks at the strides: those of a batch of one must say so, too.
    batch = pixels.permute(1, 2, 0).unsqueeze(0).permute(0, 3, 1, 2)
    smooth = mode in (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
    return F.interpolate(batch, list(size), mode=mode.value, antialias=smooth)[0]


def scaled_size(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Height and width once the shorter side measures ``shorter``; the longer one is cut to whole pixels."""
    scale = min(height, width)
    return shorter * height // scale, shorter * width // scale


class ResizePixels:
    """``torchvision.transforms.Resize`` for uint8 tensors (C, H, W).

    Args:
        size: of the shorter side, or height and width.
        mode: one of ``presets.TENSOR_INTERPOLATIONS``.
    """

    def __init__(self, size: int | tuple[int, int], mode: InterpolationMode) -> None:
        self.size = size
        self.mode = mode

    def __call__(self, pixels: Tensor) -> Tensor:
        size = scaled_size(pixels.shape[1], pixels.shape[2], self.size) if isinstance(self.size, int) else self.size
        return pixels if tuple(pixels.shape[1:]) == size else resize_pixels(pixels, size, self.mode)


class RandomResizedCropPixels(transforms.RandomResizedCrop):
    """``torchvision.transforms.RandomResizedCrop`` for uint8 tensors (C, H, W); draws the same crops."""

    def forward(self, pixels: Tensor) -> Tensor:
        """A random crop of ``pixels``, resized."""
        top, left, height, width = self.get_params(pixels, self.scale, self.ratio)
        return resize_pixels(pixels[:, top : top + height, left : left + width], self.size, self.interpolation)

"""Augmentation with torchvision. A pipeline turns a decoded image into a uint8 tensor (C, H, W).

Normalization is not part of a pipeline: it runs once per batch on the training device (see ``torch_loader``), so that
workers hand over a quarter of the bytes. Only random erasing needs normalized pixels and brings its own.
"""

from collections.abc import Callable, Sequence

import torch
from torchvision import transforms as v1
from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode

from vision_reference.images.presets import Preset
from vision_reference.images.resizing import RandomResizedCropPixels, ResizePixels

Geometry = tuple[int, int, int, int, int]  # top, left, height, width of the crop in pixels of the file's image; flip


class Normalize:
    """uint8 pixels (..., C, H, W) to ``(pixel / 255 - mean) / std`` in float32."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device | None = None) -> None:
        means, stds = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
        self.factor = (1 / (255 * stds)).float().to(device)
        self.offset = (-means / stds).float().to(device)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        images = pixels.float()
        if images.dim() == 4 and images.is_contiguous(memory_format=torch.channels_last):
            # By rows of pixels: three numbers at a time would take ten times as long.
            batch, channels, height, width = images.shape
            rows = images.permute(0, 2, 3, 1).view(batch, height, width * channels)
            rows.mul_(self.factor.repeat(width)).add_(self.offset.repeat(width))
            return images
        return images.mul_(self.factor.view(-1, 1, 1)).add_(self.offset.view(-1, 1, 1))


def training_pipeline(
    preset: Preset,
    *,
    crop_size: int,
    interpolation: str = "bilinear",
    backend: str = "pil",
    use_v2: bool = False,
    auto_augment: str | None = None,
    ra_magnitude: int = 9,
    augmix_severity: int = 3,
    random_erase: float = 0.0,
) -> Callable:
    """Random training augmentation: image to uint8 (C, H, W); to normalized float32 if ``random_erase`` > 0.

    Args:
        crop_size: side of the result in pixels.
        interpolation: one of ``presets.INTERPOLATIONS``; of tensors one of ``presets.TENSOR_INTERPOLATIONS``.
        backend: "pil" augments PIL images, "tensor" uint8 tensors (C, H, W).
        use_v2: use ``torchvision.transforms.v2``.
        auto_augment: None, ra, ta_wide, augmix, or the name of an AutoAugment policy.
        random_erase: probability of erasing a rectangle, which becomes the mean colour.
    """
    T = v2 if use_v2 else v1
    mode = InterpolationMode(interpolation)
    steps = []
    if preset.crop_scale:
        crop = RandomResizedCropPixels if backend == "tensor" else T.RandomResizedCrop
        ranges = {"scale": preset.crop_scale, "ratio": preset.crop_ratio}
        steps.append(crop(crop_size, **ranges, interpolation=mode, antialias=True))
    else:
        steps.append(_resize(T, (crop_size, crop_size), mode, backend))
    if preset.shift:
        steps.append(T.RandomAffine(0, translate=(preset.shift, preset.shift)))
    if preset.mirror:
        steps.append(T.RandomHorizontalFlip())
    if preset.rotation:
        steps.append(T.RandomRotation(preset.rotation, interpolation=InterpolationMode.BILINEAR))
    if preset.grayscale:
        steps.append(T.RandomGrayscale(preset.grayscale))
    if preset.brightness or preset.contrast:
        steps.append(T.ColorJitter(brightness=preset.brightness, contrast=preset.contrast))
    if auto_augment:
        steps.append(_auto_augment(T, auto_augment, mode, ra_magnitude, augmix_severity))
    if backend == "pil":
        steps.append(T.PILToTensor())
    if random_erase:
        steps += [Normalize(preset.mean, preset.std), T.RandomErasing(random_erase)]
    return T.Compose(steps)


def drawn_geometry(preset: Preset, size: tuple[int, int]) -> Geometry:
    """Crop and flip that the preset's torchvision pipeline is about to draw from torch's generator.

    Draws the same numbers in the same order (``training_pipeline``; both generations of transforms agree).

    Args:
        size: height and width of the file's image in pixels.
    """
    top, left, height, width = 0, 0, *size
    if preset.crop_scale:
        shape_only = torch.empty(3, *size, device="meta")
        ranges = list(preset.crop_scale), list(preset.crop_ratio)
        top, left, height, width = v1.RandomResizedCrop.get_params(shape_only, *ranges)
    if preset.shift:
        shift = [preset.shift, preset.shift]
        v1.RandomAffine.get_params([0.0, 0.0], shift, None, None, [preset.train_crop_size] * 2)
    flip = preset.mirror and torch.rand(1).item() < 0.5
    return top, left, height, width, int(flip)


def evaluation_pipeline(
    *, resize_size: int, crop_size: int, interpolation: str = "bilinear", backend: str = "pil", use_v2: bool = False
) -> Callable:
    """Shorter side to ``resize_size``, centre crop of ``crop_size``; images as in ``training_pipeline``."""
    T = v2 if use_v2 else v1
    resize = _resize(T, resize_size, InterpolationMode(interpolation), backend)
    to_tensor = [T.PILToTensor()] if backend == "pil" else []
    return T.Compose([resize, T.CenterCrop(crop_size), *to_tensor])


def _resize(T, size: int | tuple[int, int], mode: InterpolationMode, backend: str) -> Callable:
    return ResizePixels(size, mode) if backend == "tensor" else T.Resize(size, interpolation=mode, antialias=True)


def _auto_augment(T, name: str, mode: InterpolationMode, magnitude: int, severity: int) -> Callable:
    if name == "ra":
        return T.RandAugment(interpolation=mode, magnitude=magnitude)
    if name == "ta_wide":
        return T.TrivialAugmentWide(interpolation=mode)
    if name == "augmix":
        return T.AugMix(interpolation=mode, severity=severity)
    return T.AutoAugment(policy=T.AutoAugmentPolicy(name), interpolation=mode)

"""What the DALI loader shows of an image: what is random about it, DALI's graph for it, and torch's way to finish it.

A view that only cuts out, resizes and mirrors needs nothing of DALI but its decoder: on the CPU torch's integer kernel
resizes four times as fast as DALI does, and to Pillow's pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode, center_crop

from vision_reference.errors import UserError
from vision_reference.images.dali_geometry import centre_crop, movements, random_crops
from vision_reference.images.presets import Preset
from vision_reference.images.resizing import ResizePixels, resize_pixels
from vision_reference.images.seeds import combine_seeds, uniform_numbers


@dataclass(frozen=True)
class TrainingView:
    """A preset's random augmentation as DALI does it; ``crop_size`` is the side of the result in pixels."""

    preset: Preset
    crop_size: int
    interpolation: str = "bilinear"

    @property
    def decoder_arguments(self) -> tuple[str, ...]:
        """Names of those arguments that say what to decode of an image."""
        return ("start", "shape") if self.preset.crop_scale else ()

    @property
    def needs_dali_after_decoding(self) -> bool:
        """Whether more happens than cropping, resizing and mirroring."""
        preset = self.preset
        return any((preset.rotation, preset.shift, preset.grayscale, preset.brightness, preset.contrast))

    def arguments(self, sizes: np.ndarray, seeds: np.ndarray, indices: np.ndarray) -> dict[str, np.ndarray]:
        """What is chosen for each sample: {name: (B, ...)}.

        Args:
            sizes: (B, 2) heights and widths in pixels.
            seeds: (B,) uint64.
            indices: (B,) numbers of the samples; they make no difference here.
        """
        preset, values = self.preset, {}
        # One stream of random numbers per purpose, so that no two choices move together.
        crop_seeds, move_seeds, choice_seeds = (_stream(seeds, number) for number in range(3))
        if preset.crop_scale:
            values["start"], values["shape"] = random_crops(crop_seeds, sizes, preset.crop_scale, preset.crop_ratio)
        if preset.rotation or preset.shift:
            values["move"] = movements(move_seeds, self.crop_size, preset.rotation, preset.shift)
        mirror, grey, bright, contrast = uniform_numbers(choice_seeds, 4).T
        if preset.mirror:
            values["mirror"] = (mirror < 0.5).astype(np.int32)
        if preset.grayscale:
            values["saturation"] = (grey >= preset.grayscale).astype(np.float32)
        if preset.brightness or preset.contrast:
            values["brightness"] = (1 + preset.brightness * (2 * bright - 1)).astype(np.float32)
            values["contrast"] = (1 + preset.contrast * (2 * contrast - 1)).astype(np.float32)
        return values

    def finish(self, decoded: Tensor, values: Mapping[str, np.ndarray]) -> Tensor:
        """Pixels (C, crop_size, crop_size) from the decoded part of one image, (C, h, w) uint8, and its arguments."""
        pixels = resize_pixels(decoded, [self.crop_size] * 2, InterpolationMode(self.interpolation))
        return pixels.flip(-1) if values.get("mirror") else pixels

    def pixels(self, dali, images, values: dict, to_device):
        """DALI's graph from decoded images to pixels (0..255) of ``crop_size``, mirrored later, while normalizing."""
        fn, types = dali.fn, dali.types
        images = fn.resize(images, size=[self.crop_size] * 2, **_filter(types, self.interpolation))
        images = to_device(images)
        if "move" in values:
            images = fn.warp_affine(images, matrix=values["move"], fill_value=0, interp_type=types.INTERP_LINEAR)
        if "saturation" in values:
            images = fn.hsv(images, saturation=values["saturation"])
        if "brightness" in values:
            # torchvision's contrast turns about the mean grey of each image. Arithmetic, because DALI's own operator
            # takes no pivot from the GPU.
            grey = fn.color_space_conversion(images, image_type=types.RGB, output_type=types.GRAY)
            pivot, bright, contrast = (
                fn.reductions.mean(grey),
                *map(to_device, (values["brightness"], values["contrast"])),
            )
            images = dali.math.clamp(bright * (pivot + contrast * (images - pivot)), 0.0, 255.0)
        return images


@dataclass(frozen=True)
class StoredView(TrainingView):
    """A training view whose crop and flip are those that a teacher saw; all further choices follow from the seed.

    Boxes that were drawn by torchvision can thus be decoded here, as regions of interest; pixels then differ by
    rounding in decoder and filter (on smooth images by two grey levels at most and a fifth of one in the mean).

    Args:
        views: (M, N) records ``seed``, ``box``, ``flip`` of N samples.
    """

    views: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))

    def arguments(self, sizes: np.ndarray, seeds: np.ndarray, indices: np.ndarray) -> dict[str, np.ndarray]:
        """As ``TrainingView.arguments``, crop and flip from the stored view that has the seed."""
        values = super().arguments(sizes, seeds, indices)
        number = (self.views["seed"][:, indices] == seeds).argmax(axis=0)
        stored = self.views[number, indices]
        if "start" in values:
            values["start"], values["shape"] = stored["box"][:, :2].copy(), stored["box"][:, 2:].copy()
        if "mirror" in values:
            values["mirror"] = stored["flip"].astype(np.int32)
        return values


@dataclass(frozen=True)
class EvaluationView:
    """Shorter side to ``resize_size``, centre crop of ``crop_size``, rounded as torchvision rounds.

    Raises:
        UserError: the crop is larger than the resized image.
    """

    resize_size: int
    crop_size: int
    interpolation: str = "bilinear"

    decoder_arguments = ()
    needs_dali_after_decoding = False

    def __post_init__(self) -> None:
        if self.crop_size > self.resize_size:
            raise UserError(
                f"--loader dali does not pad: --val-crop-size {self.crop_size} must not exceed "
                f"--val-resize-size {self.resize_size}"
            )

    def arguments(self, sizes: np.ndarray, seeds: np.ndarray, indices: np.ndarray) -> dict[str, np.ndarray]:
        """As ``TrainingView.arguments``; nothing is random, and only DALI's graph needs them."""
        start, end = centre_crop(sizes, self.resize_size, self.crop_size)
        return {"start": start, "end": end}

    def finish(self, decoded: Tensor, values: Mapping[str, np.ndarray]) -> Tensor:
        """As ``TrainingView.finish``."""
        resize = ResizePixels(self.resize_size, InterpolationMode(self.interpolation))
        return center_crop(resize(decoded), self.crop_size)

    def pixels(self, dali, images, values: dict, to_device):
        """As ``TrainingView.pixels``; only what is left of the image is resized."""
        fn, types = dali.fn, dali.types
        region = {"roi_start": values["start"], "roi_end": values["end"]}
        images = fn.resize(images, size=[self.crop_size] * 2, **region, **_filter(types, self.interpolation))
        return to_device(images)


def _stream(seeds: np.ndarray, number: int) -> np.ndarray:
    return seeds ^ np.uint64(combine_seeds(number))


def _filter(types, interpolation: str) -> dict:
    """Arguments of DALI's resize for torchvision's name of the filter (with antialiasing, as on images there)."""
    if interpolation.startswith("nearest"):  # DALI's takes the pixel under the middle, as torch's nearest-exact
        return {"interp_type": types.INTERP_NN}
    names = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
    return {"interp_type": names[interpolation], "antialias": True}

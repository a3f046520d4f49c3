"""Random numbers, crops and small movements for whole batches, as functions of each sample's seed alone.

The DALI loader computes here what its pipeline then only executes; DALI's own random operators depend on the place in
the batch and on how many batches came before, so neither a resumed run nor another number of processes would repeat
them.
"""

import math

import numpy as np

from vision_reference.images.seeds import uniform_numbers

_ATTEMPTS = 100  # as DALI's own random crop, which the paper's students used


def random_crops(
    seeds: np.ndarray, sizes: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Random-area crops (Szegedy et al. 2014, "Going deeper with convolutions", section 6).

    The share of the area is uniform, the logarithm of the aspect ratio too. A sample none of whose 100 draws fits takes
    the largest centred crop with an allowed aspect ratio.

    Args:
        seeds: (B,) uint64.
        sizes: (B, 2) heights and widths in pixels.
        scale: smallest and largest share of the area.
        ratio: smallest and largest width / height.

    Returns:
        First pixel (B, 2) and size (B, 2) of the crops as int32, rows before columns.
    """
    draws = uniform_numbers(seeds, 2 * _ATTEMPTS + 2)
    heights, widths = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)
    areas = heights * widths * (scale[0] + (scale[1] - scale[0]) * draws[:, :_ATTEMPTS])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratios = np.exp(low + (high - low) * draws[:, _ATTEMPTS : 2 * _ATTEMPTS])
    crops = np.stack([np.rint(np.sqrt(areas / ratios)), np.rint(np.sqrt(areas * ratios))], axis=-1)  # (B, attempts, 2)
    fits = ((crops >= 1) & (crops <= sizes[:, None, :])).all(axis=-1)
    first = fits.argmax(axis=1)
    shapes = crops[np.arange(len(seeds)), first]
    starts = np.floor(draws[:, -2:] * (sizes - shapes + 1))
    whole = np.stack(
        [
            np.minimum(heights, np.maximum(1, np.rint(widths / ratio[0]))),
            np.minimum(widths, np.maximum(1, np.rint(heights * ratio[1]))),
        ],
        axis=-1,
    )[:, 0]
    fitted = fits.any(axis=1, keepdims=True)
    shapes = np.where(fitted, shapes, whole)
    starts = np.where(fitted, starts, (sizes - whole) // 2)
    return starts.astype(np.int32), shapes.astype(np.int32)


def movements(seeds: np.ndarray, side: int, degrees: float, shift: float) -> np.ndarray:
    """Random rotations about the centre and whole-pixel translations of square images.

    Args:
        seeds: (B,) uint64.
        side: of the images in pixels.
        degrees: rotations are uniform between minus and plus this.
        shift: translations are uniform between minus and plus this share of the side, in each direction.

    Returns:
        (B, 2, 3) float32 affine maps from target to source coordinates (x, y), pixel corners at whole numbers.
    """
    angle, across, down = (uniform_numbers(seeds, 3) * 2 - 1).T
    angle = np.deg2rad(angle * degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = (side / 2 + np.rint(part * shift * side) for part in (across, down))  # where the centre goes
    centre = side / 2
    rows = [[cos, sin, centre - cos * x - sin * y], [-sin, cos, centre + sin * x - cos * y]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=1).astype(np.float32)


def centre_crop(sizes: np.ndarray, resize_size: int, crop_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of each image that survives "shorter side to ``resize_size``, centre crop of ``crop_size``".

    Rounds as torchvision's ``Resize`` (the longer side is cut to whole pixels) and ``CenterCrop`` (half pixels go to
    the even neighbour) do, so that both loaders evaluate the same pixels.

    Args:
        sizes: (B, 2) heights and widths in pixels.

    Returns:
        Start (B, 2) and end (B, 2) in pixels of the original image, as float32, rows before columns.
    """
    shorter = sizes.min(axis=1, keepdims=True)
    resized = resize_size * sizes // shorter
    start = np.rint((resized - crop_size) / 2)
    scale = sizes / resized
    return (start * scale).astype(np.float32), ((start + crop_size) * scale).astype(np.float32)

"""The views that a store of soft labels holds: which ones a process makes, and the crop and flip of each."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import RandomAffine, RandomResizedCrop

from vision_reference.images.dali_loader import DaliLoader, Underway
from vision_reference.images.presets import Preset
from vision_reference.images.samplers import Key, seeded, view_seed
from vision_reference.images.torch_loader import ImageDataset
from vision_reference.soft_labels.store import Block

Geometry = tuple[int, int, int, int, int]  # top, left, height, width of the crop in pixels of the file's image; flip


class ViewBatchSampler:
    """Batches of ``(index, seed)`` keys for some blocks of a store, one block after another.

    The batches of a block are always the same, whichever process makes it and whatever was made before.

    Args:
        blocks: to be made.
        seed: of the store.
        batch_size: images per batch; the last one of a block may be smaller.
    """

    def __init__(self, blocks: Sequence[Block], seed: int, batch_size: int) -> None:
        self.blocks = blocks
        self.seed = seed
        self.batch_size = batch_size

    def __len__(self) -> int:
        return sum(self.batches_of(block) for block in self.blocks)

    def batches_of(self, block: Block) -> int:
        """Number of batches of ``block``."""
        return -(-(block.stop - block.start) // self.batch_size)

    def epoch(self, number: int = 0) -> Iterator[list[Key]]:
        """All batches; every epoch has the same."""
        for block in self.blocks:
            for start in range(block.start, block.stop, self.batch_size):
                indices = range(start, min(start + self.batch_size, block.stop))
                yield [(index, view_seed(self.seed, block.view, index)) for index in indices]


class KeyBatchSampler:
    """Batches of given ``(index, seed)`` keys."""

    def __init__(self, keys: Sequence[Key], batch_size: int) -> None:
        self.keys = keys
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.keys) // self.batch_size)

    def epoch(self, number: int = 0) -> Iterator[list[Key]]:
        """All batches; every epoch has the same."""
        for start in range(0, len(self.keys), self.batch_size):
            yield list(self.keys[start : start + self.batch_size])


class ViewDataset(ImageDataset):
    """(pixels, geometry (5,) int32) for keys ``(index, seed)``: the images of ``ImageDataset`` and their crop and flip.

    Args:
        preset: whose augmentation ``transform`` is.
    """

    def __init__(self, *args: Any, preset: Preset) -> None:
        super().__init__(*args)
        self.preset = preset

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        index, seed = key
        image = self.image(index)
        size = (image.shape[1], image.shape[2]) if isinstance(image, Tensor) else (image.height, image.width)
        with seeded(seed):
            geometry = drawn_geometry(self.preset, size)
        with seeded(seed):
            return self.transform(image), torch.tensor(geometry, dtype=torch.int32)


class DaliViewLoader(DaliLoader):
    """Batches of (images, geometry (B, 5) int32): those of ``DaliLoader`` with their crop and flip."""

    def targets(self, batch: Underway) -> Tensor:
        """Geometry (B, 5) of a batch."""
        values, whole = batch.values, batch.sizes
        starts, shapes = values.get("start", np.zeros_like(whole)), values.get("shape", whole)
        flips = values.get("mirror", np.zeros(len(whole), np.int32))
        return torch.from_numpy(np.concatenate([starts, shapes, flips[:, None]], axis=1).astype(np.int32))


def drawn_geometry(preset: Preset, size: tuple[int, int]) -> Geometry:
    """Crop and flip that the preset's torchvision pipeline is about to draw from torch's generator.

    Draws the same numbers in the same order (``pipelines.training_pipeline``; both generations of transforms agree).

    Args:
        size: height and width of the file's image in pixels.
    """
    top, left, height, width = 0, 0, *size
    if preset.crop_scale:
        shape_only = torch.empty(3, *size, device="meta")
        ranges = list(preset.crop_scale), list(preset.crop_ratio)
        top, left, height, width = RandomResizedCrop.get_params(shape_only, *ranges)
    if preset.shift:
        shift = [preset.shift, preset.shift]
        RandomAffine.get_params([0.0, 0.0], shift, None, None, [preset.train_crop_size] * 2)
    flip = preset.mirror and torch.rand(1).item() < 0.5
    return top, left, height, width, int(flip)

"""The crop and flip that a store records are those of the pixels."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as TF
from torchvision.transforms.functional import InterpolationMode

from vision_reference.images.decoding import read_image, read_pixels
from vision_reference.images.pipelines import training_pipeline
from vision_reference.images.presets import PRESETS
from vision_reference.images.resizing import resize_pixels
from vision_reference.images.samplers import ViewBatchSampler
from vision_reference.images.seeds import view_seed
from vision_reference.images.torch_loader import ViewDataset
from vision_reference.soft_labels.store import all_blocks


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number, (height, width) in enumerate(((40, 60), (90, 50), (8, 200))):
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return [(str(folder / f"{number}.png"), 0) for number in range(3)]


@pytest.mark.parametrize("use_v2", [False, True])
@pytest.mark.parametrize("backend", ["pil", "tensor"])
@pytest.mark.parametrize("preset", ["imagenet", "cifar10"])
def test_cropping_and_flipping_by_the_record_gives_the_very_pixels(samples, preset, backend, use_v2):
    pipeline = training_pipeline(PRESETS[preset], crop_size=24, backend=backend, use_v2=use_v2)
    read = read_pixels if backend == "tensor" else read_image
    dataset = ViewDataset(samples, pipeline, read, preset=PRESETS[preset])
    unmoved = training_pipeline(
        replace(PRESETS[preset], mirror=False),
        crop_size=24, backend=backend, use_v2=use_v2,
    )  # fmt: skip
    unflipped = ViewDataset(samples, unmoved, read, preset=PRESETS[preset])
    flips = 0
    for seed in range(20):
        for index, (path, _) in enumerate(samples):
            pixels, geometry = dataset[index, seed]
            *box, flip = geometry.tolist()
            flips += flip
            if preset == "imagenet":
                image = TF.crop(read(path), *box)
                if backend == "tensor":
                    expected = resize_pixels(image, [24, 24], InterpolationMode.BILINEAR)
                else:
                    expected = TF.pil_to_tensor(TF.resize(image, [24, 24]))
                expected = TF.hflip(expected) if flip else expected
            else:
                expected, _ = unflipped[index, seed]
                expected = TF.hflip(expected) if flip else expected
                height, width = read_pixels(path).shape[1:]
                assert box == [0, 0, height, width]
            assert torch.equal(pixels, expected)
    assert 10 < flips < 50


def test_blocks_are_cut_into_the_same_batches_whoever_makes_them():
    plan = {"views": {"count": 2}, "data": {"images": 25}, "block": 10}
    blocks = all_blocks(plan)
    assert [(block.view, block.start, block.stop) for block in blocks] == [
        (0, 0, 10), (0, 10, 20), (0, 20, 25), (1, 0, 10), (1, 10, 20), (1, 20, 25),
    ]  # fmt: skip
    parts = [(block.view, range(block.start, block.stop)) for block in blocks]
    everything = list(ViewBatchSampler(parts, 4, partial(view_seed, 3)).epoch())
    assert [len(keys) for keys in everything] == [4, 4, 2, 4, 4, 2, 4, 1] * 2
    assert everything[0][1] == (1, view_seed(3, 0, 1))
    shares = [list(ViewBatchSampler(parts[rank::2], 4, partial(view_seed, 3)).epoch()) for rank in (0, 1)]
    assert sorted(shares[0] + shares[1]) == sorted(everything)
    assert len(ViewBatchSampler(parts, 4, partial(view_seed, 3))) == 16

"""Integer resizing against Pillow's, and torchvision's own transforms for sizes and random crops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as F
from torchvision.transforms.functional import InterpolationMode

from vision_reference.images.resizing import RandomResizedCropPixels, ResizePixels, resize_pixels, scaled_size
from vision_reference.images.seeds import seeded

FILTERS = {InterpolationMode.BILINEAR: Image.Resampling.BILINEAR, InterpolationMode.BICUBIC: Image.Resampling.BICUBIC}


def noise(height, width, seed=0):
    """Channels last in memory, as decoders leave images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=generator).permute(2, 0, 1)


def assert_near(pixels, expected, mode):
    difference = (pixels.int() - expected.int()).abs()
    if mode is InterpolationMode.BILINEAR:
        assert difference.max() <= 1
    else:  # newer versions of torch treat the overshoot of this filter in their own way
        assert difference.max() <= 20
        assert difference.float().mean() < 1


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 150), st.integers(2, 150)),
    size=st.tuples(st.integers(2, 90), st.integers(2, 90)),
    mode=st.sampled_from(list(FILTERS)),
    planes=st.booleans(),
)
def test_pixels_are_pillows_in_either_layout(shape, size, mode, planes):
    pixels = noise(*shape)
    expected = F.pil_to_tensor(F.to_pil_image(pixels).resize(size[::-1], FILTERS[mode]))
    resized = resize_pixels(pixels.contiguous() if planes else pixels, size, mode)
    assert resized.dtype == torch.uint8
    assert_near(resized, expected, mode)


def test_a_crop_of_a_decoded_image_stays_channels_last():
    part = noise(60, 80)[:, 5:45, 10:60]
    resized = resize_pixels(part, (24, 24), InterpolationMode.BILINEAR)
    assert resized.stride() == (1, 72, 3)
    assert torch.equal(resized, resize_pixels(part.contiguous(), (24, 24), InterpolationMode.BILINEAR))


@pytest.mark.parametrize("mode", [InterpolationMode.NEAREST, InterpolationMode.NEAREST_EXACT])
def test_nearest_takes_torchvisions_pixels(mode):
    pixels = noise(31, 45)
    assert torch.equal(resize_pixels(pixels, (17, 60), mode), F.resize(pixels, [17, 60], mode))


@given(height=st.integers(1, 2000), width=st.integers(1, 2000), shorter=st.integers(1, 600))
def test_sizes_are_those_of_torchvisions_resize(height, width, shorter):
    expected = F._compute_resized_output_size((height, width), [shorter])
    assert list(scaled_size(height, width, shorter)) == expected


def test_an_image_of_the_right_size_is_left_alone():
    pixels = noise(40, 50)
    assert ResizePixels(40, InterpolationMode.BILINEAR)(pixels) is pixels
    assert ResizePixels((40, 50), InterpolationMode.BILINEAR)(pixels) is pixels
    assert ResizePixels((50, 50), InterpolationMode.BILINEAR)(pixels).shape == (3, 50, 50)


@pytest.mark.parametrize("mode", list(FILTERS))
def test_random_crops_are_torchvisions(mode):
    pixels = noise(90, 130)
    ours = RandomResizedCropPixels(48, scale=(0.2, 1.0), ratio=(0.8, 1.25), interpolation=mode, antialias=True)
    theirs = transforms.RandomResizedCrop(48, scale=(0.2, 1.0), ratio=(0.8, 1.25), interpolation=mode)
    for seed in range(8):
        with seeded(seed):
            resized = ours(pixels)
        with seeded(seed):
            expected = F.pil_to_tensor(theirs(F.to_pil_image(pixels)))
        assert_near(resized, expected, mode)
        assert (resized == expected).float().mean() > (0.6 if mode is InterpolationMode.BILINEAR else 0.3)

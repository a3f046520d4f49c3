"""Crops and movements for the DALI loader: inside the image, of the wanted distribution, functions of the seed."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F

from vision_reference.images import dali_geometry as geometry

SEEDS = np.arange(20_000, dtype=np.uint64) * np.uint64(0x1234567)


def test_crops_lie_inside_with_the_wanted_area_and_shape():
    sizes = np.tile([[375, 500]], (len(SEEDS), 1))
    starts, shapes = geometry.random_crops(SEEDS, sizes, (0.2, 0.9), (0.8, 1.25))
    assert starts.dtype == shapes.dtype == np.int32
    assert (starts >= 0).all()
    assert (starts + shapes <= sizes).all()
    assert (shapes >= 1).all()
    areas = shapes.prod(axis=1) / (375 * 500)
    ratios = shapes[:, 1] / shapes[:, 0]
    assert 0.19 < areas.min() < 0.21
    assert ratios.min() == pytest.approx(0.8, abs=0.01)
    assert ratios.max() == pytest.approx(1.25, abs=0.01)
    # Uniform in area where every shape fits; the largest crops fit less often.
    assert np.histogram(areas, bins=4, range=(0.2, 0.6))[0].std() < 150
    assert abs(np.log(ratios[areas < 0.5]).mean()) < 0.01
    room = (sizes - shapes)[areas < 0.5]
    assert np.abs((starts[areas < 0.5] / room).mean(axis=0) - 0.5).max() < 0.01


def test_an_image_that_no_draw_fits_gives_its_largest_centred_crop_of_allowed_shape():
    starts, shapes = geometry.random_crops(SEEDS[:2], np.array([[10, 1000], [1000, 10]]), (0.9, 1.0), (3 / 4, 4 / 3))
    assert shapes.tolist() == [[10, 13], [13, 10]]
    assert starts.tolist() == [[0, 493], [493, 0]]


def test_a_single_pixel_is_its_own_crop():
    starts, shapes = geometry.random_crops(SEEDS[:50], np.ones((50, 2), int), (0.08, 1.0), (3 / 4, 4 / 3))
    assert (shapes == 1).all()
    assert (starts == 0).all()


def test_rotations_keep_the_centre_and_lengths_and_stay_within_the_angle():
    maps = geometry.movements(SEEDS, 224, 45, 0.0)
    assert maps.shape == (20_000, 2, 3)
    centre = maps @ np.array([112, 112, 1])
    assert np.abs(centre - 112).max() < 1e-3
    angles = np.degrees(np.arctan2(maps[:, 0, 1], maps[:, 0, 0]))
    assert np.abs(angles).max() <= 45.001
    assert angles.std() == pytest.approx(90 / math.sqrt(12), rel=0.02)
    assert np.abs(np.linalg.det(maps[:, :, :2].astype(np.float64)) - 1).max() < 1e-5


def test_shifts_are_whole_pixels_within_the_share_of_the_side_in_both_directions():
    maps = geometry.movements(SEEDS, 32, 0.0, 0.1)
    assert np.array_equal(maps[:, :, :2], np.tile(np.eye(2, dtype=np.float32), (len(maps), 1, 1)))
    assert set(np.unique(maps[:, :, 2]).tolist()) == {-3, -2, -1, 0, 1, 2, 3}


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 500), (257, 301), (32, 32), (640, 427)])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (342, 299), (36, 32)])
def test_the_evaluation_region_is_the_one_torchvision_cuts_out(size, resize, crop):
    width, height = size
    start, end = geometry.centre_crop(np.array([[height, width]]), resize, crop)
    # Independent truth: torchvision resizes and crops an image whose pixels tell where they come from.
    columns = torch.arange(width, dtype=torch.float32).expand(1, height, width)
    rows = torch.arange(height, dtype=torch.float32).view(1, height, 1).expand(1, height, width)
    where = F.center_crop(F.resize(torch.cat([rows, columns]), resize, antialias=True), crop)
    resized = Image.new("L", size)
    resized = F.resize(resized, resize)
    assert end[0] - start[0] == pytest.approx([crop * height / resized.height, crop * width / resized.width], rel=1e-5)
    middle = crop // 2
    expected = start[0] + (end[0] - start[0]) * (middle + 0.5) / crop - 0.5
    assert where[:, middle, middle].numpy() == pytest.approx(expected, abs=0.1)

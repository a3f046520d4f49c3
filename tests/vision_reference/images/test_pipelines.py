"""Augmentation against torchvision's own transforms, applied by hand."""

import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import functional as TF
from torchvision.transforms.functional import InterpolationMode

from vision_reference.images.pipelines import Normalize, evaluation_pipeline, training_pipeline
from vision_reference.images.presets import PRESETS
from vision_reference.images.seeds import seeded


@pytest.fixture
def photo():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (3, 9, 13), dtype=torch.uint8, generator=generator)
    return TF.to_pil_image(coarse).resize((130, 90), Image.Resampling.BICUBIC)


def test_imagenet_training_pixels_are_those_of_torchvisions_transforms(photo):
    ours = training_pipeline(PRESETS["imagenet"], crop_size=48)
    reference = T.Compose([T.RandomResizedCrop(48, antialias=True), T.RandomHorizontalFlip(0.5), T.PILToTensor()])
    flips = set()
    for seed in range(8):
        with seeded(seed):
            pixels = ours(photo)
        torch.manual_seed(seed)
        expected = reference(photo)
        assert torch.equal(pixels, expected)
        flips.add(torch.equal(pixels, pixels.flip(-1)))
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 48, 48)


def test_evaluation_pixels_are_resize_then_centre_crop_then_normalization(photo):
    pixels = evaluation_pipeline(resize_size=64, crop_size=48)(photo)
    expected = T.Compose(
        [T.Resize(64), T.CenterCrop(48), T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    )(photo)
    preset = PRESETS["imagenet"]
    torch.testing.assert_close(Normalize(preset.mean, preset.std)(pixels), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("use_v2", [False, True])
@pytest.mark.parametrize("backend", ["pil", "tensor"])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_backend_and_version_gives_uint8_of_the_crop_size(photo, preset, backend, use_v2):
    style = {"backend": backend, "use_v2": use_v2}
    image = photo if backend == "pil" else TF.pil_to_tensor(photo)
    train = training_pipeline(PRESETS[preset], crop_size=32, **style)(image)
    val = evaluation_pipeline(resize_size=40, crop_size=32, **style)(image)
    for pixels in (train, val):
        assert type(pixels) is torch.Tensor
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (3, 32, 32)


@pytest.mark.parametrize("policy", ["ra", "ta_wide", "augmix", "imagenet", "cifar10", "svhn"])
@pytest.mark.parametrize("use_v2", [False, True])
def test_every_auto_augment_policy_runs_on_both_backends(photo, policy, use_v2):
    for backend, image in (("pil", photo), ("tensor", TF.pil_to_tensor(photo))):
        pipeline = training_pipeline(
            PRESETS["imagenet"], crop_size=32, backend=backend, use_v2=use_v2, auto_augment=policy
        )
        assert pipeline(image).shape == (3, 32, 32)


def test_random_erasing_fills_with_the_mean_colour_of_normalized_pixels(photo):
    pipeline = training_pipeline(PRESETS["imagenet"], crop_size=32, random_erase=1.0)
    with seeded(1):
        pixels = pipeline(photo)
    assert pixels.dtype == torch.float32
    assert (pixels == 0).all(dim=0).sum() > 8


def test_digits_are_never_mirrored_and_only_move():
    # A left-right ramp: mirroring would reverse its order.
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8).expand(3, 32, 32)
    pipeline = training_pipeline(PRESETS["digits"], crop_size=32)
    moved = 0
    for seed in range(40):
        with seeded(seed):
            row = pipeline(TF.to_pil_image(ramp))[0, 16].int()
        inside = row[row > 0]
        assert (inside.diff() == 8).all()
        moved += not torch.equal(row, ramp[0, 16].int())
    assert moved > 20


def test_cub_preset_has_the_papers_ranges():
    steps = {type(step).__name__: step for step in training_pipeline(PRESETS["cub"], crop_size=224).transforms}
    crop, jitter, rotation = steps["RandomResizedCrop"], steps["ColorJitter"], steps["RandomRotation"]
    assert (tuple(crop.scale), tuple(crop.ratio)) == ((0.20, 1.0), (0.80, 1.25))
    assert rotation.degrees == [-45.0, 45.0]
    assert rotation.interpolation is InterpolationMode.BILINEAR
    assert steps["RandomGrayscale"].p == 0.2
    assert (jitter.brightness, jitter.contrast) == ((0.8, 1.2), (0.8, 1.2))
    assert jitter.saturation is None
    assert jitter.hue is None
    assert "RandomHorizontalFlip" in steps

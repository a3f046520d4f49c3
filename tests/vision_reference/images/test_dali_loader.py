"""The DALI loader: torchvision's evaluation pixels, the samplers' order, and batches that can be repeated exactly."""

import builtins

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F

from vision_reference.errors import UserError
from vision_reference.images import dali_loader
from vision_reference.images.dali_loader import DaliLoader
from vision_reference.images.dali_views import EvaluationView, TrainingView
from vision_reference.images.folders import ImageDataset
from vision_reference.images.pipelines import Normalize, evaluation_pipeline
from vision_reference.images.presets import PRESETS, Preset
from vision_reference.images.samplers import EvalBatchSampler, TrainBatchSampler
from vision_reference.loaders import TorchvisionLoader

pytest.importorskip("nvidia.dali.plugin.pytorch")

CPU = torch.device("cpu")
PLAIN = Preset(mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3)  # batches then hold pixel values


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Seventeen smooth images of various sizes and kinds; the label is the number of the image."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    found = []
    for number in range(17):
        width, height = int(generator.integers(40, 120)), int(generator.integers(40, 120))
        coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        path = folder / f"{number}.{('jpg', 'png')[number % 5 == 0]}"
        image.convert("L" if number % 7 == 3 else "RGB").save(path)
        found.append((str(path), number))
    return found


def loader(samples, batches, view, preset=PLAIN, **options):
    settings = {
        "threads": 2,
        "mean": preset.mean,
        "std": preset.std,
        "device": CPU,
        "memory_format": torch.contiguous_format,
        "decode_on": "cpu",
        **options,
    }
    return DaliLoader(samples, batches, view, **settings)


def training(samples, *, preset=PLAIN, side=32, batch=4, rank=0, world_size=1, seed=3, epoch=0, **options):
    batches = TrainBatchSampler(len(samples), batch, seed=seed, rank=rank, world_size=world_size)
    made = loader(samples, batches, TrainingView(preset, side), preset, **options)
    made.set_epoch(epoch)
    return made


@pytest.mark.parametrize("finish_with", ["torch", "dali"])  # "dali" is what images decoded on a GPU go through
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_shows_torchvisions_pixels_in_the_same_order_layout_and_shape(
    samples, memory_format, interpolation, finish_with
):
    preset = PRESETS["imagenet"]
    ours = loader(
        samples,
        EvalBatchSampler(len(samples), 5),
        EvaluationView(48, 40, interpolation),
        preset,
        memory_format=memory_format,
        finish_with=finish_with,
    )
    assert ours.finish_with == finish_with
    pipeline = evaluation_pipeline(resize_size=48, crop_size=40, interpolation=interpolation)
    theirs = TorchvisionLoader(
        ImageDataset(samples, [], pipeline),
        EvalBatchSampler(len(samples), 5),
        workers=0,
        normalize=Normalize(preset.mean, preset.std),
        device=CPU,
        memory_format=memory_format,
    )
    assert len(ours) == len(theirs) == 4
    for (images, labels), (expected, expected_labels) in zip(ours, theirs, strict=True):
        assert torch.equal(labels, expected_labels)
        assert images.shape == expected.shape
        assert images.dtype == expected.dtype
        assert images.stride() == expected.stride()
        difference = (images - expected).abs()
        # One grey level is 0.017 to 0.018; a shift by one pixel would cost far more than these bounds.
        mean, most = {"torch": (0.0005, 0.018), "dali": (0.01, 0.1)}[finish_with]
        assert difference.mean() < mean
        assert difference.median() < 0.005
        assert difference.max() < most


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_over_all_processes_evaluation_sees_every_image_once(samples, world_size):
    labels = []
    for rank in range(world_size):
        batches = EvalBatchSampler(len(samples), 4, rank=rank, world_size=world_size)
        made = loader(samples, batches, EvaluationView(32, 32))
        seen = [part for _, part in made]
        assert len(seen) == len(made)
        labels += torch.cat(seen).tolist()
    assert sorted(labels) == list(range(17))


@pytest.mark.parametrize(
    "preset", [PRESETS["imagenet"], PRESETS["cub"], PRESETS["digits"]], ids=["imagenet", "cub", "digits"]
)
def test_the_pixels_of_a_training_image_depend_on_seed_epoch_and_image_alone(samples, preset):
    def by_label(*loaders):
        return {int(label): image for made in loaders for batch in made for image, label in zip(*batch, strict=True)}

    alone = by_label(training(samples, preset=preset, epoch=2))
    shared = by_label(*(training(samples, preset=preset, epoch=2, batch=3, rank=rank, world_size=2) for rank in (0, 1)))
    assert sorted(alone) == sorted(shared) == list(range(17))
    assert all(torch.equal(alone[label], shared[label]) for label in alone)
    for other in (training(samples, preset=preset, epoch=1), training(samples, preset=preset, epoch=2, seed=4)):
        changed = by_label(other)
        assert sum(not torch.equal(alone[label], changed[label]) for label in alone) >= 16


def test_epochs_follow_the_samplers_order_and_a_resumed_run_repeats_them_exactly(samples):
    straight = training(samples)
    epochs = []
    for epoch in range(3):
        straight.set_epoch(epoch)
        epochs.append([(images.clone(), labels) for images, labels in straight])
    orders = [torch.cat([labels for _, labels in epoch]).tolist() for epoch in epochs]
    assert all(sorted(order) == list(range(17)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert [len(labels) for _, labels in epochs[0]] == [4, 4, 4, 3, 2]
    assert straight.step_sizes == [4, 4, 4, 3, 2]
    resumed = list(training(samples, epoch=2))
    assert all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(epochs[2], resumed, strict=True))


def test_in_inference_mode_the_batches_are_the_same(samples):
    made = loader(samples, EvalBatchSampler(len(samples), 5), EvaluationView(48, 40))
    outside = [images for images, _ in made]
    with torch.inference_mode():
        inside = [images for images, _ in made]
    assert all(torch.equal(images, others) for images, others in zip(outside, inside, strict=True))


def test_an_iteration_that_was_broken_off_leaves_no_trace_in_the_next(samples):
    made = training(samples)
    whole = [labels.tolist() for _, labels in made]
    next(iter(made))
    assert [labels.tolist() for _, labels in made] == whole


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_torch_and_dali_finish_a_training_image_alike(samples, interpolation):
    def shown(finish_with):
        batches = TrainBatchSampler(len(samples), 4, seed=3)
        view = TrainingView(PRESETS["imagenet"], 32, interpolation)
        made = loader(samples, batches, view, finish_with=finish_with)
        return [torch.cat(parts) for parts in zip(*made, strict=True)]

    (images, labels), (others, same_labels) = shown("torch"), shown("dali")
    assert torch.equal(labels, same_labels)
    assert (images - others).abs().max() <= 3  # grey levels
    assert (images - others).abs().mean() < 0.5


@pytest.mark.parametrize("finish_with", ["torch", "dali"])
def test_batches_that_are_kept_are_not_overwritten(samples, finish_with):
    made = training(samples[:16], finish_with=finish_with)
    kept = list(made)
    copies = [images.clone() for images, _ in kept]
    for _ in made:
        pass
    assert all(torch.equal(images, copy) for (images, _), copy in zip(kept, copies, strict=True))


@pytest.mark.parametrize("finish_with", ["torch", "dali"])
def test_half_of_the_training_images_are_mirrored_and_crops_are_real_parts_of_them(tmp_path, finish_with):
    # A ramp from left to right tells where a crop comes from and whether it was mirrored.
    ramp = np.tile(np.linspace(0, 255, 128, dtype=np.uint8), (128, 1))
    Image.fromarray(ramp).convert("RGB").save(tmp_path / "ramp.png")
    made = training([(str(tmp_path / "ramp.png"), 0)] * 400, batch=100, finish_with=finish_with)
    images = torch.cat([part for part, _ in made])
    slopes = images[:, 0, 16, -1] - images[:, 0, 16, 0]
    assert 160 < (slopes < 0).sum() < 240
    assert slopes.abs().max() <= 255
    assert slopes.abs().min() > 20
    assert (images[:, 0] == images[:, 1]).all()


def test_grey_images_brightness_and_contrast_follow_torchvisions_arithmetic(tmp_path):
    generator = np.random.default_rng(1)
    picture = Image.fromarray(generator.integers(60, 180, (8, 8, 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    preset = Preset(
        mean=PLAIN.mean, std=PLAIN.std, crop_scale=None, mirror=False, grayscale=0.5, brightness=0.2, contrast=0.2
    )
    made = training([(str(tmp_path / "a.png"), 0)] * 64, preset=preset, side=8, batch=64)
    keys = next(iter(made.batches))
    indices, seeds = (np.array(part, dtype=np.uint64) for part in zip(*keys, strict=True))
    values = made.view.arguments(np.full((64, 2), 8), seeds, indices)
    ((images, _),) = made
    assert 15 < (values["saturation"] == 0).sum() < 49
    for image, grey, brightness, contrast in zip(
        images, values["saturation"], values["brightness"], values["contrast"], strict=True
    ):
        expected = picture if grey else F.rgb_to_grayscale(picture, 3)
        expected = F.adjust_brightness(F.adjust_contrast(expected, float(contrast)), float(brightness))
        difference = (image - F.pil_to_tensor(expected)).abs()
        assert difference.max() < 4  # torchvision cuts to whole numbers after each step
        assert difference.mean() < 1.5


def test_rotation_turns_about_the_centre_and_fills_with_black(tmp_path):
    Image.new("RGB", (33, 33), (200, 200, 200)).save(tmp_path / "a.png")
    preset = Preset(mean=PLAIN.mean, std=PLAIN.std, crop_scale=None, mirror=False, rotation=45)
    images = torch.cat([part for part, _ in training([(str(tmp_path / "a.png"), 0)] * 40, preset=preset, side=33)])
    assert (images[:, :, 16, 16] == 200).all()
    assert (images[:, :, 0, 0] == 0).float().mean() > 0.8
    assert images[:, 0].mean(dim=(1, 2)).std() > 1  # by various angles


def test_digits_are_moved_by_whole_pixels_and_never_mirrored(tmp_path):
    picture = np.zeros((32, 32, 3), dtype=np.uint8)
    picture[10:20, 12:15] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    digits = PRESETS["digits"]
    preset = Preset(mean=PLAIN.mean, std=PLAIN.std, crop_scale=None, mirror=False, shift=digits.shift)
    images = torch.cat([part for part, _ in training([(str(tmp_path / "a.png"), 0)] * 60, preset=preset)])
    assert set(images.unique().tolist()) == {0.0, 255.0}
    corners = {(int(rows.min()), int(columns.min())) for rows, columns in (image[0].nonzero().T for image in images)}
    assert corners <= {(row, column) for row in range(7, 14) for column in range(9, 16)}
    assert len(corners) > 20
    assert all(image[0].sum() == 30 * 255 for image in images)


def test_a_truncated_file_stops_the_iteration_with_its_path(samples, tmp_path):
    broken = tmp_path / "cut.jpg"
    with open(samples[1][0], "rb") as file:
        broken.write_bytes(file.read()[:400])
    made = loader([*samples, (str(broken), 0)], EvalBatchSampler(18, 4), EvaluationView(32, 32))
    with pytest.raises(UserError, match=f"unreadable image {broken}"):
        list(made)


def test_a_file_that_only_dali_cannot_decode_is_named_too(samples, tmp_path):
    odd = tmp_path / "odd.gif"
    Image.new("RGB", (40, 40)).save(odd)
    made = loader([*samples[:3], (str(odd), 0)], EvalBatchSampler(4, 4), EvaluationView(32, 32))
    with pytest.raises(UserError, match=f"DALI cannot decode {odd}.*--loader torchvision"):
        list(made)


def test_images_are_not_turned_by_their_orientation_tag_just_as_with_torchvision(tmp_path):
    image = Image.new("RGB", (64, 32))
    image.paste((255, 255, 255), (0, 0, 32, 32))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    ((images, _),) = loader([(str(tmp_path / "a.jpg"), 0)], EvalBatchSampler(1, 1), EvaluationView(32, 32))
    assert images[0, 0, :, :12].min() > 250
    assert images[0, 0, :, 20:].max() < 5


def test_what_cannot_be_done_is_refused_in_one_line(samples, monkeypatch):
    with pytest.raises(UserError, match="--val-crop-size 64 must not exceed --val-resize-size 32"):
        EvaluationView(32, 64)
    with pytest.raises(UserError, match="--dali-device gpu needs a GPU"):
        training(samples, decode_on="gpu")

    real = builtins.__import__

    def without_dali(name, *args, **kwargs):
        if name.startswith("nvidia"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_dali)
    with pytest.raises(UserError, match=r"needs NVIDIA DALI: run scripts/setup\.sh --dali"):
        dali_loader.load_dali()

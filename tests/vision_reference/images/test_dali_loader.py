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
from vision_reference.images.pipelines import Normalize, evaluation_pipeline
from vision_reference.images.presets import PRESETS, Preset
from vision_reference.images.samplers import EvalBatchSampler, TrainBatchSampler
from vision_reference.images.torch_loader import ImageDataset, TorchvisionLoader

pytest.importorskip("nvidia.dali.plugin.pytorch")

CPU = torch.device("cpu")


class EvaluationInDali(EvaluationView):
    """Evaluation as of images decoded on a GPU: all of it in DALI's graph."""

    needs_dali_after_decoding = True


class TrainingInDali(TrainingView):
    """The same for training."""

    needs_dali_after_decoding = True


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


def training(samples, *, preset=PLAIN, side=32, batch=4, rank=0, world_size=1, seed=3, view=TrainingView, **options):
    batches = TrainBatchSampler(len(samples), batch, seed=seed, rank=rank, world_size=world_size)
    return loader(samples, batches, view(preset, side), preset, **options)


@pytest.mark.parametrize("view", [EvaluationView, EvaluationInDali])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_shows_torchvisions_pixels_in_the_same_order_layout_and_shape(
    samples, memory_format, interpolation, view
):
    preset = PRESETS["imagenet"]
    ours = loader(
        samples,
        EvalBatchSampler(len(samples), 5),
        view(48, 40, interpolation),
        preset,
        memory_format=memory_format,
    )
    pipeline = evaluation_pipeline(resize_size=48, crop_size=40, interpolation=interpolation)
    theirs = TorchvisionLoader(
        ImageDataset(samples, pipeline),
        EvalBatchSampler(len(samples), 5),
        workers=0,
        normalize=Normalize(preset.mean, preset.std),
        device=CPU,
        memory_format=memory_format,
    )
    assert len(ours) == len(theirs) == 4
    for (images, labels, indices), (expected, expected_labels, same) in zip(
        ours.epoch(0), theirs.epoch(0), strict=True
    ):
        assert torch.equal(indices, same)
        assert torch.equal(labels, expected_labels)
        assert images.shape == expected.shape
        assert images.dtype == expected.dtype
        assert images.stride() == expected.stride()
        difference = (images - expected).abs()
        # One grey level is 0.017 to 0.018; a shift by one pixel would cost far more than these bounds.
        mean, most = (0.0005, 0.018) if view is EvaluationView else (0.01, 0.1)
        assert difference.mean() < mean
        assert difference.median() < 0.005
        assert difference.max() < most


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_over_all_processes_evaluation_sees_every_image_once(samples, world_size):
    labels = []
    for rank in range(world_size):
        batches = EvalBatchSampler(len(samples), 4, rank=rank, world_size=world_size)
        made = loader(samples, batches, EvaluationView(32, 32))
        seen = [part for _, part, _ in made.epoch(0)]
        assert len(seen) == len(made)
        labels += torch.cat(seen).tolist()
    assert sorted(labels) == list(range(17))


@pytest.mark.parametrize(
    "preset", [PRESETS["imagenet"], PRESETS["cub"], PRESETS["digits"]], ids=["imagenet", "cub", "digits"]
)
def test_the_pixels_of_a_training_image_depend_on_seed_epoch_and_image_alone(samples, preset):
    def by_label(epoch, *loaders):
        batches = [batch for made in loaders for batch in made.epoch(epoch)]
        return {
            int(label): image for batch in batches for image, label in zip(batch.images, batch.targets, strict=True)
        }

    alone = by_label(2, training(samples, preset=preset))
    shared = by_label(2, *(training(samples, preset=preset, batch=3, rank=rank, world_size=2) for rank in (0, 1)))
    assert sorted(alone) == sorted(shared) == list(range(17))
    assert all(torch.equal(alone[label], shared[label]) for label in alone)
    for epoch, seed in ((1, 3), (2, 4)):
        changed = by_label(epoch, training(samples, preset=preset, seed=seed))
        assert sum(not torch.equal(alone[label], changed[label]) for label in alone) >= 16


def test_epochs_follow_the_samplers_order_and_a_resumed_run_repeats_them_exactly(samples):
    straight = training(samples)
    epochs = [[(images.clone(), labels) for images, labels, _ in straight.epoch(number)] for number in range(3)]
    orders = [torch.cat([labels for _, labels in epoch]).tolist() for epoch in epochs]
    assert all(sorted(order) == list(range(17)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert [len(labels) for _, labels in epochs[0]] == [4, 4, 4, 3, 2]
    assert straight.step_sizes == [4, 4, 4, 3, 2]
    resumed = training(samples).epoch(2)
    assert all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d, _) in zip(epochs[2], resumed, strict=True))


def test_in_inference_mode_the_batches_are_the_same(samples):
    made = loader(samples, EvalBatchSampler(len(samples), 5), EvaluationView(48, 40))
    outside = [images for images, _, _ in made.epoch(0)]
    with torch.inference_mode():
        inside = [images for images, _, _ in made.epoch(0)]
    assert all(torch.equal(images, others) for images, others in zip(outside, inside, strict=True))


def test_an_iteration_that_was_broken_off_leaves_no_trace_in_the_next(samples):
    made = training(samples)
    whole = [labels.tolist() for _, labels, _ in made.epoch(0)]
    next(made.epoch(0))
    assert [labels.tolist() for _, labels, _ in made.epoch(0)] == whole


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_torch_and_dali_finish_a_training_image_alike(samples, interpolation):
    def shown(view):
        batches = TrainBatchSampler(len(samples), 4, seed=3)
        made = loader(samples, batches, view(PRESETS["imagenet"], 32, interpolation))
        return [torch.cat(parts) for parts in zip(*made.epoch(0), strict=True)]

    (images, labels, _), (others, same_labels, _) = shown(TrainingView), shown(TrainingInDali)
    assert torch.equal(labels, same_labels)
    assert (images - others).abs().max() <= 3  # grey levels
    assert (images - others).abs().mean() < 0.5


@pytest.mark.parametrize("view", [TrainingView, TrainingInDali])
def test_batches_that_are_kept_are_not_overwritten(samples, view):
    made = training(samples[:16], view=view)
    kept = [images for images, _, _ in made.epoch(0)]
    copies = [images.clone() for images in kept]
    list(made.epoch(1))
    assert all(torch.equal(images, copy) for images, copy in zip(kept, copies, strict=True))


@pytest.mark.parametrize("view", [TrainingView, TrainingInDali])
def test_half_of_the_training_images_are_mirrored_and_crops_are_real_parts_of_them(tmp_path, view):
    # A ramp from left to right tells where a crop comes from and whether it was mirrored.
    ramp = np.tile(np.linspace(0, 255, 128, dtype=np.uint8), (128, 1))
    Image.fromarray(ramp).convert("RGB").save(tmp_path / "ramp.png")
    made = training([(str(tmp_path / "ramp.png"), 0)] * 400, batch=100, view=view)
    images = torch.cat([part for part, _, _ in made.epoch(0)])
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
    keys = next(made.batches.epoch(0))
    indices, seeds = (np.array(part, dtype=np.uint64) for part in zip(*keys, strict=True))
    values = made.view.arguments(np.full((64, 2), 8), seeds, indices)
    ((images, _, _),) = made.epoch(0)
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
    made = training([(str(tmp_path / "a.png"), 0)] * 40, preset=preset, side=33)
    images = torch.cat([part for part, _, _ in made.epoch(0)])
    assert (images[:, :, 16, 16] == 200).all()
    assert (images[:, :, 0, 0] == 0).float().mean() > 0.8
    assert images[:, 0].mean(dim=(1, 2)).std() > 1  # by various angles


def test_digits_are_moved_by_whole_pixels_and_never_mirrored(tmp_path):
    picture = np.zeros((32, 32, 3), dtype=np.uint8)
    picture[10:20, 12:15] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    digits = PRESETS["digits"]
    preset = Preset(mean=PLAIN.mean, std=PLAIN.std, crop_scale=None, mirror=False, shift=digits.shift)
    made = training([(str(tmp_path / "a.png"), 0)] * 60, preset=preset)
    images = torch.cat([part for part, _, _ in made.epoch(0)])
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
        list(made.epoch(0))


def test_a_file_that_only_dali_cannot_decode_is_named_too(samples, tmp_path, monkeypatch):
    odd = tmp_path / "odd.jpg"
    odd.write_bytes(b"\xff\xd8 is how this file begins")
    read = dali_loader.read_encoded
    whole = lambda path, **_: (np.fromfile(path, np.uint8), (40, 40)) if path == str(odd) else read(path)  # noqa: E731
    monkeypatch.setattr(dali_loader, "read_encoded", whole)
    made = loader([*samples[:3], (str(odd), 0)], EvalBatchSampler(4, 4), EvaluationView(32, 32))
    with pytest.raises(UserError, match=f"DALI cannot decode {odd}.*--loader torchvision"):
        list(made.epoch(0))


def test_images_are_not_turned_by_their_orientation_tag_just_as_with_torchvision(tmp_path):
    image = Image.new("RGB", (64, 32))
    image.paste((255, 255, 255), (0, 0, 32, 32))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    made = loader([(str(tmp_path / "a.jpg"), 0)], EvalBatchSampler(1, 1), EvaluationView(32, 32))
    ((images, _, _),) = made.epoch(0)
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

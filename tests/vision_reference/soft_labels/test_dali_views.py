"""Stored views through DALI: its own to the bit, torchvision's by their boxes within a stated tolerance."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

from vision_reference import store_soft_labels
from vision_reference.arguments import parse_args
from vision_reference.distillation import Teacher
from vision_reference.machine import Rank
from vision_reference.train import open_data

pytest.importorskip("nvidia.dali.plugin.pytorch")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two classes of smooth images of various sizes, most of them JPEG files."""
    root = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 2)):
        for number in range(count):
            folder = root / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            size = int(generator.integers(60, 200)), int(generator.integers(60, 200))
            coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.{('jpg', 'png')[number % 5 == 0]}")
    return root


@pytest.fixture
def seen_by_teacher(photographs, store, tmp_path, monkeypatch):
    """Stores two views of each photograph with some flags; gives the folder and the images that the teacher saw."""
    torch.manual_seed(0)
    torch.save(resnet18(num_classes=2).state_dict(), tmp_path / "t.pth")

    def run(*flags, expect=0):
        seen = []

        class Recording(Teacher):
            def __call__(self, images):
                seen.extend(images.clone())
                return super().__call__(images)

        monkeypatch.setattr(store_soft_labels, "Teacher", Recording)
        teacher = ["--teacher", "resnet18", "--teacher-weights", tmp_path / "t.pth", "--views", 2, "--batch-size", 5]
        store(*teacher, "--data-path", photographs, "--output-dir", tmp_path / "s", "--train-crop-size", 64, *flags)
        return tmp_path / "s", seen

    return run


def shown_by_dali(photographs, folder, epoch, *flags):
    command = ["--data-path", photographs, "--soft-labels", folder, "--device", "cpu", "--workers", "1"]
    command += ["--loader", "dali", "--train-crop-size", 64, "--seed", 5, "--batch-size", 4, *flags]
    loader, _, _ = open_data(parse_args(list(map(str, command))), Rank(), CPU, torch.contiguous_format)
    shown = {}
    for images, _, indices, logits in loader.epoch(epoch):
        assert logits.shape == (len(indices), 2)
        shown |= {index: image.clone() for index, image in zip(indices.tolist(), images, strict=True)}
    return shown


@pytest.mark.parametrize("preset", ["imagenet", "cub"])
def test_dali_shows_its_own_stored_views_again_to_the_bit(photographs, seen_by_teacher, preset):
    folder, seen = seen_by_teacher("--loader", "dali", "--preset", preset)
    for epoch in (0, 1, 2):
        shown = shown_by_dali(photographs, folder, epoch, "--preset", preset)
        assert all(torch.equal(shown[index], seen[12 * (epoch % 2) + index]) for index in range(12))


def test_dali_decodes_the_boxes_that_torchvision_drew(photographs, seen_by_teacher):
    folder, seen = seen_by_teacher("--preset", "imagenet")
    differences = []
    for epoch in (0, 1):
        shown = shown_by_dali(photographs, folder, epoch, "--preset", "imagenet")
        differences += [(shown[index] - seen[12 * epoch + index]).abs() for index in range(12)]
    # In normalized units, where one grey level is 0.017 to 0.018: two at most, a fifth of one in the mean.
    assert max(difference.mean() for difference in differences) < 0.005
    assert max(difference.max() for difference in differences) < 0.037


@pytest.mark.parametrize(
    ("stored", "given", "message"),
    [
        ("--preset cub", "--preset cub --loader dali", "was stored with --loader torchvision, but --loader dali"),
        (
            "--preset imagenet --loader dali",
            "--preset imagenet",
            "was stored with --loader dali, but --loader torchvision",
        ),
    ],
)
def test_views_that_the_other_loader_cannot_show_are_refused(
    photographs, seen_by_teacher, train, tmp_path, stored, given, message
):
    folder, _ = seen_by_teacher(*stored.split())
    data = ["--data-path", photographs, "--train-crop-size", 64, "--output-dir", tmp_path, *given.split()]
    assert message in train("--soft-labels", folder, *data, expect=2)

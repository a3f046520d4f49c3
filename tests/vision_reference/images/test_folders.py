"""Folders of images: what is read, and how mistakes in them are told."""

import os
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from vision_reference.errors import UserError
from vision_reference.images.decoding import read_image, read_pixels
from vision_reference.images.folders import Samples, check_same_classes, image_folder
from vision_reference.images.seeds import seeded
from vision_reference.images.torch_loader import ImageDataset


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("cat", 10), ("dog", 200)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8), (colour + number, 0, 0)).save(tmp_path / "train" / name / f"{number}.png")
    return tmp_path / "train"


def test_labels_are_positions_in_the_sorted_class_names(folder):
    samples, classes = image_folder(folder)
    assert classes == ["cat", "dog"]
    assert [(os.path.relpath(path, folder), label) for path, label in samples] == [
        (f"{name}/{number}.png", label) for label, name in enumerate(classes) for number in range(3)
    ]


def test_a_samples_pixels_depend_on_its_seed_alone(folder):
    samples, _ = image_folder(folder)
    dataset = ImageDataset(samples, lambda image: torch.rand(3))
    first, label = dataset[4, 123]
    torch.rand(7)
    assert torch.equal(dataset[4, 123][0], first)
    assert not torch.equal(dataset[4, 124][0], first)
    assert label == 1


def test_augmentation_leaves_torchs_generator_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(99):
        torch.rand(100)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_any_colour_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new(mode, (4, 4)).save(path)
    assert read_image(path).mode == "RGB"


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"progressive": True, "subsampling": 0}),
        ("RGB", {"quality": 30, "subsampling": 1, "optimize": True}),
        ("L", {}),
        ("CMYK", {}),
    ],
)
def test_jpeg_pixels_are_the_same_with_and_without_pillow(tmp_path, mode, options):
    noise = torch.rand(3, 9, 11).mul(255).byte()
    path = str(tmp_path / "image.jpg")
    to_pil_image(noise).resize((67, 45)).convert(mode).save(path, "JPEG", **options)
    assert torch.equal(read_pixels(path), pil_to_tensor(read_image(path)))


def test_other_files_are_read_into_the_same_tensor(folder):
    path = str(folder / "dog" / "1.png")
    assert torch.equal(read_pixels(path), pil_to_tensor(read_image(path)))


@pytest.mark.parametrize("content", [b"", b"no image", "half"])
@pytest.mark.parametrize("read", [read_image, read_pixels])
def test_an_unreadable_image_is_named(folder, content, read):
    path = folder / "cat" / "0.png"
    path.write_bytes(path.read_bytes()[:45] if content == "half" else content)
    with pytest.raises(UserError, match="unreadable image .*cat/0.png"):
        read(path)


@pytest.mark.parametrize("read", [read_image, read_pixels])
def test_a_jpeg_file_cut_short_is_named(tmp_path, read):
    path = tmp_path / "image.jpg"
    to_pil_image(torch.rand(3, 64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match="unreadable image .*image.jpg"):
        read(str(path))


def test_a_missing_folder_is_told_with_the_expected_layout(tmp_path):
    with pytest.raises(UserError, match="no folder .*val; --data-path needs train/ and val/"):
        image_folder(tmp_path / "val")


def test_a_folder_without_classes_is_told(tmp_path):
    with pytest.raises(UserError, match="holds no class folder"):
        image_folder(tmp_path)


def test_an_empty_class_folder_is_named(folder):
    (folder / "eel").mkdir()
    with pytest.raises(UserError, match="no images in the folder of eel"):
        image_folder(folder)


def test_classes_that_only_one_split_has_are_named():
    with pytest.raises(UserError, match="only in train/: eel; only in val/: fox"):
        check_same_classes(["cat", "eel"], ["cat", "fox"])
    check_same_classes(["cat"], ["cat"])


def test_a_cached_listing_is_used_until_a_class_folder_changes(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = image_folder(folder, cache=True)
    scans = []
    monkeypatch.setattr("vision_reference.images.folders._Scan", lambda root: scans.append(root))
    assert image_folder(folder, cache=True) == first
    assert not scans
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    time.sleep(0.01)
    Image.new("RGB", (8, 8)).save(folder / "dog" / "new.png")
    assert len(image_folder(folder, cache=True)[0]) == 7
    (folder / "dog" / "deep").mkdir()
    assert len(image_folder(folder, cache=True)[0]) == 7
    time.sleep(0.01)
    Image.new("RGB", (8, 8)).save(folder / "dog" / "deep" / "new.png")  # which leaves the class folder as it was
    assert len(image_folder(folder, cache=True)[0]) == 8


def names_of(folder):
    samples, classes = image_folder(folder)
    return [(os.path.relpath(path, folder), classes[label]) for path, label in samples]


@pytest.mark.parametrize("target", ["..", ".", "../..", "../dog"])
def test_links_back_are_not_followed(folder, target):
    before = names_of(folder)
    (folder / "cat" / "loop").symlink_to(target)
    assert names_of(folder) == before


def test_links_out_of_the_folder_are_followed_once(folder, tmp_path):
    more = tmp_path / "more"
    (more / "deep").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(more / "deep" / "x.png")
    (more / "again").symlink_to(".")
    (folder / "cat" / "more").symlink_to(more)
    (folder / "cat" / "same").symlink_to(more)
    assert len(names_of(folder)) == 7
    assert sum("x.png" in name for name, _ in names_of(folder)) == 1
    (folder / "dog" / "more").symlink_to(more)
    with pytest.raises(UserError, match="dog/more is a folder that class cat holds too"):
        image_folder(folder)


def test_class_folders_may_be_links_to_elsewhere_but_not_to_each_other(folder, tmp_path):
    (folder / "dog").rename(tmp_path / "dogs")
    (folder / "dog").symlink_to(tmp_path / "dogs")
    assert [name for name, label in names_of(folder) if label == "dog"] == [f"dog/{number}.png" for number in range(3)]
    (folder / "hound").symlink_to(tmp_path / "dogs")
    with pytest.raises(UserError, match="hound is a folder that class dog holds too"):
        image_folder(folder)
    (folder / "hound").unlink()
    (folder / "tomcat").symlink_to("cat")
    with pytest.raises(UserError, match="tomcat is a link back to .*/cat, not a class of its own"):
        image_folder(folder)


def test_order_is_that_of_torchvisions_image_folder(tmp_path):
    for name in ("b/z.PNG", "b/a/x.jpeg", "b/a.png", "b/ab/y.bmp", "a/9.webp", "a/10.tiff", "a/notes.txt", "a/B.pgm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "gone.png").symlink_to("nothing")
    (tmp_path / "a" / "folder.png").mkdir()
    assert list(image_folder(tmp_path)[0]) == ImageFolder(str(tmp_path)).samples


def test_what_is_no_folder_or_cannot_be_read_is_told(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file; --data-path needs train/ and val/"):
        image_folder(tmp_path / "file")

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(UserError, match=f"cannot read {folder} .Permission denied."):
        image_folder(folder)


def test_a_cached_listing_that_is_damaged_is_made_anew(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = image_folder(folder, cache=True)
    for file in (tmp_path / "cache").rglob("*.json"):
        file.write_text('[["cat/0.png"')
    assert image_folder(folder, cache=True) == first


def test_samples_are_pairs_in_arrays():
    pairs = [("/a/ü\udcff.png", 3), ("", 0), ("/b", 70_000)]
    samples = Samples(pairs)
    assert list(samples) == pairs
    assert samples == pairs
    assert samples == Samples(pairs)
    assert samples != pairs[:2]
    assert [samples[0], samples[-1], samples[1]] == [pairs[0], pairs[2], pairs[1]]
    assert list(samples[1:]) == pairs[1:]
    assert list(Samples([])) == []
    with pytest.raises(IndexError):
        samples[3]
    many = Samples(("/data/train/n01440764/n01440764_10026.JPEG", number) for number in range(10_000))
    assert all(isinstance(value, np.ndarray) for value in vars(many).values())  # nothing that is counted by reference
    assert sum(value.nbytes for value in vars(many).values()) < 60 * len(many)

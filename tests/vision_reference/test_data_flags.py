"""The data flags of train.py, end to end: loaders, CUB-200-2011, broken files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vision_reference import train
from vision_reference.arguments import parse_args, parse_store_args
from vision_reference.data import Source, list_samples
from vision_reference.errors import UserError
from vision_reference.images.folders import image_folder, split_off
from vision_reference.machine import Rank


@pytest.fixture
def birds(tmp_path):
    """CUB-200-2011 in its official layout, but with two kinds of six small birds each."""
    base = tmp_path / "data" / "CUB_200_2011"
    generator = np.random.default_rng(0)
    lists = {"images.txt": "", "image_class_labels.txt": "", "train_test_split.txt": ""}
    for number in range(1, 13):
        label = 1 + number % 2
        file = f"00{label}.Bird/Bird_{number}.jpg"
        (base / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(base / "images" / file)
        for name, value in zip(lists, (file, label, int(number <= 8)), strict=True):
            lists[name] += f"{number} {value}\n"
    for name, content in lists.items():
        (base / name).write_text(content)
    return base.parent


def run(folder, *flags):
    command = ["--data-path", str(folder), "--device", "cpu", "--workers", "1", "--batch-size", "4", "--epochs", "1"]
    command += ["--seed", "1", "--model", "squeezenet1_1"]
    command += ["--train-crop-size", "32", "--val-resize-size", "36", "--val-crop-size", "32", *flags]
    train.main(parse_args(command))


def test_birds_are_learnt_through_dali_without_their_broken_files(birds, tmp_path, capsys, monkeypatch):
    pytest.importorskip("nvidia.dali.plugin.pytorch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    broken = birds / "CUB_200_2011" / "images" / "002.Bird" / "Bird_1.jpg"
    broken.write_bytes(broken.read_bytes()[:500])
    flags = ["--dataset", "cub200", "--preset", "cub", "--loader", "dali", "--output-dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match=f"unreadable image {broken}"):
        run(birds, *flags)
    run(birds, *flags, "--skip-unreadable")
    text = capsys.readouterr().out
    assert "left out 1 unreadable of 8 training images" in text
    assert "7 training and 4 validation images, 2 classes" in text
    assert (tmp_path / "out" / "unreadable_training.txt").read_text() == f"{broken}\n"
    assert (tmp_path / "out" / "checkpoint.pth").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--auto-augment ra", "--auto-augment has no equal in the DALI loader"),
        ("--random-erase 0.1", "--random-erase has no equal"),
        ("--use-v2", "--use-v2 has no equal"),
        ("--backend tensor", "--backend tensor has no equal"),
    ],
)
def test_what_dali_has_no_equal_for_is_refused_by_name(flags, message):
    with pytest.raises(UserError, match=message):
        parse_args(["--loader", "dali", *flags.split()])


def test_flags_that_would_do_nothing_are_refused():
    with pytest.raises(UserError, match="--dali-device was given without --loader dali"):
        parse_args(["--dali-device", "cpu"])
    with pytest.raises(UserError, match="--download fetches CUB-200-2011 only"):
        parse_args(["--download"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--backend tensor --interpolation lanczos", "--backend tensor, which takes bilinear, bicubic, nearest,"),
        ("--loader dali --interpolation box", "--interpolation box does not go with --loader dali"),
        ("--auto-augment ra --interpolation hamming", "--auto-augment ra, which takes bilinear"),
        ("--auto-augment augmix --interpolation bicubic", "which takes bilinear, nearest"),
        ("--auto-augment ra --backend tensor --interpolation bicubic", "which takes bilinear, nearest"),
    ],
)
def test_filters_that_a_loader_lacks_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        parse_args(flags.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--mean 123.7 116.3 103.5", "'123.7' is not a number from 0 to 1"),
        ("--std 1 1 0", "'0' is not a number above 0 to 1"),
        ("--mean 0.5", "expected 3 arguments"),
        ("--interpolation psychic", "invalid choice: 'psychic'"),
        ("--lr-warmup-decay -1", "'-1' is not a number from 0"),
    ],
)
def test_values_out_of_range_are_told_in_one_line(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_args(flags.split())
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("loader", ["torchvision", "tensor", "dali"])
def test_every_loader_normalizes_by_the_colours_given(digits, loader):
    if loader == "dali":
        pytest.importorskip("nvidia.dali.plugin.pytorch")
    way = {"torchvision": [], "tensor": ["--backend", "tensor"], "dali": ["--loader", "dali"]}[loader]

    def batches(*colours):
        flags = ["--data-path", str(digits), "--preset", "digits", "--workers", "0", "--seed", "3", *way, *colours]
        loaders = train.open_data(parse_args(flags), Rank(), torch.device("cpu"), torch.channels_last)[:2]
        return [next(loader.epoch(0)).images for loader in loaders]

    means, stds = [0.1, 0.2, 0.3], [0.5, 0.25, 1.0]
    given = batches("--mean", *map(str, means), "--std", *map(str, stds))
    for images, usual in zip(given, batches(), strict=True):
        shares = usual * 0.5 + 0.5  # pixels from 0 to 1
        expected = (shares - torch.tensor(means).view(3, 1, 1)) / torch.tensor(stds).view(3, 1, 1)
        torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_class_that_loses_all_its_images_is_refused(blank_images, tmp_path, monkeypatch, part):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = blank_images(tmp_path / "data", {"train/cat": 3, "train/dog": 3, "val/cat": 1, "val/dog": 1})
    for file in (root / part / "dog").iterdir():
        file.write_bytes(file.read_bytes()[:60])
    name = {"train": "training", "val": "validation"}[part]
    with pytest.raises(UserError, match=f"none of the {name} images of dog can be read"):
        list_samples(
            Source.of(parse_args(["--data-path", str(root), "--output-dir", str(tmp_path), "--skip-unreadable"])),
            Rank(),
        )


def test_data_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(UserError, match="--data-path .*data is a file; it must be a folder with train/ and val/"):
        list_samples(Source.of(parse_args(["--data-path", str(tmp_path / "data")])), Rank())


def test_without_val_a_share_of_each_class_is_split_off(blank_images, tmp_path):
    root = blank_images(tmp_path / "data", {"train/cat": 20, "train/dog": 11})

    def listed(*flags):
        return list_samples(Source.of(parse_args(["--data-path", str(root), *flags])), Rank())

    with pytest.raises(UserError, match="no folder .*val; give --split 0.1"):
        listed()
    data = listed("--split", "0.1")
    assert [sum(label == kind for _, label in data.val) for kind in (0, 1)] == [2, 1]
    assert sorted([*data.train, *data.val]) == sorted(image_folder(root / "train")[0])
    assert set(listed("--split", "0.2").val) > set(data.val)
    chosen = [Path(path).relative_to(root) for path, _ in data.val]
    for name in ("other", "place"):  # neither the folder's name nor a further image changes what is chosen
        root = root.rename(tmp_path / name)
        (root / "train" / "dog" / f"{name}.txt").touch()
        moved = listed("--split", "0.1")
        assert [Path(path).relative_to(root) for path, _ in moved.val] == chosen
    with pytest.raises(UserError, match="class cat has 20 images: too few to split 0.99 off"):
        split_off(image_folder(root / "train")[0], ["cat", "dog"], 0.99, root / "train")
    blank_images(root, {"val/cat": 1, "val/dog": 1})
    with pytest.raises(UserError, match="--split 0.1 was given, but .*val exists"):
        listed("--split", "0.1")
    with pytest.raises(UserError, match="--split is for --dataset imagefolder"):
        listed("--split", "0.1", "--dataset", "cub200")


@pytest.mark.parametrize(
    ("flags", "sizes"),
    [
        ("--image-size 112", (112, 128, 112)),
        ("--image-size 64 --preset cifar10", (64, 64, 64)),
        ("--image-size 112 --val-resize-size 112", (112, 112, 112)),
        ("--preset digits", (32, 32, 32)),
        ("", (224, 256, 224)),
    ],
)
def test_one_flag_sets_all_sizes(flags, sizes):
    args = parse_args(flags.split())
    assert (args.train_crop_size, args.val_resize_size, args.val_crop_size) == sizes
    assert parse_store_args(["--teacher", "x", "--teacher-weights", "x", "--output-dir", "x", *flags.split()[:2]])

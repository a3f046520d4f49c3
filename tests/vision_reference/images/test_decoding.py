"""Sizes of image files from their headers, files that are cut short, and leaving broken files out."""

import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from vision_reference.errors import UserError
from vision_reference.images import unreadable_files as readable
from vision_reference.images.decoding import read_encoded
from vision_reference.machine import Rank


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def picture(size=(37, 23), mode="RGB"):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("plain.jpg", "RGB", {}),
        ("progressive.jpg", "RGB", {"progressive": True}),
        ("grey.jpg", "L", {}),
        ("ink.jpg", "CMYK", {}),
        ("comment.jpg", "RGB", {"comment": b"\xff\xd9 is no end here"}),
        ("plain.png", "RGB", {}),
        ("palette.png", "P", {}),
        ("plain.bmp", "RGB", {}),
        ("plain.webp", "RGB", {}),
    ],
)
def test_bytes_and_size_of_whole_files_of_every_usual_kind(tmp_path, name, mode, options):
    picture(mode=mode).save(tmp_path / name, **options)
    data, size = read_encoded(str(tmp_path / name))
    assert size == (23, 37)
    if name in ("plain.jpg", "progressive.jpg", "grey.jpg", "comment.jpg", "plain.png"):
        assert data.tobytes() == (tmp_path / name).read_bytes()
    else:
        decoded = Image.open(io.BytesIO(data.tobytes()))
        assert decoded.format == "PPM"
        assert decoded.tobytes() == Image.open(tmp_path / name).convert("RGB").tobytes()


def test_bytes_after_the_end_of_a_jpeg_do_no_harm(tmp_path):
    picture().save(tmp_path / "a.jpg")
    with open(tmp_path / "a.jpg", "ab") as file:
        file.write(b"\0" * 100 + b"a camera's notes")
    assert read_encoded(str(tmp_path / "a.jpg"))[1] == (23, 37)


def test_a_thumbnails_end_marker_is_not_taken_for_the_images(tmp_path):
    thumbnail = io.BytesIO()
    picture((8, 8)).save(thumbnail, "JPEG")
    picture().save(tmp_path / "a.jpg", exif=b"Exif\0\0" + thumbnail.getvalue())
    whole = (tmp_path / "a.jpg").read_bytes()
    assert read_encoded(str(tmp_path / "a.jpg"))[1] == (23, 37)
    (tmp_path / "cut.jpg").write_bytes(whole[:-2])
    with pytest.raises(UserError, match="cut short"):
        read_encoded(str(tmp_path / "cut.jpg"))


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_files_cut_anywhere_are_refused_with_their_path_in_one_line(tmp_path, name, share):
    picture((200, 150)).save(tmp_path / "whole", format={"a.jpg": "JPEG", "a.png": "PNG"}[name])
    whole = (tmp_path / "whole").read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError) as error:
        read_encoded(str(path))
    assert str(error.value).startswith(f"unreadable image {path} (")
    assert "\n" not in str(error.value)
    assert not readable.is_readable(str(path))


def test_what_is_no_image_or_not_there_is_refused_too(tmp_path):
    (tmp_path / "a.jpg").write_text("not an image at all")
    for path in (tmp_path / "a.jpg", tmp_path / "gone.jpg", tmp_path):
        with pytest.raises(UserError, match="unreadable image"):
            read_encoded(str(path))


def test_unreadable_files_are_left_out_counted_and_listed_and_repaired_ones_come_back(tmp_path, monkeypatch):
    samples, images = [], tmp_path / "images"
    images.mkdir()
    for number in range(6):
        path = images / f"{number}.jpg"
        picture().save(path)
        samples.append((str(path), number % 2))
    whole = (images / "2.jpg").read_bytes()
    (images / "2.jpg").write_bytes(whole[:300])
    (images / "4.jpg").write_bytes(b"")

    kept = readable.readable_samples(samples, threads=2)
    assert list(kept) == [samples[number] for number in (0, 1, 3, 5)]
    output = tmp_path / "output"
    output.mkdir()
    line = readable.report("training", samples, kept, output)
    assert "left out 2 unreadable of 6 training images" in line
    assert (output / "unreadable_training.txt").read_text() == f"{samples[2][0]}\n{samples[4][0]}\n"
    assert readable.report("training", samples, samples, output) is None

    looked = []
    check = readable.is_readable
    monkeypatch.setattr(readable, "is_readable", lambda path: looked.append(path) or check(path))
    (images / "2.jpg").write_bytes(whole)
    kept = readable.readable_samples(samples, threads=2)
    assert list(kept) == [samples[number] for number in (0, 1, 2, 3, 5)]
    assert sorted(looked) == [samples[2][0], samples[4][0]]  # the good ones are known to be good

    with open(images / "1.jpg", "r+b") as file:  # damaged in place: same name, same size, same folder
        file.write(b"\0" * 100)
    looked.clear()
    kept = readable.readable_samples(samples, threads=2)
    assert list(kept) == [samples[number] for number in (0, 2, 3, 5)]
    assert sorted(looked) == [samples[1][0], samples[4][0]]


def test_processes_share_the_decoding_and_agree(tmp_path, monkeypatch):
    samples = []
    for number in range(7):
        picture().save(tmp_path / f"{number}.jpg")
        samples.append((str(tmp_path / f"{number}.jpg"), 0))
    for number in (1, 2, 6):
        (tmp_path / f"{number}.jpg").write_bytes(b"")
    found, looked = {}, []
    check = readable.is_readable
    monkeypatch.setattr(readable, "is_readable", lambda path: looked.append(path) or check(path))
    for rank in range(2):  # one after the other: what each finds in its own share
        monkeypatch.setattr(readable, "gather_objects", lambda own, rank=rank: [found.setdefault(rank, own)])
        monkeypatch.setattr(readable, "from_main", lambda _: [path for path, _ in samples])
        readable.readable_samples(samples, threads=1, rank=Rank(rank, 2))
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
    assert sorted(looked) == [path for path, _ in samples]  # each file by one of them
    monkeypatch.setattr(readable, "gather_objects", lambda own: list(found.values()))
    for rank in range(2):
        kept = readable.readable_samples(samples, threads=1, rank=Rank(rank, 2))
        assert list(kept) == [samples[number] for number in (0, 3, 4, 5)]

"""Odd image files: each is read as the same picture by every reader, or refused by every reader in one line.

A row is a name, what the file holds, and either its pixels or a part of the reason for which it is refused.
"""

import io
import os
import socket
import stat
import struct
import zlib
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from vision_reference.errors import UserError
from vision_reference.images import decoding
from vision_reference.images.dali_loader import DaliLoader
from vision_reference.images.dali_views import EvaluationView
from vision_reference.images.decoding import read_encoded, read_image, read_pixels
from vision_reference.images.samplers import EvalBatchSampler

HEIGHT, WIDTH = 40, 56
rng = np.random.default_rng(0)
SMOOTH = np.asarray(Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT)))
NOISE = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GRAY = SMOOTH[:, :, 1]
GRAYS = np.stack([GRAY] * 3, axis=-1)
GRAY_16 = (GRAY.astype(np.uint16) << 8) | 0x5A
INK = Image.fromarray(SMOOTH).convert("CMYK")


def saved(image, kind, **options):
    """Bytes of an image file."""
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, data, checksum=None):
    """A chunk of a PNG file."""
    crc = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(rows, width, height, depth, colour, *extra):
    """A PNG file of raw rows (bytes each), made by hand."""
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def png_16(values, colour):
    """Of 16-bit samples (H, W) or (H, W, C)."""
    rows = values.astype(">u2").reshape(len(values), -1)
    return png([row.tobytes() for row in rows], values.shape[1], values.shape[0], 16, colour)


def jpeg(image=NOISE, **options):
    return saved(image, "JPEG", quality=92, **options)


def with_middle(data, damage):
    """``data`` whose middle bytes are replaced by ``damage``."""
    half = len(data) // 2
    return data[:half] + damage + data[half + len(damage) :]


def with_flipped_bit(data):
    """``data`` with one bit of its middle byte flipped."""
    return with_middle(data, bytes([data[len(data) // 2] ^ 4]))


def with_frame(data, place, value):
    """A JPEG file with other bytes in its frame header, ``place`` bytes behind the marker."""
    start = max(data.find(b"\xff\xc0\x00"), data.find(b"\xff\xc2\x00"))
    assert start > 0
    return data[: start + place] + value + data[start + place + len(value) :]


def decoded(data):
    """What Pillow makes of a file."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def bomb(kind, side=30_000):
    """A small file of ``kind`` that claims to be huge."""
    if kind == "jpeg":
        return with_frame(jpeg(SMOOTH), 5, struct.pack(">HH", side, side))
    if kind == "png":
        return png([], side, side, 8, 2)
    if kind == "ppm":
        return b"P6 %d %d 255\n" % (side, side) + bytes(10)
    if kind == "bmp":
        data = bytearray(saved(SMOOTH, "BMP"))
        data[18:26] = struct.pack("<ii", side, side)
        return bytes(data)
    data = bytearray(saved(np.zeros((1, 1), np.uint8), "TIFF"))  # its tags 256 and 257
    for tag in (256, 257):
        place = data.find(struct.pack("<H", tag))
        data[place : place + 12] = struct.pack("<HHII", tag, 4, 1, side)
    return bytes(data)


PALETTE = Image.fromarray(SMOOTH).quantize(16)
RGBA = np.dstack([SMOOTH, rng.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)])
LA = Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(RGBA[:, :, 3].copy())])
BITS = Image.fromarray(GRAY).convert("1")
HIGH_16 = (SMOOTH.astype(np.uint16) << 8) | 0xA5
ANIMATED = [Image.fromarray(SMOOTH), Image.fromarray(NOISE)]
EXIF = Image.Exif()
EXIF[0x0112] = 6

READ = {
    "rgb.png": (saved(SMOOTH, "PNG"), SMOOTH),
    "gray.png": (saved(GRAY, "PNG"), GRAYS),
    "bits.png": (saved(BITS, "PNG"), np.asarray(BITS.convert("RGB"))),
    "four_bits.png": (
        png([bytes([0x0F, 0x80])] * 40, 4, 40, 4, 0),
        np.tile(np.array([0, 255, 136, 0], np.uint8)[None, :, None], (40, 1, 3)),
    ),
    "palette.png": (saved(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB"))),
    "palette_seen_through.png": (saved(PALETTE, "PNG", transparency=0), np.asarray(PALETTE.convert("RGB"))),
    "alpha.png": (saved(RGBA, "PNG"), SMOOTH),
    "gray_alpha.png": (saved(LA, "PNG"), GRAYS),
    "seen_through.png": (saved(SMOOTH, "PNG", transparency=tuple(map(int, SMOOTH[0, 0]))), SMOOTH),
    "gray_16.png": (saved(GRAY_16, "PNG"), GRAYS),
    "gray_16_by_hand.png": (png_16(GRAY_16, 0), GRAYS),
    "gray_alpha_16.png": (png_16(np.dstack([GRAY_16, GRAY_16]), 4), GRAYS),
    "rgb_16.png": (png_16(HIGH_16, 2), SMOOTH),
    "rgba_16.png": (png_16(np.dstack([HIGH_16, GRAY_16]), 6), SMOOTH),
    "white_16.png": (png_16(np.full((40, 40), 65535), 0), np.full((40, 40, 3), 255)),
    "rgb.jpg": (jpeg(), decoded(jpeg())),
    "gray.jpg": (jpeg(GRAY), decoded(jpeg(GRAY))),
    "four_inks.jpg": (jpeg(INK), decoded(jpeg(INK))),
    "progressive.jpg": (jpeg(progressive=True), decoded(jpeg(progressive=True))),
    "four_four_four.jpg": (jpeg(subsampling=0), decoded(jpeg(subsampling=0))),
    "restarts.jpg": (jpeg(restart_marker_blocks=2), decoded(jpeg(restart_marker_blocks=2))),
    "comment_with_markers.jpg": (jpeg(comment=b"\xff\xd9\xff\xda"), decoded(jpeg())),
    "bytes_behind.jpg": (jpeg() + b"a camera's notes", decoded(jpeg())),
    "padded.jpg": (jpeg()[:-2] + bytes(50) + jpeg()[-2:], decoded(jpeg())),
    "fill_bytes.jpg": (jpeg()[:2] + b"\xff\xff\xff" + jpeg()[2:], decoded(jpeg())),
    "turned.jpg": (jpeg(exif=EXIF), decoded(jpeg())),
    "flat.jpg": (jpeg(np.full((64, 64, 3), 77, np.uint8), optimize=True), np.full((64, 64, 3), 77)),
    "one_pixel.jpg": (jpeg(np.full((1, 1, 3), 9, np.uint8)), np.full((1, 1, 3), 9)),
    "rgb.bmp": (saved(SMOOTH, "BMP"), SMOOTH),
    "palette.bmp": (saved(PALETTE, "BMP"), np.asarray(PALETTE.convert("RGB"))),
    "rgb.ppm": (saved(SMOOTH, "PPM"), SMOOTH),
    "gray.pgm": (saved(GRAY, "PPM"), GRAYS),
    "gray_16.pgm": (b"P5 56 40 65535\n" + GRAY_16.astype(">u2").tobytes(), GRAYS),
    "rgb.webp": (saved(SMOOTH, "WEBP", lossless=True), SMOOTH),
    "alpha.webp": (saved(RGBA, "WEBP", lossless=True, exact=True), SMOOTH),
    "moving.webp": (saved(ANIMATED[0], "WEBP", save_all=True, append_images=ANIMATED[1:], lossless=True), SMOOTH),
    "moving.png": (saved(ANIMATED[0], "PNG", save_all=True, append_images=ANIMATED[1:]), SMOOTH),
    "rgb.tif": (saved(SMOOTH, "TIFF"), SMOOTH),
    "packed.tif": (saved(SMOOTH, "TIFF", compression="tiff_lzw"), SMOOTH),
    "gray_16.tif": (saved(GRAY_16, "TIFF"), GRAYS),
    "four_inks.tif": (saved(INK, "TIFF"), np.asarray(INK.convert("RGB"))),
    "two_pages.tif": (saved(ANIMATED[0], "TIFF", save_all=True, append_images=ANIMATED[1:]), SMOOTH),
    "png_called.jpg": (saved(SMOOTH, "PNG"), SMOOTH),
    "jpeg_called.png": (jpeg(), decoded(jpeg())),
    "gif_called.jpg": (saved(PALETTE, "GIF"), np.asarray(PALETTE.convert("RGB"))),
    "a\nb \udcff ü.png": (saved(SMOOTH, "PNG"), SMOOTH),
}

REFUSED = {
    "float.tif": (saved(GRAY.astype(np.float32), "TIFF"), "TIFF of mode F"),
    "thirty_two_bits.tif": (saved(GRAY.astype(np.int32), "TIFF"), "TIFF of mode I"),
    "lab.tif": (saved(Image.new("LAB", (8, 8)), "TIFF"), "TIFF of mode LAB"),
    "ycbcr.tif": (saved(Image.new("YCbCr", (8, 8)), "TIFF"), "TIFF of mode YCbCr"),
    "eps_called.png": (saved(SMOOTH, "EPS"), "no image that is known here"),
    "icon_called.png": (saved(SMOOTH, "ICO"), "no image that is known here"),
    "pdf_called.jpg": (saved(SMOOTH, "PDF"), "no image that is known here"),
    "svg_called.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image that is known here"),
    "text.png": (b"not an image", "no image that is known here"),
    "empty.png": (b"", "no image that is known here"),
    "zeros.png": (bytes(5000), "no image that is known here"),
    "signature_only.png": (b"\x89PNG\r\n\x1a\n", ""),
    "cut.png": (saved(NOISE, "PNG")[:-200], "cut short"),
    "without_end.png": (saved(NOISE, "PNG")[:-12], "cut short"),
    "damaged.png": (with_middle(saved(NOISE, "PNG"), b"\0\1\2"), "wrong checksum"),
    "one_bit.png": (with_flipped_bit(saved(NOISE, "PNG")), "wrong checksum"),
    "cut.bmp": (saved(SMOOTH, "BMP")[:-300], "truncated"),
    "cut.ppm": (saved(SMOOTH, "PPM")[:-300], "truncated"),
    "cut.webp": (saved(SMOOTH, "WEBP")[:-30], ""),
    "cut.tif": (saved(SMOOTH, "TIFF", compression="tiff_lzw")[:200], ""),
    "first_bytes.jpg": (b"\xff\xd8", "cut short"),
    "header_only.jpg": (jpeg()[:300], ""),
    "cut.jpg": (jpeg()[:-1000], "cut short"),
    "without_end.jpg": (jpeg()[:-2], "cut short"),
    "cut_and_closed.jpg": (jpeg()[:-1000] + b"\xff\xd9", "image data are missing"),
    "hole.jpg": (with_middle(jpeg(), bytes(200)), "a hole of zeros"),
    "ones.jpg": (with_middle(jpeg(), b"\xff" * 200), "damaged"),
    "garbage.jpg": (with_middle(jpeg(), rng.bytes(600)), ""),
    "text_inside.jpg": (with_middle(jpeg(), b"HTTP/1.1 500 \xff\xef Internal Server Error"), ""),
    "part_lost.jpg": (jpeg()[:1500] + jpeg()[2000:], "damaged"),
    "part_doubled.jpg": (jpeg()[:1500] + jpeg()[1000:], "damaged"),
    "restarts_out_of_turn.jpg": (
        jpeg(restart_marker_blocks=2).replace(b"\xff\xd2", b"\xff\xd5", 1), "a restart marker out of turn"
    ),
    "progressive_cut.jpg": (jpeg(progressive=True)[:-700], "cut short"),
    "progressive_stray.jpg": (with_middle(jpeg(progressive=True), b"\xff\x37"), "a stray marker 37"),
    "twelve_bits.jpg": (with_frame(jpeg(), 4, b"\x0c"), "JPEG of 12 bits"),
    "two_channels.jpg": (with_frame(jpeg(), 9, b"\x02"), "JPEG of 2 channels"),
    "no_height.jpg": (with_frame(jpeg(), 5, b"\0\0"), "without an image size"),
    "header_lost.jpg": (jpeg()[:2] + jpeg()[40:], ""),
    "bomb.jpg": (bomb("jpeg"), "30000 x 30000 pixels, more than"),
    "bomb.png": (bomb("png"), "more than 89478485 pixels"),
    "bomb.ppm": (bomb("ppm"), "more than 89478485 pixels"),
    "bomb.bmp": (bomb("bmp"), "more than 89478485 pixels"),
    "bomb.tif": (bomb("tiff"), "more than 89478485 pixels"),
    "lesser_bomb.png": (bomb("png", 10_000), "10000 x 10000 pixels, more than 89478485"),
}  # fmt: skip

READERS = {
    "image": lambda path: np.asarray(read_image(path)),
    "pixels": lambda path: read_pixels(path).permute(1, 2, 0).numpy(),
    "encoded": lambda path: decoded(read_encoded(path)[0].tobytes()),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", READ, ids=ascii)
def test_what_can_be_read_is_the_same_picture_for_every_reader(tmp_path, name, reader):
    content, expected = READ[name]
    path = os.path.join(tmp_path, name)
    with open(path, "wb") as file:
        file.write(content)
    assert np.array_equal(READERS[reader](path), expected)
    assert read_encoded(path)[1] == expected.shape[:2]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line_by_every_reader(tmp_path, name, reader):
    content, reason = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        READERS[reader](str(path))
    text = str(error.value)
    assert text.startswith(f"unreadable image {path} (")
    assert reason in text
    assert "\n" not in text
    assert len(text) < 400


NO_FILES = ["folder", "pipe", "socket", "device", "terminal"]
NO_FILES += ["link to itself", "link to nothing", "link to a pipe", "nothing"]


@pytest.fixture
def no_file(tmp_path):
    """Makes what is called like an image and is no file."""
    opened = []

    def make(kind):
        path = tmp_path / f"{kind}.png"
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            opened.append(socket.socket(socket.AF_UNIX))
            with suppress(OSError):  # longer than a socket's name may be
                os.chdir(tmp_path)
            opened[0].bind(path.name)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "terminal":
            path.symlink_to("/dev/tty")
        elif kind == "link to itself":
            path.symlink_to(path)
        elif kind == "link to nothing":
            path.symlink_to(tmp_path / "gone")
        elif kind == "link to a pipe":
            os.mkfifo(tmp_path / "p")
            path.symlink_to(tmp_path / "p")
        return str(path)

    where = os.getcwd()
    yield make
    os.chdir(where)
    for one in opened:
        one.close()


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_refused_and_never_waited_for(no_file, kind):
    path = no_file(kind)
    for reader in READERS.values():
        with pytest.raises(UserError, match="unreadable image"):
            reader(path)


def test_files_that_may_not_be_read_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "secret.png"
    path.write_bytes(READ["rgb.png"][0])
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read everything

        def denied(name, *args, **kwargs):
            raise PermissionError(13, "Permission denied", name)

        monkeypatch.setattr("builtins.open", denied)
    for reader in READERS.values():
        with pytest.raises(UserError, match=r"secret.png \(Permission denied\)"):
            reader(str(path))
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)


def test_huge_files_are_not_read_into_memory(tmp_path):
    path = tmp_path / "sparse.png"
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.truncate(decoding.MAX_BYTES + 1)
    for reader in READERS.values():
        with pytest.raises(UserError, match="more than 1073741824"):
            reader(str(path))


def test_the_limit_on_pixels_is_pillows_and_may_be_lifted_there(tmp_path, monkeypatch):
    for name in ("rgb.jpg", "rgb.png", "rgb.bmp"):
        path = tmp_path / name
        path.write_bytes(READ[name][0])
        for limit in (HEIGHT * WIDTH, None):
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
            for reader in READERS.values():
                assert reader(str(path)).shape == (HEIGHT, WIDTH, 3)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)
        for reader in READERS.values():
            with pytest.raises(UserError, match="56 x 40 pixels, more than 2239"):
                reader(str(path))


def test_a_bombs_pixels_are_never_made(tmp_path, monkeypatch):
    path = tmp_path / "bomb.jpg"
    path.write_bytes(bomb("jpeg"))
    fail = partial(pytest.fail, "a decoder was started")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: fail())
    monkeypatch.setattr(decoding, "decode_jpeg", lambda *_: fail())
    for reader in READERS.values():
        with pytest.raises(UserError, match="more than"):
            reader(str(path))


def test_without_the_check_only_the_structure_of_a_jpeg_is_looked_at(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(REFUSED["part_lost.jpg"][0])
    assert read_pixels(str(path), check=False).shape == (3, HEIGHT, WIDTH)
    assert read_encoded(str(path), check=False)[1] == (HEIGHT, WIDTH)


@pytest.mark.parametrize("seed", range(4))
def test_holes_and_lost_parts_of_photographs_are_found(tmp_path, seed):
    """Where the damage lies does not matter; what it leaves of one length by chance is told in the module's text."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    noise = generator.integers(0, 24, (240, 320, 3), dtype=np.uint8)
    data = jpeg(np.asarray(coarse.resize((320, 240), Image.Resampling.BICUBIC)) // 2 + noise)
    path = tmp_path / "a.jpg"
    for place in generator.integers(1000, len(data) - 3000, 10).tolist():
        for damaged in (
            data[:place] + bytes(512) + data[place + 512 :],
            data[:place] + data[place + 2048 :],
            data[:place] + generator.bytes(2048) + data[place + 2048 :],
        ):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match="damaged|cut short"):
                read_image(str(path))


def test_dali_shows_every_readable_file_as_pillow_does(tmp_path):
    pytest.importorskip("nvidia.dali.plugin.pytorch")
    samples = []
    for number, (name, (content, expected)) in enumerate(READ.items()):
        path = tmp_path / f"{number}{os.path.splitext(name)[1]}"
        path.write_bytes(content)
        if expected.shape[:2] == (HEIGHT, WIDTH):
            samples.append((str(path), number))
    loader = DaliLoader(
        samples,
        EvalBatchSampler(len(samples), 8),
        EvaluationView(HEIGHT, HEIGHT),
        threads=2,
        mean=(0.0, 0.0, 0.0),
        std=(1 / 255,) * 3,
        device=torch.device("cpu"),
        memory_format=torch.contiguous_format,
        decode_on="cpu",
    )
    pictures = list(READ.values())
    left = (WIDTH - HEIGHT) // 2
    for batch in loader.epoch(0):
        for image, number in zip(batch.images, batch.targets.tolist(), strict=True):
            expected = torch.from_numpy(pictures[number][1][:, left : left + HEIGHT].astype(np.float32)).permute(
                2, 0, 1
            )
            assert (image - expected).abs().max() < 3, list(READ)[number]


def test_the_kinds_of_files_are_many():
    assert len(READ) >= 40
    assert len(REFUSED) + len(NO_FILES) >= 40

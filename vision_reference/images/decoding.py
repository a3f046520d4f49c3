"""Image files, whoever made them: read as 8-bit RGB and the same for every loader, or refused with path and reason.

Read are JPEG, PNG, BMP, PPM, TIFF, WebP and GIF files (of several images the first) with 8-bit RGB, grayscale, palette
or CMYK pixels, with or without an alpha channel, which is dropped; fewer bits are scaled up, of 16 bits the upper eight
are kept. Refused is everything else (floating point, 32 and 12 bits, other colour spaces), what is no plain file, what
has more pixels than Pillow's ``Image.MAX_IMAGE_PIXELS`` by its header, and what is cut short or damaged.

Damage is found where the format lets it show: by the checksums of PNG; in JPEG files, which have none, by a marker in
the middle of the image data, by restart markers out of turn, by a hole of zeros, and, where the data are in one scan,
by there being too few or too many of them for the image's size. A decoder would fill in grey or shift the rest of the
picture without a word. What cannot be found: damage to a JPEG after which the lengths happen to come out right (most
single flipped bits), damage inside the scans of a progressive JPEG or between two restart markers that leaves the
markers in place, and damage to pixels of BMP, PPM, TIFF or WebP files.
"""

import io
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.functional import pil_to_tensor

from vision_reference.errors import UserError

MAX_BYTES = 1 << 30  # no image within the limit on pixels needs a larger file

_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "GIF", "TIFF", "WEBP")
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"}
_GRAY_16 = {"I;16", "I;16L", "I;16B", "I;16N"}
_YCBCR, _JPEG_IN_TIFF = 6, (6, 7)  # values of tags; libtiff converts the colours of JPEG data only
_PNG = b"\x89PNG\r\n\x1a\n"

_END_OF_IMAGE, _START_OF_SCAN, _HUFFMAN_TABLES = 0xD9, 0xDA, 0xC4
_RESTARTS = range(0xD0, 0xD8)
_NO_LENGTH = {0x01, 0xD8, *_RESTARTS}
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BASELINE = {0xC0, 0xC1}
_BETWEEN_SCANS = {0xC4, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)}
_PREFETCH = 10  # bytes: more than libjpeg's bit buffer takes up beyond those that it needs
_HOLE = 32  # zero bytes

_UNREADABLE = (OSError, EOFError, SyntaxError, ValueError, IndexError, KeyError, OverflowError, zlib.error)


class UnreadableImage(UserError):
    """An image file that cannot be used."""


@contextmanager
def offering_to_skip() -> Iterator[None]:
    """For commands with ``--skip-unreadable``: whoever is told of a broken image is told of it too."""
    try:
        yield
    except UnreadableImage as error:
        raise UserError(f"{error.line}, or leave it out by --skip-unreadable") from None


@dataclass(frozen=True)
class _Jpeg:
    """What the segments of a JPEG file say.

    Attributes:
        height, width: in pixels.
        components: 1 (grayscale), 3 (colour) or 4 (four inks).
        scan: first byte and end of the image data where all of them are in one scan of a baseline file, else None.
    """

    height: int
    width: int
    components: int
    scan: tuple[int, int] | None


def read_image(path: str, *, check: bool = True) -> Image.Image:
    """The image at ``path`` as RGB.

    Args:
        check: as in ``read_pixels``; here looking for damage costs nothing and is always done.

    Raises:
        UnreadableImage: it cannot be read, is of a kind that is not read, or is damaged.
    """
    try:
        return _decode(_read(path))
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None


def read_pixels(path: str, *, check: bool = True) -> Tensor:
    """The pixels of the image at ``path``, uint8 (3, H, W), equal to those of ``read_image``.

    JPEG files skip the PIL image on the way: torchvision decodes them straight into the tensor.

    Args:
        check: look for damage in the image data of JPEG files, which takes half as long as decoding them.

    Raises:
        UnreadableImage: as ``read_image``.
    """
    try:
        data = _read(path)
        if _usual_jpeg(data, check):
            return decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB)
        return pil_to_tensor(_decode(data))
    except (*_UNREADABLE, RuntimeError) as error:
        raise _unreadable(path, error) from None


def read_encoded(path: str, *, check: bool = True) -> tuple[np.ndarray, tuple[int, int]]:
    """Bytes for a decoder of usual files, (N,) uint8, and the image's height and width.

    They are those of the file where it is a JPEG or PNG file that any decoder takes alike; other files are decoded here
    and handed on as PPM.

    Args:
        check: as in ``read_pixels``.

    Raises:
        UnreadableImage: as ``read_image``.
    """
    try:
        data = _read(path)
        if jpeg := _usual_jpeg(data, check):
            return np.frombuffer(data, np.uint8), (jpeg.height, jpeg.width)
        if _is_plain_png(data):
            image = _open(io.BytesIO(data))
            _check_kind(image)
            _check_png(data)
            return np.frombuffer(data, np.uint8), (image.height, image.width)
        image = _decode(data)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None
    ppm = b"P6 %d %d 255\n" % image.size + image.tobytes()
    return np.frombuffer(bytearray(ppm), np.uint8), (image.height, image.width)


def _usual_jpeg(data: bytearray, check: bool) -> _Jpeg | None:
    """What a JPEG file says that any decoder takes alike, looked at for damage if ``check``; None for other files."""
    if not is_jpeg(data) or (jpeg := _parse_jpeg(data)).components == 4:
        return None
    if check:
        _check_scan(data, jpeg)
    return jpeg


def is_jpeg(data: bytes | bytearray) -> bool:
    """Whether the bytes of a file begin as a JPEG file does."""
    return data[:2] == b"\xff\xd8"


def _unreadable(path: str, error: Exception) -> UnreadableImage:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    return UnreadableImage(f"unreadable image {path} ({reason}); replace or remove it")


def _read(path: str) -> bytearray:
    """The bytes of a plain file; anything else, such as a pipe, might have nothing to give for ever."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device, not a plain file")
    if status.st_size > MAX_BYTES:
        raise ValueError(f"{status.st_size} bytes, more than {MAX_BYTES}")
    with open(path, "rb") as file:
        return bytearray(file.read())  # writable, as tensors made of it must be


def _decode(data: bytearray) -> Image.Image:
    """The image in ``data`` as RGB."""
    image: Image.Image
    if is_jpeg(data):
        jpeg = _parse_jpeg(data)
        image = _load_checked(data, jpeg.scan) if jpeg.scan else _open(io.BytesIO(data))
    else:
        image = _open(io.BytesIO(data))
        _check_kind(image)
        if data.startswith(_PNG):
            _check_png(data)
    if image.mode in _GRAY_16 or image.mode == "I":
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _open(file: io.BytesIO) -> Image.Image:
    try:
        return Image.open(file, formats=_FORMATS)
    except Image.UnidentifiedImageError:
        raise ValueError("no image that is known here; known are JPEG, PNG, BMP, PPM, TIFF, WebP and GIF") from None
    except Image.DecompressionBombError:  # where there are more than twice as many, Pillow itself looks no further
        raise ValueError(f"more than {Image.MAX_IMAGE_PIXELS} pixels") from None


def _check_size(height: int, width: int) -> None:
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and height * width > most:
        raise ValueError(f"{width} x {height} pixels, more than {most}")


def _check_kind(image: Image.Image) -> None:
    """Refuses what ``convert("RGB")`` would turn into something else than the picture."""
    _check_size(image.height, image.width)
    sixteen_bits = image.mode in _GRAY_16 or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if not sixteen_bits and image.mode not in _MODES:
        raise ValueError(f"{image.format} of mode {image.mode}; convert it to 8 bits RGB or grayscale")
    if isinstance(image, TiffImageFile):
        bits, compression, colours = (image.tag_v2.get(tag) for tag in (258, 259, 262))
        if not set(bits or (1,)) <= {1, 2, 4, 8, 16}:
            raise ValueError(f"TIFF of {max(bits or (1,))} bits; convert it to 8 bits RGB or grayscale")
        if colours == _YCBCR and compression not in _JPEG_IN_TIFF:
            raise ValueError("TIFF of mode YCbCr; convert it to 8 bits RGB or grayscale")


def _is_plain_png(data: bytearray) -> bool:
    """Whether a PNG file has 8-bit gray or RGB pixels, and none that is to be seen through."""
    depth_and_colours = bytes(data[24:26])
    return data.startswith(_PNG) and depth_and_colours in (b"\x08\0", b"\x08\2") and b"tRNS" not in data


def _check_png(data: bytearray) -> None:
    """Refuses a PNG file with a damaged chunk or without its end (W3C PNG, section 5.3)."""
    place = len(_PNG)
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        kind = bytes(data[place + 4 : place + 8])
        if end + 4 > len(data):
            break
        if zlib.crc32(memoryview(data)[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ValueError(f"damaged: a wrong checksum in its chunk {kind.decode('latin-1')!r}")
        if kind == b"IEND":
            return
        place = end + 4
    raise ValueError("the file is cut short: it has no end")


def _parse_jpeg(data: bytearray) -> _Jpeg:
    """Size and kind from the segments (ISO/IEC 10918-1, B.1), which are all walked through.

    Raises:
        ValueError: they are damaged or cut short, or of a kind that is not read.
    """
    frame, frame_marker, scans, restarts = None, 0, [], 0
    zero_codes: dict[int, int] = {}  # symbol of the code that is all zeros, by table
    place = 2
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            raise ValueError("damaged: something else where a marker should be")
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == _END_OF_IMAGE or marker in _NO_LENGTH:
            raise ValueError("damaged: it ends before its image data")
        start, end = place + 4, place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in _FRAMES:
            frame, frame_marker = bytes(data[start:end]), marker
            _check_frame(frame)
        elif marker == _HUFFMAN_TABLES:
            zero_codes |= _zero_codes(data[start:end])
        elif marker == 0xDD:
            restarts = int.from_bytes(data[start:end], "big")
        place = end
        if marker == _START_OF_SCAN:
            if frame is None:
                raise ValueError("damaged: image data without an image size")
            place = _end_of_scan(data, end, bool(restarts))
            scans.append((end, place))
            one_code = zero_codes.get(0x10 | data[start + 2] & 15) if end - start > 3 else None
            hole = data.find(bytes(_HOLE), end, end + len(data[end:place].rstrip(b"\0")))  # at the end they are padding
            if frame_marker in _BASELINE and one_code != 0 and hole >= 0:
                raise ValueError(f"damaged: a hole of zeros at byte {hole}")
            if place + 1 < len(data) and data[place + 1] == _END_OF_IMAGE:
                break
    else:
        raise ValueError("the file is cut short: it has no end marker" if scans else "the file is cut short: no image")
    height, width = (int.from_bytes(frame[at : at + 2], "big") for at in (1, 3))
    whole = len(scans) == 1 and frame_marker in _BASELINE
    return _Jpeg(height, width, frame[5], scans[0] if whole else None)


def _check_frame(frame: bytes) -> None:
    if len(frame) < 6:
        raise ValueError("damaged: a frame header without an image size")
    height, width = (int.from_bytes(frame[at : at + 2], "big") for at in (1, 3))
    if not height or not width:
        raise ValueError("a JPEG file without an image size")
    _check_size(height, width)
    if frame[0] != 8:
        raise ValueError(f"JPEG of {frame[0]} bits; convert it to 8 bits")
    if frame[5] not in (1, 3, 4):
        raise ValueError(f"JPEG of {frame[5]} channels; convert it to RGB or grayscale")


def _zero_codes(tables: bytearray) -> dict[int, int]:
    """The first symbol of each Huffman table of a segment, whose code is all zeros: {class << 4 | number: symbol}."""
    found, place = {}, 0
    while place + 17 < len(tables):
        found[tables[place]] = tables[place + 17]
        place += 17 + sum(tables[place + 1 : place + 17])
    return found


def _end_of_scan(data: bytearray, start: int, has_restarts: bool) -> int:
    """Where the marker behind a scan's data begins: what follows 0xFF inside them is 0 or a restart marker."""
    values = np.frombuffer(data, np.uint8)
    places = np.flatnonzero(values[start:-1] == 0xFF) + start
    following = values[places + 1]
    restart = (following >= _RESTARTS.start) & (following < _RESTARTS.stop)
    ends = places[(following != 0) & (following != 0xFF) & ~restart]
    if not len(ends):
        raise ValueError("the file is cut short: it has no end marker")
    end = int(ends[0])
    seen = following[restart & (places < end)]
    if (len(seen) and not has_restarts) or (seen != _RESTARTS.start + np.arange(len(seen)) % 8).any():
        raise ValueError("damaged: a restart marker out of turn inside the image data")
    if values[end + 1] != _END_OF_IMAGE and values[end + 1] not in _BETWEEN_SCANS:
        raise ValueError(f"damaged: a stray marker {values[end + 1]:02x} inside the image data")
    return end


class _Rationed(io.BytesIO):
    """Bytes that are read up to ``ration`` first, where one is set, and beyond only when more is asked for."""

    ration = 0

    def read(self, size: int | None = -1) -> bytes:
        left = self.ration - self.tell()
        return super().read(min(size, left) if size and size > 0 and left > 0 else size)


def _load_checked(data: bytearray, scan: tuple[int, int], *, coarse: bool = False) -> Image.Image:
    """The JPEG image in ``data``, loaded; its scan has neither too few nor too many bytes.

    Too few: libjpeg is shown the file without its end marker, so that it stops instead of making up what is missing.
    Too many: it must not be done before it has seen the last byte; bytes that repeat at the end may be padding.

    Args:
        coarse: for the check alone, an eighth of the size and gray, which saves most of the time.

    Raises:
        ValueError: there are too few or too many, or the decoder fails.
    """
    start, end = scan
    last = len(data[start:end].rstrip(data[end - 1 : end])) + start - 1 if end > start else start
    file = _Rationed(bytes(data[:end]) + bytes(_PREFETCH))
    image = _open(file)
    if coarse:
        image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))
    file.ration = max(start, last)
    try:
        image.load()
    except OSError as error:
        if "truncated" in str(error):
            raise ValueError("damaged: image data are missing") from None
        raise
    if file.tell() <= file.ration:
        raise ValueError("damaged: more image data than the image has pixels")
    return image


def _check_scan(data: bytearray, jpeg: _Jpeg) -> None:
    if jpeg.scan:
        _load_checked(data, jpeg.scan, coarse=True)

"""What must be known of an image file before its pixels are decoded: its size, and that all of it is there."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from vision_reference.errors import UserError

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, b"\xff\xd9"
_NO_LENGTH = {0x01, *range(0xD0, 0xD9)}
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def is_jpeg(data: bytes | bytearray | np.ndarray) -> bool:
    """Whether the bytes of a file begin as a JPEG file does."""
    return bytes(data[:2]) == b"\xff\xd8"


def read_encoded(path: str) -> tuple[np.ndarray, tuple[int, int]]:
    """Bytes of an image file, (N,) uint8, and its height and width.

    A file that was cut short is found here, before a decoder fills the missing part with grey.

    Raises:
        UserError: the file cannot be read, is no image, or is cut short.
    """
    try:
        with open(path, "rb") as file:
            data = bytearray(file.read())  # writable, as tensors made of it must be
        size = _jpeg_size(data) if is_jpeg(data) else _other_size(data)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"unreadable image {path} ({reason}); replace or remove it") from None
    return np.frombuffer(data, np.uint8), size


def _other_size(data: bytearray) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
        return image.height, image.width


def _jpeg_size(data: bytearray) -> tuple[int, int]:
    """Height and width from the frame header; Pillow would take ten times as long to say so (ISO/IEC 10918-1, B.1)."""
    size = None
    for marker, start in _segments(data):
        if marker in _FRAMES:
            size = (
                int.from_bytes(data[start + 3 : start + 5], "big"),
                int.from_bytes(data[start + 5 : start + 7], "big"),
            )
        if marker == _START_OF_SCAN:
            # Inside a scan a data byte 0xFF is followed by 0, so the end marker is what it seems to be.
            if data.rfind(_END_OF_IMAGE, start) < 0:
                raise ValueError("the file is cut short: it has no end marker")
            break
    else:
        raise ValueError("the file is cut short: it has no image data")
    if size is None or 0 in size:
        raise ValueError("a JPEG file without an image size")
    return size


def _segments(data: bytearray) -> Iterator[tuple[int, int]]:
    """(marker, offset of its length field) of the segments of a JPEG file up to the end of the data."""
    place = 2
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            raise ValueError("broken JPEG header")
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker in _NO_LENGTH:
            place += 2
        else:
            yield marker, place + 2
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")

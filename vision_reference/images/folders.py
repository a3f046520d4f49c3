"""Folders of images as data sets of (pixels, label), with mistakes in them told in one line."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.functional import pil_to_tensor

from vision_reference.errors import UserError
from vision_reference.files import atomic_file, cache_file
from vision_reference.images.decoding import is_jpeg, read_encoded

Sample = tuple[str, int]


def read_image(path: str) -> Image.Image:
    """The image at ``path`` as RGB.

    Raises:
        UserError: it cannot be read or decoded.
    """
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            return image.convert("RGB")
    # Pillow's decoders raise SyntaxError (PNG) and ValueError too; a bomb is an image of absurd size.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"unreadable image {path} ({reason}); replace or remove it") from None


def read_pixels(path: str) -> Tensor:
    """The pixels of the image at ``path``, uint8 (3, H, W), equal to those of ``read_image``.

    JPEG files skip the PIL image on the way: torchvision decodes them straight into the tensor.

    Raises:
        UserError: it cannot be read or decoded.
    """
    encoded, _ = read_encoded(path)
    if is_jpeg(encoded):
        try:
            return decode_jpeg(torch.from_numpy(encoded), ImageReadMode.RGB)
        except RuntimeError:
            pass  # what its decoder does not know (four inks) or cannot read; Pillow knows more, or says what is wrong
    return pil_to_tensor(read_image(path))


class ImageDataset(Dataset):
    """(pixels, label) for keys ``(index, seed)``: the seed fixes every random choice of ``transform``.

    Args:
        samples: (path, label) pairs.
        classes: class names; labels index them.
        transform: from what ``read`` returns to a tensor, drawing on torch's CPU generator.
        read: from path to image: ``read_image`` or ``read_pixels``.
    """

    def __init__(
        self, samples: list[Sample], classes: list[str], transform: Callable, read: Callable = read_image
    ) -> None:
        self.samples = samples
        self.classes = classes
        self.transform = transform
        self.read = read

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = key
        path, label = self.samples[index]
        image = self.read(path)
        with seeded(seed):
            return self.transform(image), label


class seeded:
    """Context in which torch's CPU generator starts from ``seed``; its state is put back afterwards.

    ``torch.manual_seed`` would touch the GPUs' generators too, which a loader in the main process must not.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        self.state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(self.seed)

    def __exit__(self, *exception: object) -> None:
        torch.default_generator.set_state(self.state)


def image_folder(root: Path, *, cache: bool = False) -> tuple[list[Sample], list[str]]:
    """Samples and classes of a folder in ImageFolder layout: one subfolder of images per class.

    Args:
        root: the folder.
        cache: keep the list between runs; it is used as long as no class folder has changed.

    Raises:
        UserError: the folder is missing, holds no class, or a class holds no image.
    """
    if not root.is_dir():
        raise UserError(
            f"no folder {root}; --data-path needs train/ and val/, each with one folder of images per class"
        )
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if not folders:
        raise UserError(f"{root} holds no class folder; expected {root}/<class>/<image>")
    # A class folder's time of modification changes whenever a file is added to or removed from it.
    state = [(name, (root / name).stat().st_mtime_ns) for name in folders]
    index = cache_file("image_folders", [str(root.resolve()), state])
    if cache and index.is_file():
        listing = json.loads(index.read_text())
        return [(str(root / path), label) for path, label in listing], folders
    samples = ImageFolder(str(root), allow_empty=True).samples
    labels = {label for _, label in samples}
    if empty := [name for label, name in enumerate(folders) if label not in labels]:
        raise UserError(f"{root} has no images in the folder of {_some(empty)}; fill or remove it")
    if cache:
        listing = json.dumps([(os.path.relpath(path, root), label) for path, label in samples])
        index.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(index) as file:
            file.write(listing.encode())
    return samples, folders


def check_same_classes(train: list[str], val: list[str]) -> None:
    """Labels are positions in the sorted class names, so both splits must have the same ones.

    Raises:
        UserError: they differ; names the differing classes.
    """
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    parts = [f"only in train/: {_some(only_train)}"] * bool(only_train)
    parts += [f"only in val/: {_some(only_val)}"] * bool(only_val)
    if parts:
        raise UserError(f"train/ and val/ have different classes ({'; '.join(parts)}); labels would not match")


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

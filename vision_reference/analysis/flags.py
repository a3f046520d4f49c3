"""The flags that the commands of this folder share. Imports nothing heavy, so that --help is quick."""

import argparse
import os
from pathlib import Path

from vision_reference import errors
from vision_reference.arguments import count as count
from vision_reference.arguments import dataset_name, device_name, filled_text, natural, share_of_a_class
from vision_reference.arguments import temperature as temperature
from vision_reference.images.presets import INTERPOLATIONS, PRESETS


class Parser(errors.Parser):
    """The parser of a command whose docstring is its help."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )


def path(text: str) -> Path:
    """An argparse type: a path; an empty text, as of an unset variable, would mean the current folder."""
    return Path(filled_text(text))


def folder(text: str) -> Path:
    """An argparse type: a folder, or one that is still to be made."""
    found = path(text)
    for part in (found, *found.parents):
        if part.exists() and not part.is_dir():
            raise argparse.ArgumentTypeError(f"'{part}' is a file; give a folder")
    return found


def new_file(text: str) -> Path:
    """An argparse type: a file that can be written when all is done, which may be hours later."""
    file = path(text)
    if file.is_dir() or not file.parent.is_dir():
        what = "is a folder" if file.is_dir() else f"cannot be written: there is no folder {file.parent}"
        raise argparse.ArgumentTypeError(f"'{text}' {what}; give a file in a folder that exists")
    return file


def named(text: str) -> tuple[str, str]:
    """An argparse type: NAME=SOURCE."""
    name, _, source = text.partition("=")
    if not name.strip() or not source.strip():
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=PATH, such as plain=runs/plain/checkpoint.pth")
    return name.strip(), source.strip()


DEVICES = "cpu, cuda, cuda:N or mps; the CPU where there is no GPU (default: cuda)"
SOURCES = (
    "a checkpoint (ours, torchvision's recipe's, the paper's *.pth.tar, a state dict, safetensors), or weights by "
    "name: ResNet50_Weights.IMAGENET1K_V2, timm:NAME, hf://owner/name"
)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Which images, shown how."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data-path",
        type=path,
        required=True,
        metavar="DIR",
        help="folder with train/ and val/, one subfolder of images per class; for cub200 the folder of CUB_200_2011/",
    )
    group.add_argument(
        "--dataset",
        type=dataset_name,
        default="imagefolder",
        metavar="NAME",
        help="imagefolder, cub200, or package.module:function, as train.py has it (default: imagefolder)",
    )
    group.add_argument(
        "--split",
        type=share_of_a_class,
        metavar="SHARE",
        help="imagefolder without val/: the images that count are this share of each class of train/, as in train.py",
    )
    recorded = "(default: as the checkpoint was trained)"
    group.add_argument("--preset", choices=sorted(PRESETS), help=f"normalization and sizes {recorded}")
    group.add_argument(
        "--val-resize-size", type=count, metavar="PIXELS", help=f"shorter side before the crop {recorded}"
    )
    group.add_argument("--val-crop-size", type=count, metavar="PIXELS", help=f"centre crop {recorded}")
    group.add_argument("--interpolation", choices=INTERPOLATIONS, help=recorded)
    group.add_argument(
        "--model", type=filled_text, metavar="NAME", help="network of files that do not say theirs (bare state dicts)"
    )
    group.add_argument("--device", type=device_name, default="cuda", help=DEVICES)
    group.add_argument("-b", "--batch-size", type=count, default=64, help="images per step (default: 64)")
    group.add_argument(
        "-j", "--workers", type=natural, default=min(4, os.cpu_count() or 1), help="loader processes (default: up to 4)"
    )


def shown(args: argparse.Namespace) -> dict:
    """The keyword arguments of ``subjects.load_subject`` that ``add_data``'s flags set."""
    return {
        "model": args.model,
        "device": args.device,
        "preset": args.preset,
        "resize": args.val_resize_size,
        "crop": args.val_crop_size,
        "interpolation": args.interpolation,
    }


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where results go."""
    parser.add_argument(
        "--output", type=folder, required=True, metavar="DIR", help="folder for the results; files in it are replaced"
    )

"""The flags that the commands of this folder share. Imports nothing heavy, so that --help is quick."""

import argparse
import os
from pathlib import Path
from typing import NoReturn

from vision_reference.arguments import device_name
from vision_reference.images.presets import INTERPOLATIONS, PRESETS


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line; the list of all flags would only hide it."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists all flags)\n")


def count(text: str) -> int:
    """An argparse type: an integer from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not an integer from 1")
    return int(text)


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
        type=Path,
        required=True,
        metavar="DIR",
        help="folder with train/ and val/, one subfolder of images per class; for cub200 the folder of CUB_200_2011/",
    )
    group.add_argument(
        "--dataset", choices=("imagefolder", "cub200"), default="imagefolder", help="(default: imagefolder)"
    )
    recorded = "(default: as the checkpoint was trained)"
    group.add_argument("--preset", choices=sorted(PRESETS), help=f"normalization and sizes {recorded}")
    group.add_argument(
        "--val-resize-size", type=count, metavar="PIXELS", help=f"shorter side before the crop {recorded}"
    )
    group.add_argument("--val-crop-size", type=count, metavar="PIXELS", help=f"centre crop {recorded}")
    group.add_argument("--interpolation", choices=INTERPOLATIONS, help=recorded)
    group.add_argument("--model", metavar="NAME", help="network of files that do not say theirs (bare state dicts)")
    group.add_argument("--device", type=device_name, default="cuda", help=DEVICES)
    group.add_argument("-b", "--batch-size", type=count, default=64, help="images per step (default: 64)")
    group.add_argument(
        "-j", "--workers", type=int, default=min(4, os.cpu_count() or 1), help="loader processes (default: up to 4)"
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
        "--output", type=Path, required=True, metavar="DIR", help="folder for the results; files in it are replaced"
    )

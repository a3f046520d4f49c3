"""How much damage to JPEG files is found, and what looking for it costs.

    python scripts/bench/damaged_files.py --data-path /data/imagenet/train

Each file is damaged in its middle in several ways, in memory, and read; whole files are read with and without the check
(vision_reference/images/decoding.py). Times are those of one core.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from vision_reference.analysis import flags
from vision_reference.errors import Parser, UserError, run_command

ROUNDS = 5


def damages(size: int) -> dict[str, Callable[[bytes, int], bytes]]:
    """Ways to damage a file's bytes at a place, by name."""
    generator = random.Random(0)
    return {
        "nothing": lambda data, place: data,
        f"{size} zeros": lambda data, place: data[:place] + bytes(size) + data[place + size :],
        f"{size} random bytes": lambda data, place: data[:place] + generator.randbytes(size) + data[place + size :],
        f"{size} bytes lost": lambda data, place: data[:place] + data[place + size :],
        "one bit flipped": lambda data, place: data[:place] + bytes([data[place] ^ 8]) + data[place + 1 :],
    }


def refused(files: Sequence[bytes], damage: Callable[[bytes, int], bytes], folder: Path) -> int:
    """How many of ``files`` are refused once they are damaged."""
    from vision_reference.images.decoding import read_image

    count = 0
    for data in files:
        (folder / "a.jpg").write_bytes(damage(data, len(data) // 2))
        try:
            read_image(str(folder / "a.jpg"))
        except UserError:
            count += 1
    return count


def milliseconds(read: Callable[[str], object], paths: Sequence[str]) -> float:
    """CPU time of one file; the best of some rounds."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for path in paths:
            read(path)
        rounds.append(1000 * (time.process_time() - began) / len(paths))
    return min(rounds)


def main() -> None:
    """Parse the command line, damage, time, report."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-path", type=flags.path, required=True, help="folder with one folder of images per class"
    )
    parser.add_argument("--images", type=int, default=250, help="of these at most so many (default: %(default)s)")
    parser.add_argument("--size", type=int, default=512, help="bytes that are damaged (default: %(default)s)")
    args = parser.parse_args()
    if min(args.images, args.size) < 1:
        raise UserError("--images and --size must be at least 1")

    import torch
    from torchvision.datasets.folder import pil_loader

    from vision_reference.images.decoding import is_jpeg, read_image, read_pixels
    from vision_reference.images.folders import image_folder

    torch.set_num_threads(1)
    paths = [path for path, _ in image_folder(args.data_path)[0][: args.images]]
    paths = [path for path in paths if is_jpeg(Path(path).read_bytes())]
    if not paths:
        raise UserError(f"no JPEG file among the first {args.images} images of {args.data_path}")
    files = [Path(path).read_bytes() for path in paths]
    print(f"| damage in the middle | refused, of {len(files)} |\n|---|---|")
    with tempfile.TemporaryDirectory(prefix="damaged-") as folder:
        for name, damage in damages(args.size).items():
            print(f"| {name} | {refused(files, damage, Path(folder))} |", flush=True)
    print("\n| reading a file | ms of CPU |\n|---|---|")
    for name, read in {
        "torchvision's pil_loader": pil_loader,
        "read_image, which checks": read_image,
        "read_pixels without the check": lambda path: read_pixels(path, check=False),
        "read_pixels with it": read_pixels,
    }.items():
        print(f"| {name} | {milliseconds(read, paths):.2f} |", flush=True)


if __name__ == "__main__":
    run_command("damaged_files.py", main)

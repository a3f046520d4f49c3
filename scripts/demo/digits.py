"""Write scikit-learn's 1,797 scanned handwritten digits as image files that any ImageFolder loader reads.

    python scripts/demo/digits.py --output data/digits

DIR/train/<digit>/*.png holds 1,437 images and DIR/val/<digit>/*.png 360, split evenly per digit, 32x32 RGB. The data
ships inside scikit-learn (test set of the UCI "Optical Recognition of Handwritten Digits", Alpaydin and Kaynak 1998),
so nothing is downloaded, and the same files come out every time.
"""

import argparse
import shutil
import sys
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])


from vision_reference.analysis.flags import path
from vision_reference.errors import Parser, UserError, run_command

MARK = ".digits-being-written"  # in a folder of ours that is not whole yet, and may be removed
SIDE = 32  # pixels; the scans are 8x8
VAL_SHARE = 0.2


def main() -> None:
    """Parse the command line and write the folder."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=path, required=True, metavar="DIR", help="new folder, or one written before")
    output = parser.parse_args().output
    if (output / "train").is_dir() and (output / "val").is_dir():
        print(f"{output} already holds the digits")
        return
    partial = output.with_name(output.name + ".partial")
    for folder in (output, partial):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file; give a new folder")
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} holds other files; give a new folder")
    if partial.exists() and any(partial.iterdir()):
        if not (partial / MARK).is_file():
            raise UserError(
                f"{partial} is in the way and was not written by this command; move it or give another folder"
            )
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    (partial / MARK).touch()
    counts = write_digits(partial)
    (partial / MARK).unlink()
    if output.exists():
        output.rmdir()
    partial.rename(output)  # last, so that an interrupted run leaves no half-filled folder under the final name
    print(f"wrote {counts['train']} training and {counts['val']} validation images to {output}")


def write_digits(folder: Path) -> dict[str, int]:
    """Write both splits below ``folder``; returns the number of images of each."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    numbers = np.arange(len(digits.target))
    train, val = train_test_split(numbers, test_size=VAL_SHARE, stratify=digits.target, random_state=0)
    for split, members in (("train", train), ("val", val)):
        for digit in range(10):
            (folder / split / str(digit)).mkdir(parents=True)
        for number in sorted(members):
            pixels = np.rint(digits.images[number] * (255 / 16)).astype(np.uint8)  # grey levels 0..16
            image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
            image.save(folder / split / str(digits.target[number]) / f"{number:04d}.png")
    return {"train": len(train), "val": len(val)}


if __name__ == "__main__":
    run_command("digits.py", main)

"""Calibrates the rule that tells a smoothed teacher by its outputs, and counts its hits on teachers it has not seen.

    python scripts/bench/smoothing_detector.py --output results/smoothing_detector
    python scripts/bench/smoothing_detector.py --output results/smoothing_detector --held-out cifar=data/cifar100_25

Trains small teachers on the built-in digits with label smoothing 0, 0.05, 0.1, 0.2 and with MaxSup 0.1, several
architectures each; the rule's constants (vision_reference/analysis/smoothing.py) were read off the first four
architectures. Two more, and every --held-out folder (ImageFolder layout, shown at 32x32), serve to test it. What the
teachers answer on the validation images is kept in the output folder, so that a second run trains nothing anew.
About 15 minutes of one core with one held-out folder of 12,500 images.
"""

import argparse
import sys
import time
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from vision_reference.analysis.flags import count, folder
from vision_reference.errors import Parser, run_command

SEEN = {"resnet8": 8, "shufflenet_v2_x0_5": 14, "resnet14": 8, "timm:regnetx_002": 10}  # epochs
UNSEEN = {"resnet20": 8}
ON_HELD_OUT = "resnet8"
UNFINISHED = {"digits": (2, 4), "held out": (1, 2)}  # epochs of plain teachers stopped early, which are flat too
KINDS = (("smoothing", 0.0), ("smoothing", 0.05), ("smoothing", 0.1), ("smoothing", 0.2), ("MaxSup", 0.1))
SIDE = 32


def load(root: Path):
    """(training pixels, labels, validation pixels, labels, number of classes): float (N, 3, 32, 32) from -1 to 1."""
    import torch
    from torchvision.transforms.functional import pil_to_tensor, resize

    from vision_reference.images.decoding import read_image
    from vision_reference.images.folders import image_folder

    parts = []
    for split in ("train", "val"):
        samples, classes = image_folder(root / split)
        pixels = [resize(pil_to_tensor(read_image(path)), [SIDE, SIDE], antialias=True) for path, _ in samples]
        parts += [torch.stack(pixels).float() / 127.5 - 1, torch.tensor([label for _, label in samples])]
    return *parts, len(classes)


def train(data, model: str, kind: str, alpha: float, *, epochs: int, mirror: bool, seed: int):
    """Logits (N, K) of a freshly trained teacher on the validation images, as a float32 array."""
    import torch

    from vision_reference.losses.labels import label_loss
    from vision_reference.networks.by_name import build_model

    images, labels, val_images, _, classes = data
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = build_model(model, classes).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * (len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    regularizer = (
        {"label_smoothing": alpha} if kind == "smoothing" else {"label_smoothing": 0.0, "max_suppression": alpha}
    )
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)[: len(images) // 64 * 64]
        for chosen in order.view(-1, 64):
            shift = torch.randint(-3, 4, (2,), generator=generator).tolist()
            batch = torch.roll(images[chosen], shift, (2, 3))
            if mirror and torch.rand((), generator=generator) < 0.5:
                batch = batch.flip(3)
            loss = label_loss(
                network(batch.contiguous(memory_format=torch.channels_last)), labels[chosen], **regularizer
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.inference_mode():
        return torch.cat([network(part) for part in val_images.split(256)]).numpy()


def teachers(args: argparse.Namespace):
    """Yields (set, model, kind, alpha, logits, labels) of every teacher, trained or kept from before."""
    import numpy as np

    from scripts.demo.digits import write_digits
    from vision_reference.files import atomic_file

    digits = args.output / "digits"
    if not digits.is_dir():
        write_digits(args.output / "digits.partial")
        (args.output / "digits.partial").rename(digits)
    plans = [("digits", digits, model, epochs) for model, epochs in (SEEN | UNSEEN).items()]
    plans += [(name, root, ON_HELD_OUT, args.held_out_epochs) for name, root in args.held_out]
    plans = [(*plan, *kind) for plan in plans for kind in KINDS]
    for name, root in (("digits", digits), *args.held_out):
        early = UNFINISHED["digits" if name == "digits" else "held out"]
        plans += [(f"{name}_{epochs}_epochs", root, ON_HELD_OUT, epochs, *KINDS[0]) for epochs in early]
    loaded: dict[Path, tuple] = {}
    for name, root, model, epochs, kind, alpha in plans:
        path = args.output / f"{name}-{model.replace(':', '_')}-{kind}-{alpha:g}.npz"
        if not path.is_file():
            if root not in loaded:
                loaded = {root: load(root)}
            began = time.monotonic()
            mirror = not name.startswith("digits")
            logits = train(loaded[root], model, kind, alpha, epochs=epochs, mirror=mirror, seed=0)
            with atomic_file(path) as file:
                np.savez(file, logits=logits, labels=loaded[root][3].numpy())
            print(f"trained {path.stem} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        with np.load(path) as kept:
            yield name, model, kind, alpha, kept["logits"], kept["labels"]


def print_result(found: list[tuple]) -> None:
    """What the constants come from, and how often the rule is right."""
    import numpy as np

    from vision_reference.analysis import smoothing

    seen = [row for row in found if row[0] == "digits" and row[1] in SEEN and row[2] == "smoothing"]
    spreads = {row[:4]: smoothing.spread_of_the_rest(row[4]) for row in found}
    smoothed = [spreads[row[:4]] for row in seen if row[3]]
    plain = [spreads[row[:4]] for row in seen if not row[3]]
    print(f"spread on the four architectures: smoothed up to {max(smoothed):.2f}, plain from {min(plain):.2f}")
    told = [row for row in seen if row[3]]
    floors = np.log([smoothing.floor_of_the_rest(row[4]) for row in told])
    alphas = np.log([row[3] for row in told])
    slope, intercept = np.polyfit(floors, alphas, 1)
    factor = float(np.exp(2 * np.std(alphas - intercept - slope * floors, ddof=2)))
    print(f"log alpha = {intercept:.3f} + {slope:.3f} * log(floor), off by a factor of {factor:.2f} at two sd")
    print("| data | network | labels | top-1 | spread | verdict | alpha, estimated |")
    print("|---|---|---|---|---|---|---|")
    counts: dict[str, list[int]] = {}
    for name, model, kind, alpha, logits, labels in found:
        verdict = smoothing.looks_smoothed(logits, labels)
        right = smoothing.SMOOTHED if alpha else smoothing.PLAIN
        where = "read off" if name == "digits" and model in SEEN else "not seen"
        if "epochs" in name:
            where = "stopped early"
        outcome = 0 if verdict.answer == right else 1 if verdict.answer == smoothing.UNKNOWN else 2
        counts.setdefault(where, [0, 0, 0])[outcome] += 1
        shown = "" if verdict.alpha is None else f"{verdict.alpha:.2g}"
        top1 = 100 * (logits.argmax(1) == labels).mean()
        title = f"{kind} {alpha:g}" if alpha else "plain"
        print(f"| {name} | {model} | {title} | {top1:.1f} | {verdict.spread:.2f} | {verdict.answer} | {shown} |")
    for where, (hits, unknown, misses) in counts.items():
        print(f"{where}: {hits} right, {unknown} cannot tell, {misses} wrong of {hits + unknown + misses}")


def named_folder(text: str) -> tuple[str, Path]:
    """An argparse type: NAME=DIR."""
    name, _, root = text.partition("=")
    if not name or not root:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=DIR")
    return name, Path(root)


def main() -> None:
    """Train what is missing, then print the table and the hit rates."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=folder, required=True, metavar="DIR", help="keeps the teachers' answers")
    parser.add_argument(
        "--held-out",
        type=named_folder,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="data to test the rule on",
    )
    parser.add_argument("--held-out-epochs", type=count, default=4, metavar="N", help="(default: 4)")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    print_result(list(teachers(args)))


if __name__ == "__main__":
    run_command("smoothing_detector.py", main)

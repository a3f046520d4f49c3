"""Name what is in pictures, with a trained network and nothing but its checkpoint.

    python vision_reference/predict.py student/best.pth cat.jpg holiday/        pictures, or folders of them
    find . -name '*.jpg' | python vision_reference/predict.py student/best.pth - --format csv
    python vision_reference/predict.py student/best.pth --confusion DATA/val --output confusion

Classes, sizes and normalization come from the checkpoint. A picture that cannot be read is reported by its path, the
rest goes on, and the command ends with status 1.
"""

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from vision_reference.analysis.flags import DEVICES, SOURCES, Parser, count, filled_text, path
from vision_reference.arguments import device_name
from vision_reference.errors import UserError, run_command, some

if TYPE_CHECKING:
    import torch

    from vision_reference.networks.description import CompleteDescription

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parsed and checked flags.

    Raises:
        UserError: nothing to predict, or flags that contradict each other.
    """
    parser = Parser("predict.py", __doc__ or "")
    parser.add_argument(
        "checkpoint",
        help=SOURCES,
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE|FOLDER|-", help="pictures; -: paths on standard input")
    parser.add_argument(
        "--model", type=filled_text, metavar="NAME", help="the network, where the file does not name it"
    )
    parser.add_argument("--model-ema", action="store_true", help="predict with the moving average of the weights")
    parser.add_argument("--top", type=count, default=5, metavar="N", help="classes shown of each (default: 5)")
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table", help="(default: table)")
    parser.add_argument(
        "--confusion",
        type=path,
        metavar="DATA",
        help="folder with one subfolder of pictures per class: accuracy of each class and the most confused pairs",
    )
    parser.add_argument(
        "--output", type=path, metavar="DIR", help="with --confusion: folder for its tables and picture"
    )
    parser.add_argument("-b", "--batch-size", type=count, default=32, help="pictures at a time (default: 32)")
    parser.add_argument("-j", "--workers", type=count, default=4, help="threads that read pictures (default: 4)")
    parser.add_argument("--device", type=device_name, default="cuda", help=DEVICES)
    args = parser.parse_intermixed_args(argv)
    if bool(args.images) == bool(args.confusion):
        raise UserError("give pictures (files, folders, or - for paths on standard input), or --confusion DATA")
    if args.output and not args.confusion:
        raise UserError("--output is for --confusion; predictions go to standard output")
    return args


@dataclass(frozen=True)
class Prediction:
    """What a network says of one picture.

    Attributes:
        path: of the picture.
        classes: the likeliest first.
        probabilities: of these classes.
        error: why there is none; None where there is one.
    """

    path: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None


class Predictor:
    """A trained network with the preparation that its pictures need.

    Args:
        network: in evaluation mode, on ``device``.
        description: complete: sizes, interpolation, mean, std.
        classes: names in the order of the logits.
        device: of ``network``.
        threads: that read pictures.
    """

    def __init__(
        self,
        network: "torch.nn.Module",
        description: "CompleteDescription",
        classes: Sequence[str],
        device: "torch.device",
        threads: int = 4,
    ) -> None:
        from vision_reference.images.pipelines import Normalize, evaluation_pipeline

        self.network = network
        self.classes = list(classes)
        self.device = device
        self.threads = threads
        self.prepare = evaluation_pipeline(
            resize_size=description.val_resize_size,
            crop_size=description.val_crop_size,
            interpolation=description.interpolation,
        )
        self.normalize = Normalize(description.mean, description.std, device)

    @classmethod
    def load(
        cls, checkpoint: str, *, arch: str | None = None, ema: bool = False, device: str = "cpu", threads: int = 4
    ) -> "Predictor":
        """The network of a checkpoint, ready; classes are numbers where its file names none.

        Raises:
            UserError: as ``networks.by_name.load_network``.
        """
        from vision_reference.machine import choose_device
        from vision_reference.networks import by_name, heads

        network, description = by_name.load_network(checkpoint, arch, ema=ema)
        classes = description.classes or [str(number) for number in range(heads.class_count(network))]
        if description.classes is None:
            print(f"note: {checkpoint} does not name its classes; numbers stand for them", file=sys.stderr)
        if described := [name for name in description.assumed if name not in ("preset", "train_crop_size")]:
            text = f"note: {checkpoint} does not say its {', '.join(described)}; taken as for {description.preset}"
            print(text, file=sys.stderr)
        place = choose_device(device, None)
        return cls(network.to(place), description, classes, place, threads)

    def predict(self, paths: Iterable[str], *, top: int = 5, batch_size: int = 32) -> Iterator[Prediction]:
        """Predictions in the order of ``paths``, each as soon as its batch is done."""
        import torch

        left = iter(paths)
        with ThreadPoolExecutor(self.threads) as readers:
            while batch := list(islice(left, batch_size)):
                found = list(readers.map(self._read, batch))
                pixels = [image for image in found if not isinstance(image, str)]
                rows: Iterator[tuple[list[float], list[int]]] = iter(())
                if pixels:
                    with torch.inference_mode():
                        images = self.normalize(torch.stack(pixels).to(self.device))
                        probabilities = self.network(images).cpu().double().softmax(dim=1)
                        values, indices = probabilities.topk(min(top, len(self.classes)), dim=1)
                    rows = iter(zip(values.tolist(), indices.tolist(), strict=True))
                for path, image in zip(batch, found, strict=True):
                    if isinstance(image, str):
                        yield Prediction(path, error=image)
                        continue
                    values_of_one, numbers = next(rows)
                    yield Prediction(path, tuple(self.classes[number] for number in numbers), tuple(values_of_one))

    def _read(self, path: str) -> "torch.Tensor | str":
        """Pixels of a picture, uint8 (3, H, W), or why there are none."""
        from vision_reference.images.decoding import read_image

        try:
            return self.prepare(read_image(path))
        except UserError as error:
            return error.line


def list_pictures(inputs: Sequence[str], lines: Iterable[str]) -> Iterator[str]:
    """Paths of the pictures that ``inputs`` name: files as they are, pictures in folders (and theirs), sorted.

    Folders are looked through at once, so that a mistake is told before anything is predicted.

    Args:
        lines: paths that ``-`` stands for.

    Raises:
        UserError: a folder without pictures.
    """
    parts: list[Iterable[str]] = []
    for name in inputs:
        if name == "-":
            parts.append(line for line in (line.rstrip("\r\n") for line in lines) if line)
        elif (folder := Path(name)).is_dir():
            inside = (path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
            pictures = sorted(map(str, inside))
            if not pictures:
                raise UserError(f"{folder} holds no picture ({', '.join(ENDINGS)})")
            parts.append(pictures)
        else:
            parts.append([name])
    return chain.from_iterable(parts)


def show(predictions: Iterable[Prediction], form: str, write: Callable[[str], object]) -> int:
    """Write predictions as a table, JSON or CSV; how many pictures could not be read."""
    failed, number = 0, -1
    table = csv.writer(_Lines(write), lineterminator="\n")
    if form == "csv":
        table.writerow(["path", "rank", "class", "probability"])
    for number, found in enumerate(predictions):
        failed += found.error is not None
        if found.error is not None:
            print(f"predict.py: {found.error}", file=sys.stderr, flush=True)
        if form == "json":
            pairs = zip(found.classes, found.probabilities, strict=True)
            record: dict[str, object] = {"path": found.path}
            record |= {"error": found.error} if found.error is not None else {}
            record["predictions"] = [{"class": name, "probability": round(value, 6)} for name, value in pairs]
            write(("[\n" if number == 0 else ",\n") + json.dumps(record, ensure_ascii=False))
        elif form == "csv":
            for rank, (name, value) in enumerate(zip(found.classes, found.probabilities, strict=True), 1):
                table.writerow([found.path, rank, name, f"{value:.6f}"])
        elif found.error is None:
            pairs = zip(found.classes, found.probabilities, strict=True)
            cells = [f"{name} {100 * value:.1f} %" for name, value in pairs]
            write(f"{found.path}: {', '.join(cells)}\n")
        if number == 0 or (number + 1) % 1000 == 0:
            sys.stdout.flush()
    if form == "json":
        write("\n]\n" if number >= 0 else "[]\n")
    return failed


class _Lines:
    """What ``csv`` needs of a file."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self.write = write


def confusion(predictor: Predictor, data: Path, batch_size: int) -> "tuple[list[str], list[list[int]], list[str]]":
    """How often pictures of each class were taken for each class of the network.

    Args:
        data: folder with one subfolder of pictures per class; the names are looked up among the network's classes.

    Returns:
        Names of the data's classes, (classes of the data, classes of the network) counts, and unreadable pictures.

    Raises:
        UserError: a class that the network does not know, no folder, or no picture.
    """
    from tqdm import tqdm

    from vision_reference.images.folders import image_folder

    samples, names = image_folder(data)
    if unknown := [name for name in names if name not in predictor.classes]:
        raise UserError(
            f"{data} has a class '{unknown[0]}' that the network does not know; it knows {some(predictor.classes, 8)}"
        )
    numbers = {name: number for number, name in enumerate(predictor.classes)}
    counts = [[0] * len(predictor.classes) for _ in names]
    broken = []
    found = predictor.predict((path for path, _ in samples), top=1, batch_size=batch_size)
    bar = tqdm(found, "predicting", len(samples), unit=" pictures", mininterval=1, disable=not sys.stderr.isatty())
    for (_, label), one in zip(samples, bar, strict=True):
        if one.error is not None:
            broken.append(one.error)
        else:
            counts[label][numbers[one.classes[0]]] += 1
    return names, counts, broken


def report_confusion(predictor: Predictor, names: list[str], counts: list[list[int]], output: Path) -> None:
    """Print accuracy by class and the most confused pairs; write both tables and a picture of the matrix."""
    from vision_reference.analysis import drawing

    numbers = [predictor.classes.index(name) for name in names]
    rights = [row[number] for row, number in zip(counts, numbers, strict=True)]
    totals = [sum(row) for row in counts]
    share = [100 * right / total if total else float("nan") for right, total in zip(rights, totals, strict=True)]
    pairs = sorted(
        (
            (count, name, predictor.classes[column])
            for name, own, row in zip(names, numbers, counts, strict=True)
            for column, count in enumerate(row)
            if count and column != own
        ),
        key=lambda pair: (-pair[0], pair[1:]),
    )
    print(f"accuracy {100 * sum(rights) / max(1, sum(totals)):.3f} % of {sum(totals)} pictures")
    print("\n| class | pictures | right, % |\n|---|---|---|")
    for name, total, value in sorted(zip(names, totals, share, strict=True), key=lambda row: row[2]):
        print(f"| {name} | {total} | {value:.2f} |")
    print("\n| class | taken for | times |\n|---|---|---|")
    for times, name, other in pairs[:10]:
        print(f"| {name} | {other} | {times} |")
    output.mkdir(parents=True, exist_ok=True)
    per_class = zip(names, totals, rights, share, strict=True)
    drawing.save_table(output / "per_class.csv", ["class", "pictures", "right", "accuracy"], list(per_class))
    drawing.save_table(output / "confusion.csv", ["class", *predictor.classes], [
        [name, *row] for name, row in zip(names, counts, strict=True)
    ])  # fmt: skip
    with drawing.style():
        figure = _matrix(names, predictor.classes, counts, totals)
        drawing.save(figure, output / "confusion")
    print(f"\ntables and picture: {output}")


def _matrix(names: list[str], classes: list[str], counts: list[list[int]], totals: list[int]):
    from vision_reference.analysis import drawing

    shares = [[100 * count / max(1, total) for count in row] for row, total in zip(counts, totals, strict=True)]
    side = min(12.0, max(4.0, 1.6 + 0.22 * max(len(names), len(classes))))
    figure = drawing.new_figure(side + 0.8, side)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=100, interpolation="nearest", aspect="auto")
    axes.set(xlabel="taken for", ylabel="class")
    if len(classes) <= 60:
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(names)), names)
    figure.colorbar(image, label="share of the class's pictures, %")
    return figure


def main(args: argparse.Namespace) -> int:
    """Predict or compare; the number of pictures that could not be read."""
    predictor = Predictor.load(
        args.checkpoint, arch=args.model, ema=args.model_ema, device=args.device, threads=args.workers
    )
    if args.confusion:
        names, counts, broken = confusion(predictor, args.confusion, args.batch_size)
        for line in broken:
            print(f"predict.py: {line}", file=sys.stderr)
        report_confusion(predictor, names, counts, args.output or Path("confusion"))
        return len(broken)
    pictures = list_pictures(args.images, sys.stdin)
    found = predictor.predict(pictures, top=args.top, batch_size=args.batch_size)
    if sys.stderr.isatty() and not sys.stdout.isatty():
        from tqdm import tqdm

        found = iter(tqdm(found, "predicting", unit=" pictures", mininterval=1))
    return show(found, args.format, sys.stdout.write)


if __name__ == "__main__":
    failed: list[int] = []
    run_command("predict.py", lambda: failed.append(main(parse_args())))
    sys.exit(1 if sum(failed) else 0)

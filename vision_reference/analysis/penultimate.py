"""How three classes lie in the last layer's feature space: two that look alike and one that does not.

    python vision_reference/analysis/penultimate.py --data-path data/digits --classes 3,8,0 --output results/digits \
        --checkpoint plain=runs/plain/checkpoint.pth --checkpoint smoothed=runs/smoothed/checkpoint.pth
    python vision_reference/analysis/penultimate.py --data-path DATA --auto --output results/imagenet \
        --checkpoint teacher=ResNet50_Weights.IMAGENET1K_V2

The picture of Chandrasegaran et al. 2022 (figures 1, A.1, A.2): features are projected onto the space spanned by the
three classes' weights and biases and shown in its two principal components, which are fitted on training images and
reused for validation images. A star is a class's mean. All images are shown as in evaluation, without augmentation.
Writes DIR/penultimate.{png,pdf,svg} and the coordinates as DIR/penultimate.csv. What the networks make of the images is
kept beside each checkpoint (checkpoint.pth.features/), so that a second picture costs nothing.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from vision_reference.analysis import flags, geometry
from vision_reference.errors import UserError, run_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vision_reference.images.folders import Sample

TRAIN_IMAGES, VAL_IMAGES = 150, 50
_IN_A_ROW = 4  # networks beside one another


@dataclass(frozen=True)
class Panel:
    """One network, one set of images.

    Attributes:
        network, split: what they are called.
        points: (N, 2) coordinates.
        labels: (N,) 0, 1, 2: place of each point's class among the three.
        centroids: (3, 2) of the classes' means.
    """

    network: str
    split: str
    points: np.ndarray
    labels: np.ndarray
    centroids: np.ndarray


def panels(
    weight: np.ndarray,
    bias: np.ndarray | None,
    classes: Sequence[int],
    splits: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    network: str = "",
) -> list[Panel]:
    """The coordinates of one network's panels.

    Args:
        weight, bias: (K, h) and (K,) of its last linear layer; None for no bias.
        classes: three class numbers, rows of ``weight``.
        splits: what to call it -> features (N, h) and class numbers (N,), all of them among ``classes``; the first fits
            the principal components that all are shown in.

    Raises:
        UserError: a class without images, dependent weights, or features that are all the same.
    """
    basis = geometry.plane(weight, bias, list(classes))
    found, pca = [], None
    for split, (features, numbers) in splits.items():
        labels = np.searchsorted(classes, numbers, sorter=np.argsort(classes))
        labels = np.argsort(classes)[labels]
        points = geometry.project(features, basis)
        centroids = geometry.class_means(points, labels, len(classes))
        pca = pca or geometry.fit_pca(points, centroids)
        found.append(Panel(network, split, pca(points), labels, pca(centroids)))
    return found


def figure(found: Sequence[Panel], names: Sequence[str]) -> "Figure":
    """All panels: a column for each network, a row for each split; the panels of one network share their scale.

    Args:
        found: of ``panels``; every network with the same splits in the same order.
        names: of the three classes.
    """
    from vision_reference.analysis import drawing

    networks = list(dict.fromkeys(panel.network for panel in found))
    splits = list(dict.fromkeys(panel.split for panel in found))
    columns = min(_IN_A_ROW, len(networks))
    bands = -(-len(networks) // columns)
    with drawing.style():
        picture = drawing.new_figure(0.6 + 2.1 * columns, 0.55 + 2.2 * bands * len(splits))
        grid = picture.subplots(bands * len(splits), columns, squeeze=False)
        for axes in grid.flat:
            axes.set_visible(False)
        for number, network in enumerate(networks):
            own = [panel for panel in found if panel.network == network]
            middle, half = _square(own)
            for row, panel in enumerate(own):
                axes = grid[number // columns * len(splits) + row, number % columns]
                axes.set_visible(True)
                _draw(axes, panel, names)
                axes.set_xlim(middle[0] - half, middle[0] + half)
                axes.set_ylim(middle[1] - half, middle[1] + half)
                axes.set_aspect("equal")
                axes.locator_params(nbins=5)
                if row == 0:
                    drawing.letter(axes, network)
                if row == len(own) - 1:
                    axes.set_xlabel("first component")
                else:
                    axes.tick_params(labelbottom=False)
                if number % columns == 0:
                    axes.set_ylabel(f"{panel.split}\nsecond component")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        fits = sum(len(label) + 5 for label in labels) <= 30 * columns
        picture.legend(
            handles, labels, loc="outside upper center", ncols=4 if fits else 2, handletextpad=0.2, columnspacing=1.2
        )
    return picture


def _square(own: Sequence[Panel]) -> tuple[np.ndarray, float]:
    """Middle and half the side of the square that holds all points of one network, with a margin."""
    cloud = np.concatenate([panel.points for panel in own] + [panel.centroids for panel in own])
    low, high = cloud.min(axis=0), cloud.max(axis=0)
    return (low + high) / 2, 0.54 * float((high - low).max())


def _draw(axes, panel: Panel, names: Sequence[str]) -> None:
    from vision_reference.analysis.drawing import MARKERS

    # Dark, middle and light in grey; filled, hollow, filled: classes differ without colour too.
    colours = ("#0072B2", "#D55E00", "#E69F00")
    for number, name in enumerate(names):
        own = panel.points[panel.labels == number]
        face = "none" if number == 1 else colours[number]
        axes.plot(
            *own.T, linestyle="none", marker=MARKERS[number], markersize=3.8, markerfacecolor=face,
            markeredgecolor=colours[number], markeredgewidth=0.7, alpha=0.75, label=name, zorder=2,
        )  # fmt: skip
    star = {"linestyle": "none", "marker": "*", "markeredgecolor": "black", "markeredgewidth": 0.8}
    for number, _ in enumerate(names):
        axes.plot(*panel.centroids[number], **star, markersize=12, markerfacecolor=colours[number], zorder=3)
    axes.plot([], [], **star, markersize=10, markerfacecolor="white", label="class mean")


def rows(found: Sequence[Panel], names: Sequence[str]) -> list[tuple]:
    """The plotted coordinates: (network, split, class, image or mean, x, y)."""
    table = []
    for panel in found:
        place = (panel.network, panel.split)
        for (x, y), label in zip(panel.points.tolist(), panel.labels.tolist(), strict=True):
            table.append((*place, names[label], "image", x, y))
        for (x, y), name in zip(panel.centroids.tolist(), names, strict=True):
            table.append((*place, name, "mean", x, y))
    return table


def choose_classes(logits: np.ndarray, features: np.ndarray, labels: np.ndarray, classes: int) -> list[int]:
    """The two classes with the most errors between them, and the one whose mean feature is farthest from both.

    Where there are no errors, the two that give each other the most probability.

    Args:
        logits, features, labels: of a network's images, ``labels`` and the columns of ``logits`` the same classes.

    Raises:
        UserError: fewer than 3 classes.
    """
    from vision_reference.analysis.confusions import most_confused

    distances = geometry.relative_distances(geometry.class_means(features, labels, classes))
    if pairs := most_confused(labels, logits.argmax(axis=1), 1):
        first, second, _ = pairs[0]
    else:
        mutual = geometry.mean_probabilities(logits, labels, classes)
        mutual = np.triu(mutual + mutual.T, k=1)
        first, second = map(int, np.unravel_index(mutual.argmax(), mutual.shape))
    return [first, second, int(np.minimum(distances[first], distances[second]).argmax())]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = flags.Parser("penultimate.py", __doc__)
    parser.add_argument(
        "--checkpoint",
        type=flags.named,
        action="append",
        required=True,
        metavar="NAME=PATH",
        help=f"a network, once for each: {flags.SOURCES}",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--classes", type=flags.filled_text, metavar="A,B,C", help="three classes by folder name, or by number from 0"
    )
    which.add_argument(
        "--auto",
        action="store_true",
        help="the pair that the first checkpoint confuses most, and a class far from both",
    )
    fewer = "all where there are fewer"
    parser.add_argument("--train-images", type=flags.count, metavar="N", help=f"per class (default: 150, {fewer})")
    parser.add_argument("--val-images", type=flags.count, metavar="N", help=f"per class (default: 50, {fewer})")
    flags.add_output(parser)
    flags.add_data(parser)
    args = parser.parse_args(argv)
    names = [name for name, _ in args.checkpoint]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--checkpoint {twice}=... is given twice; every network needs a name of its own")
    return args


def main(args: argparse.Namespace) -> None:
    """Collect, project, draw."""
    from vision_reference.analysis import drawing, features, subjects

    images = subjects.read_images(args.data_path, dataset=args.dataset, split=args.split)
    wanted = _classes_asked_for(args.classes, images) if args.classes else []
    found = []
    for name, source in args.checkpoint:
        subject = subjects.load_subject(name, source, images, **flags.shown(args))
        load = {"batch_size": args.batch_size, "workers": args.workers}
        if not wanted:  # the first network's
            seen = subjects.outputs_of(subject, images.val, images, **load)
            own = seen.logits[:, subject.numbers]
            wanted = choose_classes(own, seen.features, seen.labels, len(images.classes))
        splits = {}
        for split, samples, asked, usual in (
            ("training", images.train, args.train_images, TRAIN_IMAGES),
            ("validation", images.val, args.val_images, VAL_IMAGES),
        ):
            chosen = _choose_images(samples, wanted, asked, usual, split, images.names)
            seen = subjects.outputs_of(subject, chosen, images, **load)
            splits[split] = seen.features, seen.labels
        _, layer = features.find_last_layer(subject.network, _blank(subject))
        weight, bias = features.last_weights(layer)
        weight, bias = weight[subject.numbers], None if bias is None else bias[subject.numbers]
        found += panels(weight, bias, wanted, splits, network=name)
    names = [images.names[number] for number in wanted]
    drawing.save_table(
        args.output / "penultimate.csv", ("network", "split", "class", "kind", "x", "y"), rows(found, names)
    )
    drawing.save(figure(found, names), args.output / "penultimate")
    print(f"classes {', '.join(names)}: {len(found)} panels in {args.output}/penultimate.{{png,pdf,svg,csv}}")


def _blank(subject):
    import torch

    side = subject.pixels.crop
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(subject.device)


def _classes_asked_for(text: str, images) -> list[int]:
    from vision_reference.analysis.subjects import class_number

    numbers = [class_number(part.strip(), images) for part in text.split(",")]
    if len(numbers) != 3 or len(set(numbers)) != 3:
        raise UserError(f"--classes {text}: the picture shows exactly three different classes; give A,B,C")
    return numbers


def _choose_images(
    samples: "Sequence[Sample]", wanted: Sequence[int], asked: int | None, usual: int, split: str, names: Sequence[str]
) -> "list[Sample]":
    from vision_reference.analysis.subjects import spread_out

    chosen = []
    for number in wanted:
        own = spread_out(samples, number, asked or usual)
        if asked and len(own) < asked:
            raise UserError(
                f"class {names[number]} has {len(own)} {split} images, {asked} were asked for; ask for fewer"
            )
        if len(own) < 2:
            raise UserError(f"class {names[number]} has {len(own)} {split} image; at least 2 a class make a picture")
        chosen += own
    return chosen


if __name__ == "__main__":
    run_command("penultimate.py", lambda: main(parse_args()))

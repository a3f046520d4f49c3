"""How far a higher temperature drew a student's classes towards their look-alikes: the diffusion index eta.

    python vision_reference/analysis/diffusion_index.py --data-path data/digits --output results/diffusion \
        --plain-teacher teacher_0.0/checkpoint.pth \
        --reference plain=plain_T1/checkpoint.pth      --student plain:3=plain_T3/checkpoint.pth \
        --reference smoothed=smoothed_T1/checkpoint.pth --student smoothed:3=smoothed_T3/checkpoint.pth

--reference KIND=PATH is the student at T = 1 of a kind of teacher, --student KIND:T=PATH one at a higher T. Several
seeds: PATH,PATH2,..., the same number in the same order for both. For class c, d(c, k) is the distance of the classes'
mean features over the mean distance of c to all others; eta(c) is by how many percent d to the most similar classes
shrank from the reference to the student. Similar is what the plain teacher (alpha = 0) gives most probability to on c's
images at T = 1; min(5, (classes - 1) // 2) classes count. The control is the same for equally many least similar ones.
Intervals: 95 %, percentile bootstrap over classes.
The second witness: which share of errors stays within a group of similar classes, --groups FILE (columns class, group)
or found by clustering what the plain teacher says.
Writes DIR/diffusion_index.{csv,json,png,pdf,svg}.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from vision_reference.analysis import flags, geometry
from vision_reference.errors import UserError, run_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vision_reference.analysis.confusions import GroupErrors

SIMILAR, CONTROL = "similar", "control"


@dataclass(frozen=True)
class Drift:
    """eta towards one set of classes, in percent.

    Attributes:
        per_class: (K,) mean over seeds.
        mean: over classes and seeds.
        low, high: 95 % bootstrap interval of the mean over classes.
        seeds: mean over classes of each seed.
        seed_sd: standard deviation of ``seeds``; None for one seed.
    """

    per_class: list[float]
    mean: float
    low: float
    high: float
    seeds: list[float]
    seed_sd: float | None


@dataclass(frozen=True)
class Cell:
    """One kind of teacher, one temperature.

    Attributes:
        kind, temperature: as given.
        similar: towards the most similar classes; above 0: diffusion.
        control: towards equally many least similar ones.
    """

    kind: str
    temperature: float
    similar: Drift
    control: Drift


@dataclass(frozen=True)
class DiffusionIndex:
    """All cells, and which classes they speak of.

    Attributes:
        count: how many classes are similar.
        similar, control: (K, count) class numbers.
        cells: in the order given.
    """

    count: int
    similar: np.ndarray
    control: np.ndarray
    cells: list[Cell]


def compute(
    probabilities: np.ndarray,
    references: Mapping[str, Sequence[np.ndarray]],
    students: Mapping[tuple[str, float], Sequence[np.ndarray]],
) -> DiffusionIndex:
    """eta of every student.

    Args:
        probabilities: (K, K), row c the plain teacher's mean probabilities on class c's images at T = 1
            (``geometry.mean_probabilities``).
        references: kind of teacher -> for each seed, class means (K, h) of the student at T = 1
            (``geometry.class_means``).
        students: (kind, T) -> the same at T, seeds in the same order.

    Raises:
        UserError: a kind without reference, another number of seeds or of classes, fewer than 3 classes, or means that
            do not differ.
    """
    classes = len(probabilities)
    count = geometry.neighbour_count(classes)
    if count < 1:
        raise UserError(f"{classes} classes are too few: similar classes need others to compare with, 3 at least")
    similar, control = geometry.most_and_least_similar(probabilities, count)
    cells = []
    for (kind, temperature), seeds in students.items():
        if kind not in references:
            raise UserError(f"students of the {kind} teacher have no reference; give it for {kind}")
        if len(references[kind]) != len(seeds):
            raise UserError(
                f"{kind}: {len(references[kind])} references and {len(seeds)} students at T = {temperature:g}; seeds "
                "are compared pair by pair, so give equally many in the same order"
            )
        pairs = list(zip(references[kind], seeds, strict=True))
        for before, after in pairs:
            if not len(before) == len(after) == classes:
                raise UserError(
                    f"{kind}: networks of {len(before)}, {len(after)} and {classes} classes; compare equals"
                )
        drifts = [
            _summary(np.array([geometry.drift(before, after, towards) for before, after in pairs]))
            for towards in (similar, control)
        ]
        cells.append(Cell(kind, temperature, *drifts))
    return DiffusionIndex(count, similar, control, cells)


def _summary(etas: np.ndarray) -> Drift:
    """Of etas (seeds, K)."""
    per_class, seeds = etas.mean(axis=0), etas.mean(axis=1)
    low, high = geometry.bootstrap_interval(per_class)
    sd = float(seeds.std(ddof=1)) if len(seeds) > 1 else None
    return Drift(per_class.tolist(), float(per_class.mean()), low, high, seeds.tolist(), sd)


def figure(
    index: DiffusionIndex, groups: Mapping[tuple[str, float], "GroupErrors"] | None = None, *, reference: float = 1.0
) -> "Figure":
    """eta against T for each kind of teacher and for the control; beside it the share of errors inside groups.

    Args:
        index: of ``compute``.
        groups: (kind, T) -> errors inside groups, the reference (T = 1) among them; None leaves that panel out.
        reference: its temperature.
    """
    from vision_reference.analysis import drawing

    kinds = list(dict.fromkeys(cell.kind for cell in index.cells))
    inside = groups or {}
    with drawing.style():
        picture = drawing.new_figure(3.5 if groups is None else 6.8, 3.0)
        first, *others = picture.subplots(1, 1 if groups is None else 2, squeeze=False)[0]
        first.axhline(0, color="0.5", linewidth=0.6, zorder=0)
        ticks = sorted({reference, *(cell.temperature for cell in index.cells)})
        for place, kind in enumerate(kinds):
            own = sorted((cell for cell in index.cells if cell.kind == kind), key=lambda cell: cell.temperature)
            look = drawing.look(kind, kinds)
            side = 1.03 ** (2 * place - len(kinds) + 1)  # intervals at one T beside one another
            for part, filled, name in ((SIMILAR, True, kind), (CONTROL, False, f"{kind}, control")):
                drifts = [getattr(cell, part) for cell in own]
                x = np.array([cell.temperature for cell in own]) * (side if filled else side * 1.02)
                means = np.array([drift.mean for drift in drifts])
                reach = np.array([[drift.mean - drift.low, drift.high - drift.mean] for drift in drifts]).T
                first.plot([reference, *x], [0, *means], color=look["color"], linewidth=1.2 if filled else 0.6,
                           linestyle=look["linestyle"] if filled else ":")  # fmt: skip
                first.errorbar(
                    x, means, reach.clip(0), label=name, linestyle="none", color=look["color"], marker=look["marker"],
                    markersize=5, markerfacecolor=look["color"] if filled else "white", capsize=2, linewidth=0.9,
                )  # fmt: skip
        drawing.letter(first, "Drift towards similar classes")
        first.set_ylabel("diffusion index η (%)")
        for axes in others:
            for kind in kinds:
                shares = {t: errors.share for (name, t), errors in sorted(inside.items()) if name == kind}
                shares = {t: 100 * share for t, share in shares.items() if share is not None}
                axes.plot(list(shares), list(shares.values()), label=kind, markersize=5, **drawing.look(kind, kinds))
            known = [100 * errors.chance for errors in inside.values() if errors.chance is not None]
            if known:
                axes.axhline(np.mean(known), color="0.5", linewidth=0.8, linestyle=":", label="if errors fell evenly")
            axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
            drawing.letter(axes, "Errors within a group")
            axes.set_ylabel("share of errors (%)")
        for axes in (first, *others):
            axes.set_xscale("log")
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
            axes.set_xlabel("temperature T of the distillation")
            axes.legend(loc="best")
    return picture


def as_json(index: DiffusionIndex, names: Sequence[str], groups: Mapping | None = None) -> dict:
    """Everything, as plain values: class names in place of numbers."""
    result = {
        "classes": list(names),
        "similar_classes": index.count,
        "similar": {name: [names[k] for k in row] for name, row in zip(names, index.similar, strict=True)},
        "control": {name: [names[k] for k in row] for name, row in zip(names, index.control, strict=True)},
        "interval": "95 %, percentile bootstrap over classes, 9,999 resamples",
        "cells": [asdict(cell) for cell in index.cells],
    }
    if groups is not None:
        result["errors_in_groups"] = [
            {"kind": kind, "temperature": temperature, **asdict(errors)}
            for (kind, temperature), errors in groups.items()
        ]
    return result


def rows(index: DiffusionIndex, names: Sequence[str]) -> list[tuple]:
    """One line a cell and class: (kind, T, class, eta, control, similar classes)."""
    return [
        (cell.kind, cell.temperature, name, cell.similar.per_class[c], cell.control.per_class[c],
         " ".join(names[k].replace(" ", "_") for k in index.similar[c]))
        for cell in index.cells
        for c, name in enumerate(names)
    ]  # fmt: skip


def lines(index: DiffusionIndex, groups: Mapping | None = None) -> list[str]:
    """What the command prints."""
    text = [f"eta towards the {index.count} most similar classes, 95 % interval over classes [control]:"]
    for cell in index.cells:
        own, control = cell.similar, cell.control
        seeds = f", {len(own.seeds)} seeds (sd {own.seed_sd:.2f})" if own.seed_sd is not None else ""
        text.append(
            f"  {cell.kind:<12} T = {cell.temperature:<4g} {own.mean:+7.2f} % ({own.low:+.2f} to {own.high:+.2f})  "
            f"[{control.mean:+.2f} ({control.low:+.2f} to {control.high:+.2f})]{seeds}"
        )
    for (kind, temperature), errors in (groups or {}).items():
        if errors.share is not None:
            text.append(
                f"  {kind:<12} T = {temperature:<4g} {100 * errors.share:.1f} % of {errors.errors} errors within a "
                f"group (evenly spread: {100 * errors.chance:.1f} %)"
            )
    return text


def student(text: str) -> tuple[str, float, list[str]]:
    """An argparse type: KIND:T=PATH[,PATH2,...]."""
    name, sources = flags.named(text)
    kind, _, temperature = name.rpartition(":")
    try:
        value = flags.temperature(temperature)
    except argparse.ArgumentTypeError:
        value = 0.0
    if not kind or not value:
        raise argparse.ArgumentTypeError(f"'{text}' is not KIND:T=PATH, such as smoothed:3=runs/T3/checkpoint.pth")
    return kind, value, split_paths(sources)


def split_paths(text: str) -> list[str]:
    """PATH,PATH2,... one by one."""
    return [part.strip() for part in text.split(",") if part.strip()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say who is compared with whom."""
    parser.add_argument(
        "--plain-teacher",
        required=True,
        metavar="PATH",
        help="the teacher without label smoothing, whose probabilities say which classes are similar",
    )
    parser.add_argument(
        "--reference",
        type=flags.named,
        action="append",
        required=True,
        metavar="KIND=PATH[,PATH]",
        help="the student at the reference temperature, one path a seed; once for each kind of teacher",
    )
    parser.add_argument(
        "--student",
        type=student,
        action="append",
        required=True,
        metavar="KIND:T=PATH[,PATH]",
        help="a student at another temperature, seeds in the same order",
    )
    parser.add_argument(
        "--reference-temperature", type=flags.temperature, default=1.0, metavar="T", help="of --reference (default: 1)"
    )
    flags.add_output(parser)


def check_arguments(args: argparse.Namespace) -> None:
    """Refuses what is given twice or lacks its partner, before anything is loaded."""
    kinds = [kind for kind, _ in args.reference]
    cells = [(kind, temperature) for kind, temperature, _ in args.student]
    for flag, given in (("--reference", kinds), ("--student", cells)):
        if twice := next((name for name in given if given.count(name) > 1), None):
            shown = twice if isinstance(twice, str) else f"{twice[0]}:{twice[1]:g}"
            raise UserError(f"{flag} {shown}=... is given twice; several seeds go into one, with commas between them")
    counts = {kind: len(split_paths(sources)) for kind, sources in args.reference}
    for kind, temperature, sources in args.student:
        if temperature == args.reference_temperature:
            raise UserError(
                f"--student {kind}:{temperature:g}=... is at the reference's temperature; name it --reference"
            )
        if kind not in counts:
            raise UserError(f"--student {kind}:{temperature:g}=... has no --reference {kind}=PATH to compare with")
        if len(sources) != counts[kind]:
            raise UserError(
                f"--reference {kind} has {counts[kind]} seeds, --student {kind}:{temperature:g} has {len(sources)}; "
                "give equally many, in the same order"
            )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = flags.Parser("diffusion_index.py", __doc__)
    add_arguments(parser)
    parser.add_argument(
        "--groups",
        type=flags.path,
        metavar="FILE",
        help="groups of similar classes: a table with the columns class and group",
    )
    parser.add_argument(
        "--clusters", type=flags.count, metavar="N", help="without --groups: how many to find (default: classes / 5)"
    )
    flags.add_data(parser)
    parser.add_argument(
        "--images", choices=("val", "train"), default="val", help="the fixed set of images (default: val)"
    )
    args = parser.parse_args(argv)
    check_arguments(args)
    if args.groups and args.clusters:
        raise UserError("--groups and --clusters both say how classes are grouped; give one")
    return args


def main(args: argparse.Namespace) -> None:
    """Collect, compute, write."""
    from vision_reference.analysis import confusions, subjects

    train = args.images == "train"
    images = subjects.read_images(args.data_path, dataset=args.dataset, split=args.split, train=train)
    samples = images.train if train else images.val
    classes = len(images.classes)
    counts = np.bincount([label for _, label in samples], minlength=classes)
    if counts.min() < 2:
        lonely = int(counts.argmin())
        raise UserError(f"class {images.names[lonely]} has one image; a mean feature needs at least 2 of every class")
    groups = confusions.read_groups(args.groups, images.classes) if args.groups else None

    def outputs(name: str, source: str):
        subject = subjects.load_subject(name, source, images, **flags.shown(args))
        seen = subjects.outputs_of(subject, samples, images, batch_size=args.batch_size, workers=args.workers)
        return seen.features, seen.logits[:, subject.numbers], seen.labels

    _, logits, labels = outputs("plain teacher", args.plain_teacher)
    probabilities = geometry.mean_probabilities(logits, labels, classes)
    if groups is None:
        groups = confusions.cluster_classes(probabilities, args.clusters)
    cells = {(kind, args.reference_temperature): split_paths(sources) for kind, sources in args.reference}
    cells |= {(kind, temperature): sources for kind, temperature, sources in args.student}
    means, errors = {}, {}
    for (kind, temperature), sources in cells.items():
        seeds = [outputs(f"{kind} T={temperature:g}", source) for source in sources]
        means[kind, temperature] = [geometry.class_means(features, labels, classes) for features, _, labels in seeds]
        right = np.concatenate([labels for _, _, labels in seeds])
        found = np.concatenate([logits.argmax(axis=1) for _, logits, _ in seeds])
        errors[kind, temperature] = confusions.errors_in_groups(right, found, groups)
    references = {kind: means.pop((kind, args.reference_temperature)) for kind, _ in args.reference}
    index = compute(probabilities, references, means)
    write(args.output, index, images.names, errors, reference=args.reference_temperature)
    print("\n".join(lines(index, errors)))
    print(f"written to {args.output}/diffusion_index.{{csv,json,png,pdf,svg}}")


def write(
    output: Path,
    index: DiffusionIndex,
    names: Sequence[str],
    errors: Mapping[tuple[str, float], "GroupErrors"] | None,
    *,
    reference: float,
) -> None:
    """All files of the result."""
    from vision_reference.analysis import drawing

    head = ("kind", "temperature", "class", "eta_percent", "control_percent", "similar_classes")
    drawing.save_table(output / "diffusion_index.csv", head, rows(index, names))
    drawing.save_text(output / "diffusion_index.json", json.dumps(as_json(index, names, errors), indent=1) + "\n")
    drawing.save(figure(index, errors, reference=reference), output / "diffusion_index")


if __name__ == "__main__":
    run_command("diffusion_index.py", lambda: main(parse_args()))

"""Looks into the networks of a finished image study, for the mechanism and the teachers on its page.

    python scripts/studies/mechanism.py results/cifar100 --data-path data/cifar100 --groups classes.tsv

For every student: the diffusion index against the same seed's student at the lowest T, and the share of its errors that
stay within a group of similar classes. For every teacher: calibration, selective prediction, whether it looks smoothed.
For the first seed: the penultimate picture of three classes. Writes DIR/analysis/, which study.py report shows. What
the networks make of the validation images is kept beside their checkpoints, so that a second run takes seconds.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from scripts.studies.claims import temperatures_of
from scripts.studies.results import Comparison, Kind, Run, Study, read_study, short_names
from vision_reference.analysis.flags import DEVICES
from vision_reference.arguments import device_name
from vision_reference.errors import Parser, UserError, run_command
from vision_reference.files import atomic_file

if TYPE_CHECKING:
    from vision_reference.analysis.subjects import Images

MOVED = 3  # confusions of each kind of teacher that are kept
CHECKPOINT = "checkpoint.pth"


@dataclass(frozen=True)
class Seen:
    """What a network makes of the validation images.

    Attributes:
        features: (N, h), input of the last linear layer.
        logits: (N, K), columns in the order of the data's classes.
        labels: (N,) class numbers.
    """

    features: np.ndarray
    logits: np.ndarray
    labels: np.ndarray


Look = Callable[[Run], "Seen | None"]


def measure(
    study: Study, look: Look, names: list[str], groups: np.ndarray | None, groups_name: str
) -> Iterator[Mapping[str, Any]]:
    """The records of ``analysis/*.json`` (see ``results.py``) of all runs that ``look`` can show.

    Args:
        look: what a run's network makes of the validation images, None where its checkpoint is gone.
        names: (K,) of the classes.
        groups: (K,) group number of each class; None: found by clustering each seed's plain teacher.
        groups_name: what to call them on the page.
    """
    for comparison in study.comparisons:
        yield from _students(study, comparison, look, names, groups, groups_name)
    teachers = {run.job: run for comparison in study.comparisons for run in _of(comparison.teachers)}
    for run in teachers.values():
        seen = look(run)
        if seen is not None:
            yield _teacher(run, seen, names)


def _of(cells: Mapping[Kind, Mapping[int, Run]]) -> list[Run]:
    return [run for cell in cells.values() for run in cell.values()]


def _about(run: Run) -> dict[str, Any]:
    return {
        "seed": run.seed,
        "alpha": run.kind.alpha,
        "max_suppression": run.kind.max_suppression or None,
        "network": run.network,
    }


def _students(
    study: Study, comparison: Comparison, look: Look, names: list[str], groups: np.ndarray | None, groups_name: str
) -> Iterator[Mapping[str, Any]]:
    from vision_reference.analysis import confusions, geometry

    compared = temperatures_of(study, comparison)
    plain = comparison.teachers.get(comparison.plain, {})
    if not plain:
        return  # which classes are similar is asked of the plain teacher
    classes, settings = len(names), dict(comparison.settings)
    matrices: dict[tuple[Kind, float], list[np.ndarray]] = {}
    for seed in sorted({run.seed for run in _of_students(comparison)}):
        seen = look(plain.get(seed, next(iter(plain.values()))))  # shared teachers have one seed
        if seen is None:
            continue
        probabilities = geometry.mean_probabilities(seen.logits, seen.labels, classes)
        own_groups = confusions.cluster_classes(probabilities) if groups is None else groups
        similar, control = geometry.most_and_least_similar(probabilities, geometry.neighbour_count(classes))
        for kind in comparison.kinds:
            means: dict[float, np.ndarray] = {}
            for temperature in comparison.temperatures:
                run = comparison.students.get((kind, temperature), {}).get(seed)
                student = look(run) if run else None
                if run is None or student is None:
                    continue
                about = _about(run) | {"temperature": temperature, "settings": settings}
                found = student.logits.argmax(axis=1)
                counted = confusions.errors_in_groups(student.labels, found, own_groups)
                yield about | {"kind": "confusions", "groups": groups_name} | _plain_values(vars(counted))
                matrix = np.bincount(student.labels * classes + found, minlength=classes**2).reshape(classes, classes)
                matrices.setdefault((kind, temperature), []).append(matrix)
                means[temperature] = geometry.class_means(student.features, student.labels, classes)
            reference = compared[0] if compared else None
            for temperature, values in means.items():
                if reference in means and temperature != reference:
                    etas = [geometry.drift(means[reference], values, towards).mean() for towards in (similar, control)]
                    about = _about(comparison.students[kind, temperature][seed])
                    about |= {"temperature": temperature, "reference": reference, "settings": settings}
                    yield about | {"kind": "eta", "eta": float(etas[0]), "control": float(etas[1])}
    if compared:
        for kind in comparison.kinds:
            yield from _moved(comparison, kind, compared, matrices, names)


def _of_students(comparison: Comparison) -> list[Run]:
    return [run for cell in comparison.students.values() for run in cell.values()]


def _plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


def _moved(
    comparison: Comparison,
    kind: Kind,
    compared: tuple[float, float],
    matrices: Mapping[tuple[Kind, float], list[np.ndarray]],
    names: list[str],
) -> Iterator[Mapping[str, Any]]:
    """The confusions that raising T changed most, in errors of one student, mean over seeds."""
    low, high = compared
    if not matrices.get((kind, low)) or not matrices.get((kind, high)):
        return
    before, after = (np.mean(matrices[kind, temperature], axis=0) for temperature in (low, high))
    change = after - before
    np.fill_diagonal(change, 0)
    for place in np.argsort(-np.abs(change), axis=None, kind="stable")[:MOVED]:
        right, taken = np.unravel_index(place, change.shape)
        if not change[right, taken]:
            continue
        yield {
            "kind": "moved",
            "alpha": kind.alpha,
            "max_suppression": kind.max_suppression or None,
            "network": comparison.network,
            "settings": dict(comparison.settings),
            "temperature": high,
            "reference": low,
            "right": names[right],
            "taken_for": names[taken],
            "before": float(before[right, taken]),
            "after": float(after[right, taken]),
        }


def _teacher(run: Run, seen: Seen, names: list[str]) -> Mapping[str, Any]:
    from vision_reference.analysis.inspect_teacher import inspect

    found = inspect(seen.logits, seen.labels, names, features=seen.features)
    calibration, bins = found["calibration"], found["calibration"]["reliability"]
    adaptive = calibration["adaptive_calibration_error"]
    return _about(run) | {
        "kind": "teacher",
        "acc1": found["accuracy"]["top1"],
        "ece": calibration["expected_calibration_error"] / 100,
        "ace": None if adaptive is None else adaptive / 100,
        "calibrating_temperature": calibration["calibrating_temperature"],
        "aurc": found["selective"]["area_under_risk_coverage"],
        "tightness": found["features"]["ratio"] if found["features"] else None,
        "looks_smoothed": found["smoothing"]["answer"],
        "looks_alpha": found["smoothing"].get("alpha"),
        "reliability": [
            {"confidence": confidence, "accuracy": accuracy, "count": count}
            for confidence, accuracy, count in zip(bins["confidence"], bins["accuracy"], bins["count"], strict=True)
            if count
        ],
    }


class Networks:
    """What the study's networks make of its validation images, read from their checkpoints; kept beside them."""

    def __init__(self, study: Study, images: "Images", *, device: str, batch_size: int, workers: int) -> None:
        self.study, self.images, self.device = study, images, device
        self.load = {"batch_size": batch_size, "workers": workers}
        self.missing: list[str] = []

    def checkpoint(self, run: Run) -> Path | None:
        """The file of the run's last epoch."""
        path = self.study.folder / str(run.record.get("folder") or "") / CHECKPOINT
        return path if path.is_file() else None

    def subject(self, run: Run):
        """The run's network, or None where its checkpoint is gone."""
        from vision_reference.analysis.subjects import load_subject

        path = self.checkpoint(run)
        if path is None:
            self.missing.append(run.job)
            return None
        return load_subject(run.job, str(path), self.images, device=self.device)

    def look(self, run: Run) -> Seen | None:
        """What the run's network makes of the validation images."""
        from vision_reference.analysis.subjects import outputs_of

        subject = self.subject(run)
        if subject is None:
            return None
        outputs = outputs_of(subject, self.images.val, self.images, **self.load)
        return Seen(outputs.features, outputs.logits[:, subject.numbers], outputs.labels)


def draw_panels(study: Study, networks: Networks, output: Path) -> list[Mapping[str, Any]]:
    """The penultimate picture of each comparison's first seed: plain and smoothed teacher, low and high T.

    Returns:
        The records that show it on the page.
    """
    from vision_reference.analysis import drawing, features, penultimate, subjects

    images = networks.images
    records: list[Mapping[str, Any]] = []
    for number, comparison in enumerate(study.comparisons, start=1):
        compared, kinds = temperatures_of(study, comparison), [comparison.plain, comparison.smoothed]
        if compared is None or comparison.smoothed is None or not images.train:
            continue
        cells = [comparison.students.get((kind, t), {}) for kind in kinds if kind for t in compared]
        seeds = set(cells[0]).intersection(*cells[1:])
        if not seeds:
            continue
        seed, names, panels, classes = min(seeds), short_names(comparison.kinds), [], None
        for kind in (comparison.plain, comparison.smoothed):
            for temperature in compared:
                run = comparison.students[kind, temperature][seed]
                subject = networks.subject(run)
                if subject is None:
                    break
                if classes is None:
                    seen = networks.look(run)
                    assert seen is not None
                    classes = penultimate.choose_classes(seen.logits, seen.features, seen.labels, len(images.classes))
                splits = {}
                usual = {"training": penultimate.TRAIN_IMAGES, "validation": penultimate.VAL_IMAGES}
                for split, samples in (("training", images.train), ("validation", images.val)):
                    chosen = [s for c in classes for s in subjects.spread_out(samples, c, usual[split])]
                    outputs = subjects.outputs_of(subject, chosen, images, **networks.load)
                    splits[split] = outputs.features, outputs.labels
                weight, bias = features.last_weights(features.find_last_layer(subject.network, _blank(subject))[1])
                own_bias = None if bias is None else bias[subject.numbers]
                title = f"{names[kind]}, T = {temperature:g}"
                panels += penultimate.panels(weight[subject.numbers], own_bias, classes, splits, network=title)
        if classes is None or len({panel.network for panel in panels}) < 4:
            continue
        shown = [images.names[label] for label in classes]
        name = f"penultimate-{number}"
        drawing.save(penultimate.figure(panels, shown), output / name)
        caption = (
            f"Penultimate-layer features of three classes ({', '.join(shown)}: the two that the first network confuses "
            f"most, and one far from both), students of seed {seed}: plain and smoothed teacher at T = {compared[0]:g} "
            f"and T = {compared[1]:g}. Stars are class means; each network's panels share their scale."
        )
        alt = f"Scatter plots of the features of {', '.join(shown)} for four students, training and validation images."
        records.append(
            {"kind": "panels", "image": f"{name}.svg", "caption": caption, "alt": alt, "network": comparison.network}
        )
    return records


def _blank(subject):
    import torch

    side = subject.pixels.crop
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(subject.device)


def analyse(
    folder: Path,
    *,
    data: Path | None = None,
    dataset: str = "imagefolder",
    groups_file: Path | None = None,
    device: str = "cuda",
    batch_size: int = 256,
    workers: int = 0,
) -> list[str]:
    """Write ``folder/analysis``; returns names of runs whose checkpoint is gone.

    Args:
        data: where the images lie; by default where the study says.
        groups_file: table of class and group; by default ``classes.tsv`` beside the data, else found by clustering.
        device: where networks compute; the CPU where there is no GPU.

    Raises:
        UserError: the folder holds no study of images, or its data is not there.
    """
    study = read_study(folder)
    if study.is_translation:
        raise UserError(f"{folder} is a study of translation; the mechanism is looked into for images only")
    from vision_reference.analysis import confusions, subjects

    root = data or _data_of(study)
    images = subjects.read_images(root, dataset=dataset)
    beside = next((f for f in (root / "classes.tsv", root.parent / "classes.tsv") if f.is_file()), None)
    groups_file = groups_file or beside
    groups = confusions.read_groups(groups_file, images.classes) if groups_file else None
    groups_name = f"{groups.max() + 1} groups of the data" if groups is not None else "found by clustering"
    networks = Networks(study, images, device=device, batch_size=batch_size, workers=workers)
    records = list(measure(study, networks.look, list(images.names), groups, groups_name))
    output = folder / "analysis"
    output.mkdir(exist_ok=True)
    records += draw_panels(study, networks, output)
    with atomic_file(output / "mechanism.json") as file:
        file.write(json.dumps(records, indent=1).encode())
    return sorted(set(networks.missing))


def _data_of(study: Study) -> Path:
    """The folder of the study's images."""
    own = study.folder / "runs" / "data" / "digits"
    given = study.facts.get("data")
    folder = own if own.is_dir() else Path(str(given or ""))
    if folder == Path() or not folder.is_dir():
        raise UserError(f"no folder {folder} with the images of the study; give it with --data-path")
    return folder


def get_args_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder of the study")
    parser.add_argument("--data-path", type=Path, metavar="DIR", help="its images (default: where the study says)")
    parser.add_argument("--dataset", choices=("imagefolder", "cub200"), default="imagefolder")
    parser.add_argument(
        "--groups",
        type=Path,
        metavar="FILE",
        help="table of class and group (default: classes.tsv beside the images, else groups found by clustering)",
    )
    parser.add_argument("--device", type=device_name, default="cuda", help=DEVICES)
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="(default: 256)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="loader processes (default: 0)")
    return parser


def main() -> None:
    args = get_args_parser().parse_args()
    missing = analyse(
        args.folder,
        data=args.data_path,
        dataset=args.dataset,
        groups_file=args.groups,
        device=args.device,
        batch_size=args.batch_size,
        workers=args.workers,
    )
    if missing:
        print(f"without a checkpoint, left out: {', '.join(missing)}")
    print(f"written to {args.folder / 'analysis'}; python scripts/study.py report {args.folder} shows it")


if __name__ == "__main__":
    run_command("mechanism.py", main)

"""What the networks of an image study are like: records of ``analysis/*.json`` (see ``results.py``) and a picture.

For every student the diffusion index against the same seed's student at the lowest T, and the share of its errors that
stay within a group of similar classes; for every teacher its inspection; for each comparison's first seed the
penultimate picture of three classes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scripts.studies.claims import temperatures_of
from scripts.studies.records import about, drifts, inspected, made_of
from scripts.studies.results import Comparison, Kind, Run, Study, short_names

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
        teacher = plain.get(seed, next(iter(plain.values())))  # shared teachers have one seed
        seen = look(teacher)
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
                record = about(run, teacher) | {"temperature": temperature, "settings": settings}
                found = student.logits.argmax(axis=1)
                counted = confusions.errors_in_groups(student.labels, found, own_groups)
                yield record | {"kind": "confusions", "groups": groups_name} | _plain_values(vars(counted))
                matrix = np.bincount(student.labels * classes + found, minlength=classes**2).reshape(classes, classes)
                matrices.setdefault((kind, temperature), []).append(matrix)
                means[temperature] = geometry.class_means(student.features, student.labels, classes)
            reference = compared[0] if compared else None
            for temperature, etas in drifts(means, reference, similar, control).items():
                pair = [comparison.students[kind, t][seed] for t in (temperature, reference)]
                record = about(*pair, teacher)
                record |= {"temperature": temperature, "reference": reference, "settings": settings}
                yield record | {"kind": "eta", "eta": float(etas[0]), "control": float(etas[1])}
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
            "of": made_of(*(run for t in compared for run in comparison.students[kind, t].values())),
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
    return inspected(run, found) | {"acc1": found["accuracy"]["top1"]}


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
        runs = {}
        for kind in (comparison.plain, comparison.smoothed):
            for temperature in compared:
                run = runs[kind, temperature] = comparison.students[kind, temperature][seed]
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
        record = {"kind": "panels", "image": f"{name}.svg", "caption": caption, "alt": alt}
        record |= {"of": made_of(*runs.values()), "network": comparison.network}
        records.append(record | {"settings": dict(comparison.settings)})
    return records


def _blank(subject):
    import torch

    side = subject.pixels.crop
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(subject.device)

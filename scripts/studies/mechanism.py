"""Looks into the networks of a finished study, for the mechanism and the teachers on its page.

    python scripts/studies/mechanism.py results/cifar100 --data-path data/cifar100 --groups classes.tsv

Images: for every student the diffusion index against the same seed's student at the lowest T, and the share of its
errors that stay within a group of similar classes; for every teacher calibration, selective prediction, whether it
looks smoothed; for the first seed the penultimate picture of three classes. Translation: the diffusion index of the
most frequent target pieces, and the experts, on the validation sentences. Writes DIR/analysis/, which study.py report
shows. What the networks make of the data is kept beside their checkpoints, so that a second run takes seconds.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.lib.jobs import value_of
from scripts.studies.results import Study, read_study
from vision_reference.analysis.flags import DEVICES, count
from vision_reference.arguments import dataset_name, device_name, natural, share_of_a_class
from vision_reference.errors import Parser, UserError, run_command
from vision_reference.files import atomic_file


def analyse_images(
    folder: Path,
    *,
    data: Path | None = None,
    dataset: str | None = None,
    split: float | None = None,
    groups_file: Path | None = None,
    device: str = "cuda",
    batch_size: int = 256,
    workers: int = 0,
) -> list[str]:
    """Write ``folder/analysis`` of a study of images; returns names of runs whose checkpoint is gone.

    Args:
        data: where the images lie; by default where the study says.
        dataset, split: as ``train.py`` has them; by default as its trainings had them.
        groups_file: table of class and group; by default ``classes.tsv`` beside the data, else found by clustering.
        device: where networks compute; the CPU where there is no GPU.

    Raises:
        UserError: the folder holds no study of images, or its data is not there.
    """
    study = read_study(folder)
    from scripts.studies.image_networks import Networks, draw_panels, measure
    from vision_reference.analysis import confusions, subjects

    root = data or _images_of(study)
    images = subjects.read_images(root, **(_data_flags(study) | _given(dataset=dataset, split=split)))
    beside = next((f for f in (root / "classes.tsv", root.parent / "classes.tsv") if f.is_file()), None)
    groups_file = groups_file or beside
    groups = confusions.read_groups(groups_file, images.classes) if groups_file else None
    groups_name = f"{groups.max() + 1} groups of the data" if groups is not None else "found by clustering"
    networks = Networks(study, images, device=device, batch_size=batch_size, workers=workers)
    records = list(measure(study, networks.look, list(images.names), groups, groups_name))
    records += draw_panels(study, networks, _output(folder))
    _write(folder, records)
    return sorted(set(networks.missing))


def analyse_translation(folder: Path, *, data: Path | None = None, device: str = "cuda") -> list[str]:
    """Write ``folder/analysis`` of a study of translation; returns names of runs whose checkpoint is gone.

    Args:
        data: the folder that prepare.py made, with data-bin in it; by default the study's.
        device: where models compute; the CPU where there is no GPU.

    Raises:
        UserError: the folder holds no study of translation, its data is not there, or a checkpoint does not fit it.
    """
    study = read_study(folder)
    from scripts.nmt.lib.quiet_fairseq import import_fairseq

    import_fairseq()
    logging.getLogger("fairseq").setLevel(logging.WARNING)  # it tells of every file that it opens
    from scripts.nmt.lib.user_error import UserError as PluginError
    from scripts.studies.translation_models import Models, measure
    from vision_reference.machine import keep_freed_memory

    keep_freed_memory()
    try:
        models = Models(study, _data_bin_of(study, data), device=device)
        records = list(measure(study, models.pairs, models.look, models.inspect))
    except PluginError as error:
        raise UserError(str(error)) from None
    _write(folder, records)
    return sorted(set(models.missing))


def _output(folder: Path) -> Path:
    output = folder / "analysis"
    output.mkdir(exist_ok=True)
    return output


def _write(folder: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with atomic_file(_output(folder) / "mechanism.json") as file:
        file.write(json.dumps(list(records), indent=1).encode())


def _images_of(study: Study) -> Path:
    """The folder of the study's images."""
    own = study.folder / "runs" / "data" / "digits"
    given = study.facts.get("data")
    folder = own if own.is_dir() else Path(str(given or ""))
    if folder == Path() or not folder.is_dir():
        raise UserError(f"no folder {folder} with the images of the study; give it with --data-path")
    return folder


def _data_flags(study: Study) -> dict[str, Any]:
    """``dataset`` and ``split`` of the study's trainings."""
    command = study.runs[0].record.get("command") or [] if study.runs else []
    told = value_of("--split", command)
    return _given(dataset=value_of("--dataset", command), split=None if told is None else share_of_a_class(told))


def _given(**flags: Any) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


def _data_bin_of(study: Study, data: Path | None) -> Path:
    """The data-bin in ``data``, else the study's own, else that of the prepared data it was given."""
    own = study.folder / "runs" / "data" / "prepared"
    prepared = data or (own if own.is_dir() else Path(str(study.facts.get("data") or "")))
    if not (prepared / "data-bin").is_dir():
        raise UserError(f"{prepared} holds no data-bin with the study's sentences; give its folder with --data-path")
    return prepared / "data-bin"


def get_args_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder of the study")
    parser.add_argument(
        "--data-path",
        type=Path,
        metavar="DIR",
        help="its images, or its prepared sentences (default: where the study says)",
    )
    parser.add_argument("--device", type=device_name, default="cuda", help=DEVICES)
    images = parser.add_argument_group("studies of images")
    as_trained = "as train.py has it (default: as the study's trainings had it)"
    images.add_argument("--dataset", type=dataset_name, metavar="NAME", help=as_trained)
    images.add_argument("--split", type=share_of_a_class, metavar="SHARE", help=as_trained)
    images.add_argument(
        "--groups",
        dest="groups_file",
        type=Path,
        metavar="FILE",
        help="table of class and group (default: classes.tsv beside the images, else groups found by clustering)",
    )
    images.add_argument("--batch-size", type=count, metavar="N", help="(default: 256)")
    images.add_argument("--workers", type=natural, metavar="N", help="loader processes (default: 0)")
    return parser


def main() -> None:
    args = vars(get_args_parser().parse_args())
    folder, data, device = args.pop("folder"), args.pop("data_path"), args.pop("device")
    given = _given(**args)
    if not read_study(folder).is_translation:
        missing = analyse_images(folder, data=data, device=device, **given)
    elif given:
        flags = ", ".join(f"--{name.removesuffix('_file').replace('_', '-')}" for name in given)
        raise UserError(f"{folder} is a study of translation, which does not take {flags}; leave it out")
    else:
        missing = analyse_translation(folder, data=data, device=device)
    if missing:
        print(f"without a checkpoint, left out: {', '.join(missing)}")
    print(f"written to {folder / 'analysis'}; python scripts/study.py report {folder} shows it")


if __name__ == "__main__":
    run_command("mechanism.py", main)

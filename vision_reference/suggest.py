"""Look at a folder of images and suggest how to train on it: command lines that run, and a reason for each flag.

    python vision_reference/suggest.py DATA                 DATA/train/<class>/<image>, with or without DATA/val/
    python vision_reference/suggest.py DATA/CUB_200_2011    CUB-200-2011 is recognized
    python vision_reference/suggest.py DATA --json          the same for a program

All files are counted, some are decoded. What is suggested is a place to start: a smoothed teacher, and a student that
learns from it at T = 1. Nothing is written; to say how long training takes on this machine, a few steps are timed.
"""

import argparse
import json
import math
import os
import shlex
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from vision_reference.analysis.flags import Parser, count, folder, path
from vision_reference.arguments import filled_text
from vision_reference.arguments import parse_args as parse_train_args
from vision_reference.errors import UserError, run_command
from vision_reference.images import survey
from vision_reference.images.presets import PRESETS

_SMALL = 40  # pixels: up to here the presets for 32x32 images are meant
_SIZES = (64, 96, 128, 160, 192, 224)
_FEW = 1000  # images a class: with more, a network that starts from nothing gets as far, only later
_LOOKED_AT = 200
_TIMED_STEPS = 3
_TIMED_PIXELS = 8 * 224 * 224  # of a step that is timed on a CPU: more only make the answer late, not an image cheaper


class Duration(NamedTuple):
    """Of a training: its pace, measured, and what follows for all epochs and their evaluations."""

    images_per_second: float
    hours: float


class Advice(NamedTuple):
    """A flag of ``train.py``, its words on the command line, and why."""

    flag: str
    value: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Facts:
    """What is known before anything is advised.

    Attributes:
        images: training images, the validation part taken off where there is one.
        validation: images of the validation part; 0 where there is none.
        sizes: training images of each class.
        look: what some of them are like.
        dataset: imagefolder or cub200.
        gpus: of this machine.
    """

    images: int
    validation: int
    sizes: list[int]
    look: survey.Look
    dataset: str = "imagefolder"
    gpus: int = 0

    @property
    def small(self) -> bool:
        """Whether these are images of the size of CIFAR's."""
        return self.look.shorter <= _SMALL

    @property
    def photographs(self) -> bool:
        """Whether the colours of ImageNet's photographs mean something here."""
        return not self.small and self.look.grey < 0.5


@dataclass(frozen=True)
class Suggestion:
    """What is advised for teacher and student alike (``shared``) and for each (``own``), and what to look out for."""

    networks: dict[str, str]
    shared: list[Advice]
    own: dict[str, list[Advice]]
    warnings: list[str] = field(default_factory=list)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parsed flags."""
    parser = Parser("suggest.py", __doc__ or "")
    parser.add_argument("data", type=path, metavar="DATA", help="folder of images")
    for flag, role in (("--teacher", "teacher"), ("--model", "student")):
        about = f"network of the {role} (default: chosen by the images)"
        parser.add_argument(flag, type=filled_text, metavar="NAME", help=about)
    parser.add_argument(
        "--output", type=folder, metavar="DIR", help="folder of the runs that are suggested (default: results/<DATA>)"
    )
    parser.add_argument(
        "--sample", type=count, default=_LOOKED_AT, metavar="N", help=f"images to decode (default: {_LOOKED_AT})"
    )
    parser.add_argument("--no-timing", action="store_true", help="do not time steps of training, which takes seconds")
    parser.add_argument("--json", action="store_true", help="facts, advice and command lines as JSON")
    return parser.parse_args(argv)


def choose_split(sizes: list[int], validation: int) -> Advice | None:
    """How much of train/ to evaluate on where there is no validation part.

    Raises:
        UserError: a class of one image, which cannot be in both.
    """
    if validation:
        return None
    if min(sizes) < 2:
        raise UserError("without val/ each class needs two images, one to evaluate on: remove smaller classes, or add")
    share = 0.2 if sum(sizes) < 5000 else 0.1
    reason = f"there is no val/: {share:.0%} of each class is kept for evaluation, the same in every run"
    return Advice("--split", (f"{share:g}",), reason)


def choose_view(facts: Facts, classes: int) -> list[Advice]:
    """Preset, size, colours: how the images are shown."""
    look = facts.look
    about = f"{look.shorter} pixels on the shorter side in the middle of all"
    if facts.dataset == "cub200":
        return [Advice("--preset", ("cub",), "the paper's augmentation for birds: larger crops, rotation, colours")]
    if facts.small:
        if look.grey > 0.9:
            reason = f"{about}, and grey: probably signs, which a mirror would change (if not: --preset cifar10)"
            return [Advice("--preset", ("digits",), reason)]
        name = "cifar100" if classes == 100 else "cifar10"
        return [Advice("--preset", (name,), f"{about}: small shifts and mirroring, no crops")]
    advice = []
    side = max([size for size in _SIZES if size <= look.shorter], default=_SIZES[0])
    if side != PRESETS["imagenet"].val_crop_size:
        advice.append(Advice("--image-size", (str(side),), f"{about}: larger crops would only be slower"))
    if not facts.photographs:
        colours = [f"{value:g}" for value in (*look.mean, *look.std)]
        reason = "measured: these are not the colours of ImageNet's photographs"
        advice += [Advice("--mean", tuple(colours[:3]), reason), Advice("--std", tuple(colours[3:]), reason)]
    return advice


def choose_networks(facts: Facts) -> dict[str, str]:
    """A network for the teacher and one for the student."""
    if facts.small:
        pair = ("resnet32x4", "resnet8x4") if facts.gpus else ("resnet56", "resnet20")
    else:
        pair = ("resnet50", "resnet18") if facts.gpus else ("resnet18", "shufflenet_v2_x1_0")
    return dict(zip(("teacher", "student"), pair, strict=True))


def choose_schedule(facts: Facts, pretrained: bool) -> list[Advice]:
    """Batch, learning rate, epochs.

    The rates are those in common use for SGD with momentum, scaled linearly with the batch: 0.1 for 256 images of
    ImageNet and for 128 of CIFAR, a tenth for weights that are only tuned.
    """
    processes = max(1, facts.gpus)
    most = 64 if pretrained else 128
    batch = min(most, max(8, 2 ** int(math.log2(max(1, facts.images / (16 * processes))))))
    while 0 < facts.images % (batch * processes) < 2 * processes <= facts.images:
        batch += 1  # batch normalization cannot learn from a last batch of one image
    reason = "about 16 steps or more an epoch" if batch < most else "as usual"
    together = batch * processes
    advice = [Advice("--batch-size", (str(batch),), reason + f" on each of {processes} GPUs" * (processes > 1))]
    base = 0.1 * together / (128 if facts.small else 256)
    lr = base / 4 if pretrained else base
    start = "a quarter of it, because trained weights are only tuned" if pretrained else "from nothing"
    usual = f"0.1 for {128 if facts.small else 256} images, scaled to {together}: {start}"
    advice.append(Advice("--lr", (f"{lr:.2g}",), usual))
    if pretrained:
        epochs = 30 if facts.images < 50_000 else 10
        why = "tuning is quick"
    else:
        epochs = 90 if facts.images >= 500_000 else 200 if facts.small and facts.images >= 20_000 else 100
        why = "a start from nothing takes long" if facts.images < 500_000 else "as on ImageNet"
    advice.append(Advice("--epochs", (str(epochs),), f"{why}; distillation takes longer rather than shorter"))
    advice.append(Advice("--lr-scheduler", ("cosineannealinglr",), "no decay to place by hand"))
    warmup = max(1, epochs // 20)
    reason = "the first steps are taken carefully"
    advice.append(Advice("--lr-warmup-epochs", (str(warmup),), reason))
    advice.append(Advice("--lr-warmup-method", ("linear",), reason))
    if facts.small:
        advice.append(Advice("--weight-decay", ("5e-4",), "as usual for small images"))
    return advice


def wants_trained_weights(facts: Facts) -> bool:
    """Whether a start from ImageNet's weights is worth its download."""
    return facts.photographs and (len(facts.sizes) > facts.images / _FEW) and facts.images < 200_000


def warnings_about(facts: Facts, classes: list[str]) -> list[str]:
    """What the user should know, whatever is trained."""
    found = []
    sizes, look = facts.sizes, facts.look
    if look.unreadable:
        share = len(look.unreadable) / (look.images + len(look.unreadable))
        found.append(f"{share:.1%} of the images looked at cannot be read, such as: {look.unreadable[0]}")
    least, most = min(sizes), max(sizes)
    if most >= 5 * least:
        name, other = classes[sizes.index(least)], classes[sizes.index(most)]
        found.append(
            f"classes differ in size: '{name}' has {least} images, '{other}' {most}; accuracy follows the large ones, "
            "so look at each class, too: --per-class FILE.csv"
        )
    if (few := sum(size < 20 for size in sizes)) > 0:
        found.append(
            f"{few} of {len(sizes)} classes have fewer than 20 training images: expect them to be learnt badly"
        )
    if facts.validation:
        error = 100 / math.sqrt(facts.validation)  # 2 standard errors of a share of one half
        found.append(
            f"with {facts.validation} validation images, two accuracies that differ by less than {error:.1f} points "
            "may differ by chance"
        )
    if len(classes) > facts.validation > 0:
        found.append("fewer validation images than classes: accuracies will say little")
    return found


def suggest(facts: Facts, classes: list[str], networks: dict[str, str], weights: dict[str, str]) -> Suggestion:
    """All advice.

    Args:
        classes: names of the classes.
        networks: of ``teacher`` and ``student``.
        weights: names of the trained weights that each starts from; none: a start from nothing.
    """
    shared = choose_view(facts, len(classes))
    if facts.dataset == "cub200":
        shared.insert(0, Advice("--dataset", ("cub200",), "its images.txt and split were found"))
    if facts.look.unreadable:
        shared.append(Advice("--skip-unreadable", (), "some files are broken"))
    shared += choose_schedule(facts, bool(weights))
    if facts.gpus:
        shared.append(Advice("--amp", (), "faster on this GPU"))
    own: dict[str, list[Advice]] = {"teacher": [], "student": []}
    for role, source in weights.items():
        reason = f"{facts.images / len(classes):.0f} images a class are few: weights trained on ImageNet know more"
        own[role].append(Advice("--weights", (source,), reason))
    smooth = "the teacher's labels are smoothed, and the student learns at T = 1: the paper's rule of thumb"
    own["teacher"].append(Advice("--label-smoothing", ("0.1",), smooth))
    own["student"].append(Advice("--kd-temperature", ("1",), smooth))
    return Suggestion(networks, shared, own, warnings_about(facts, classes))


def command_lines(suggestion: Suggestion, root: Path, output: Path, gpus: int) -> dict[str, list[str]]:
    """Words of the command lines for teacher and student, and of what to do with the student then."""
    torchrun = ["torchrun", "--nproc_per_node", str(gpus)]
    start = torchrun if gpus > 1 else ["python"]
    lines = {}
    for role in ("teacher", "student"):
        line = [*start, "vision_reference/train.py", "--data-path", str(root), "--model", suggestion.networks[role]]
        if role == "student":
            best = str(output / "teacher" / "best.pth")
            line += ["--teacher", suggestion.networks["teacher"], "--teacher-weights", best]
        for one in (*suggestion.own[role], *suggestion.shared):
            line += [one.flag, *one.value]
        lines[role] = [*line, "--output-dir", str(output / role), "--resume", "auto"]
    student = str(output / "student" / "best.pth")
    lines["predict"] = ["python", "vision_reference/predict.py", student, "PICTURE.jpg"]
    lines["export"] = ["python", "vision_reference/export.py", student, "--format", "onnx", "--output"]
    lines["export"].append(str(output / "student.onnx"))
    return lines


def trained_weights(networks: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Names of trained weights for each role that can be had on this machine, and why others cannot."""
    from vision_reference.networks import pretrained

    found, notes = {}, []
    for role, name in networks.items():
        source = pretrained.weights_of(name)
        if source is None:
            notes.append(f"there are no trained weights of {name} to start from")
        elif reason := pretrained.missing(source):
            notes.append(f"{role}: a start from {source} would help most here, but {reason}")
        else:
            found[role] = source
    return (found if len(found) == len(networks) else {}), notes


def time_training(args: argparse.Namespace, facts: Facts) -> Duration | None:
    """How long the training that ``args`` (of train.py) ask for takes; None where its batch does not fit the GPU.

    A few steps are measured, on random pixels: reading images is left out. Processes are taken to be as fast together
    as one is times their number, and an image in an evaluation to cost a third of one in training.

    Raises:
        UserError: there is no such network.
    """
    import torch

    from vision_reference.distillation import Teacher, distillation_loss
    from vision_reference.learner import build_learner
    from vision_reference.machine import Rank, choose_machine, move_network
    from vision_reference.networks import by_name

    device = "cuda" if facts.gpus else "cpu"
    machine = choose_machine(device, "env://", amp=args.amp, amp_dtype=None, channels_last=None)
    model = by_name.build_model(args.model, len(facts.sizes))
    move_network(model, machine.device, machine.memory_format)
    learner = build_learner(model, args, Rank(), machine.device, machine.amp_dtype)
    teacher = None
    if args.teacher:
        network = by_name.build_model(args.teacher, len(facts.sizes))
        teacher = Teacher(network, machine.device, machine.memory_format, machine.autocast)
    side = args.train_crop_size
    batch = args.batch_size if facts.gpus else min(args.batch_size, max(2, _TIMED_PIXELS // side**2))
    images = torch.randn(batch, 3, side, side, device=machine.device).to(memory_format=machine.memory_format)
    targets = torch.zeros(batch, dtype=torch.long, device=machine.device)

    def step() -> None:
        answers = teacher(images) if teacher else None
        learner.optimizer.zero_grad(set_to_none=True)
        with machine.autocast():
            losses = distillation_loss(
                model(images), targets, answers, temperature=1.0, kd_weight=1.0, label_smoothing=args.label_smoothing
            )
        learner.scaler.scale(losses.total).backward()
        learner.scaler.step(learner.optimizer)
        learner.scaler.update()
        losses.total.item()  # waits for the GPU

    try:
        step()  # the first one prepares what the others find
        begin = time.perf_counter()
        for _ in range(_TIMED_STEPS):
            step()
        seconds = time.perf_counter() - begin
    except torch.OutOfMemoryError:
        return None
    pace = _TIMED_STEPS * batch * max(1, facts.gpus) / seconds
    return Duration(pace, args.epochs * (facts.images + facts.validation / 3) / pace / 3600)


def time_trainings(
    lines: dict[str, list[str]], facts: Facts, suggestion: Suggestion
) -> tuple[dict[str, Duration], list[str]]:
    """For teacher and student how long each trains, and notes where that cannot be told."""
    found, notes = {}, []
    for role, name in suggestion.networks.items():
        args = parse_train_args(lines[role][lines[role].index("vision_reference/train.py") + 1 :])
        if duration := time_training(args, facts):
            found[role] = duration
        else:
            notes.append(f"{role}: a batch of {args.batch_size} for {name} does not fit this GPU; lower --batch-size")
    return found, notes


def report(
    facts: Facts, classes: list[str], suggestion: Suggestion, lines: dict[str, str], durations: dict[str, Duration]
) -> str:
    """All of it, to read."""
    look, sizes = facts.look, facts.sizes
    average = facts.images / len(classes)
    text = [
        f"{facts.images} training images, {facts.validation or 'no'} validation images, {len(classes)} classes of "
        f"{min(sizes)} to {max(sizes)} images ({average:.0f} in the mean)",
        f"{look.images} looked at: {look.longer}x{look.shorter} pixels in the middle, shorter sides from "
        f"{look.smallest}, {look.grey:.0%} grey",
        "mean {} {} {}, std {} {} {} of pixels scaled to 0..1".format(*look.mean, *look.std),
        "",
    ]
    for role in ("teacher", "student"):
        text.append(f"  {role}: {suggestion.networks[role]}" + _how_long(durations.get(role), suggestion))
    merged: dict[str, tuple[list[str], str]] = {}
    for one in (*suggestion.own["teacher"], *suggestion.own["student"], *suggestion.shared):
        words, _ = merged.setdefault(one.flag, ([], one.reason))
        words += [word for word in one.value if one.flag in ("--mean", "--std") or word not in words]
    text += [f"  {flag} {' '.join(words)}".rstrip() + f": {reason}" for flag, (words, reason) in merged.items()]
    text += [f"note: {warning}" for warning in suggestion.warnings]
    text += ["", *(f"# {title}\n{line}" for title, line in lines.items())]
    return "\n".join(text)


def _how_long(duration: Duration | None, suggestion: Suggestion) -> str:
    if duration is None:
        return ""
    epochs = next(one.value[0] for one in suggestion.shared if one.flag == "--epochs")
    minutes = max(1, round(60 * duration.hours))
    return (
        f"; here {duration.images_per_second:.3g} images/s (timed, without reading them), so about {minutes // 60}:"
        f"{minutes % 60:02d} h for {epochs} epochs"
    )


def main(args: argparse.Namespace) -> None:
    """Look, advise, print.

    Raises:
        UserError: no data, data that makes no sense, or no such network.
    """
    layout = survey.find_layout(args.data)
    if len(layout.classes) < 2:
        raise UserError(f"{args.data} has images of one class ({layout.classes[0]}): there is nothing to tell apart")
    sizes = survey.class_sizes(layout.train, layout.classes)
    split = choose_split(sizes, len(layout.val or ()))
    from vision_reference.networks import by_name  # takes seconds: mistakes in the data are told before

    for name in filter(None, (args.teacher, args.model)):
        by_name.outline(name, len(layout.classes))
    paths = survey.spread(layout.train, args.sample)
    look = survey.look_at(paths, min(8, len(os.sched_getaffinity(0))))
    images, validation = len(layout.train), len(layout.val or ())
    if split:
        taken = sum(max(1, round(float(split.value[0]) * size)) for size in sizes)
        images, validation = images - taken, taken
    import torch

    facts = Facts(images, validation, sizes, look, layout.dataset, torch.cuda.device_count())
    networks = choose_networks(facts)
    networks |= {"teacher": args.teacher} if args.teacher else {}
    networks |= {"student": args.model} if args.model else {}
    weights, notes = trained_weights(networks) if wants_trained_weights(facts) else ({}, [])
    suggestion = suggest(facts, layout.classes, networks, weights)
    if split:
        suggestion.shared.insert(0, split)
    suggestion.warnings[:0] = [*layout.notes, *notes]
    output = args.output or Path("results") / (args.data.resolve().name or "images")
    lines = {"prepare": " && ".join(map(shlex.join, layout.prepare))} if layout.prepare else {}
    commands = command_lines(suggestion, layout.root, output, facts.gpus)
    lines |= {role: shlex.join(words) for role, words in commands.items()}
    durations: dict[str, Duration] = {}
    if not args.no_timing:
        durations, notes = time_trainings(commands, facts, suggestion)
        suggestion.warnings.extend(notes)
    if args.json:
        data = {key: value for key, value in asdict(facts).items() if key != "sizes"}
        data |= {"classes": dict(zip(layout.classes, sizes, strict=True)), "path": str(args.data)}
        own = {role: [one._asdict() for one in advice] for role, advice in suggestion.own.items()}
        advice = {"networks": networks, "shared": [one._asdict() for one in suggestion.shared], **own}
        record = {"data": data, "advice": advice, "notes": suggestion.warnings, "commands": lines}
        record["time"] = {role: duration._asdict() for role, duration in durations.items()}
        print(json.dumps(record, indent=1, ensure_ascii=False))
    else:
        print(report(facts, layout.classes, suggestion, lines, durations))


if __name__ == "__main__":
    run_command("suggest.py", lambda: main(parse_args()))

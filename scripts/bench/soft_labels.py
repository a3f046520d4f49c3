"""What a teacher costs: training from labels, from stored soft labels, and with the teacher running along.

    python scripts/bench/soft_labels.py                      ResNet-50 to ResNet-18 and to MobileNetV2 at 224
    python scripts/bench/soft_labels.py --quick              at 64, does it run
    python scripts/bench/soft_labels.py --json figures.json  also write every single measurement

Measured in turns of a few steps each, all four ways in every round and in changing order; ratios are taken within a
round.

  plain    train_one_epoch of vision_reference/train.py from labels alone; its loader (uint8 images in memory, no
           decoding), in fp32 unless --amp is given
  stored   the same from a store on disk of 50,000 images and 1,000 classes in float16, which the page cache holds
  online   the same with the teacher in the process (channels-last, batch norms folded, inference mode)
  floor    what no loop with a teacher in it can do without: teacher forward, student forward, loss, backward, optimizer
           step; ready-made batches

Aims on two CPU cores at 224: stored at least 0.97 of plain's images per second, online at least 0.97 of floor's.
Weights, images and stored logits are random: they do not change the amount of work.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.bench.timing import (
    Setting,
    add_arguments,
    image_rates,
    measure,
    parse_arguments,
    rate_lines,
    speed_ratio,
    this_machine,
)
from scripts.bench.vision_step import CLASSES, TEACHER, TEMPERATURE
from vision_reference.analysis.stored_error import REPORTED, error_rows
from vision_reference.arguments import parse_args as parse_training_flags
from vision_reference.distillation import Teacher
from vision_reference.errors import Parser, run_command
from vision_reference.images.pipelines import Normalize
from vision_reference.images.presets import PRESETS
from vision_reference.images.samplers import TrainBatchSampler
from vision_reference.images.torch_loader import TorchvisionLoader
from vision_reference.learner import build_learner
from vision_reference.loaders import SoftLabelLoader, TeacherLoader
from vision_reference.losses.kd import kd_divergence
from vision_reference.machine import Machine
from vision_reference.networks.by_name import build_model
from vision_reference.soft_labels.codec import encode
from vision_reference.soft_labels.store import BLOCK, FORMAT, Store, all_blocks, extents, record_types
from vision_reference.soft_labels.stored_teachers import SoftLabels
from vision_reference.soft_labels.writer import Writer
from vision_reference.train import train_one_epoch

STUDENTS = ("resnet18", "mobilenet_v2")
WAYS = ("plain", "stored", "online", "floor")
STORED_IMAGES = 50_000


class FewImages(Dataset):
    """Decoded images (3, H, W) uint8 under as many numbers as the store has; a few of them serve all."""

    def __init__(self, setting: Setting) -> None:
        count = setting.steps * setting.batch_size
        self.images = torch.randint(256, (count, setting.image_size, setting.image_size, 3), dtype=torch.uint8)
        self.images = self.images.permute(0, 3, 1, 2)  # as decoders leave them

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        index, _ = key
        return self.images[index % len(self.images)], index % CLASSES


class FirstSteps:
    """The first batches of another sampler's epoch: random numbers out of all images, but not all of them.

    They are drawn beforehand: real training draws an epoch's order once in thousands of steps, not in a few.
    """

    def __init__(self, batches: TrainBatchSampler, steps: int) -> None:
        self.keys = list(islice(batches.epoch(0), steps))
        self.step_sizes = batches.step_sizes[:steps]

    def __len__(self) -> int:
        return len(self.keys)

    def epoch(self, number: int) -> Iterator[list[tuple[int, int]]]:
        """Every epoch has the same batches."""
        return iter(self.keys)


def write_store(folder: Path, images: int) -> Store:
    """A store of one view with random logits."""
    plan = {"format": FORMAT, "teacher": {"arch": TEACHER, "weights_sha256": "", "precision": "fp32"}}
    plan |= {"data": {"images": images, "classes": CLASSES, "sha256": "", "covers": ""}, "pixels": {}, "versions": {}}
    plan |= {"views": {"count": 1, "seed": 0}, "labels": {"top_k": None, "temperatures": []}, "block": BLOCK}
    with Writer(folder, plan, extents(plan)) as writer:
        for block in all_blocks(plan):
            records = {name: np.zeros(block.stop - block.start, kind) for name, kind in record_types(plan).items()}
            views, labels = records.values()
            views["seed"] = range(block.start, block.stop)
            labels["logits"] = encode(4 * torch.randn(len(labels), CLASSES), None, [])["logits"].numpy()
            writer.write(block.number, {name: part.tobytes() for name, part in records.items()})
        writer.finish(errors={row: [0.0] * len(REPORTED) for row in error_rows(CLASSES, None)})
    return Store(folder)


def turns(setting: Setting, student: str, store: Store, device: str, amp: bool) -> dict[str, Callable[[], object]]:
    """For each way a function that does ``setting.steps`` training steps."""
    flags = ["--device", device, "--batch-size", str(setting.batch_size), "--model", student]
    flags += ["--amp"] if amp else []
    args = parse_training_flags(flags)
    taught = parse_training_flags([*flags, "--soft-labels", "stored", "--kd-temperature", str(TEMPERATURE)])
    machine = Machine.of(args)
    torch.manual_seed(0)
    dataset, layout = FewImages(setting), machine.memory_format
    normalize = Normalize(PRESETS["imagenet"].mean, PRESETS["imagenet"].std, machine.device)

    def loader() -> TorchvisionLoader:
        batches = FirstSteps(TrainBatchSampler(store.images, setting.batch_size, seed=0), setting.steps)
        place = {"device": machine.device, "memory_format": layout}
        return TorchvisionLoader(dataset, batches, workers=0, normalize=normalize, **place)

    def network(name: str) -> torch.nn.Module:
        return build_model(name, CLASSES).to(machine.device, memory_format=layout)

    def epoch(flags: argparse.Namespace, images: object) -> Callable[[], None]:
        learner = build_learner(network(student), flags, machine.rank, machine.device, machine.amp_dtype)

        def turn() -> None:
            with contextlib.redirect_stdout(io.StringIO()):  # the progress lines are made, but would spoil the bar
                train_one_epoch(learner, images, machine, flags, epoch=0)

        return turn

    teacher = Teacher(network(TEACHER), machine.device, layout, machine.autocast)
    bare, ready = network(student).train(), list(loader().epoch(0))
    sgd = {"lr": args.lr, "momentum": args.momentum, "weight_decay": args.weight_decay}
    optimizer = torch.optim.SGD(bare.parameters(), **sgd)

    def floor() -> None:
        for images, _, _ in ready:
            answer = teacher(images)
            with machine.autocast():
                loss = kd_divergence(bare(images), answer, TEMPERATURE)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    soft_labels = SoftLabels([store], TEMPERATURE, "uniform")
    return {
        "plain": epoch(args, loader()),
        "stored": epoch(taught, SoftLabelLoader(loader(), soft_labels)),
        "online": epoch(taught, TeacherLoader(loader(), teacher)),
        "floor": floor,
    }


def summarize(setting: Setting, seconds: dict[str, list[float]]) -> dict:
    """Images per second of each way, and ratios of them, each formed within a round."""
    return {
        "images_per_second": image_rates(setting, seconds),
        "stored_over_plain": speed_ratio(seconds, "stored", "plain"),
        "online_over_floor": speed_ratio(seconds, "online", "floor"),
        "stored_over_online": speed_ratio(seconds, "stored", "online"),
    }


def report(setting: Setting, student: str, amp: bool, summary: dict) -> str:
    """The summary as a table with the ratios below."""
    size = setting.image_size
    lines = [
        f"{TEACHER} to {student}, {size}x{size}, batch {setting.batch_size}, {'bf16' if amp else 'fp32'}, "
        f"{setting.rounds} rounds of {setting.steps} steps, {torch.get_num_threads()} threads",
        *rate_lines(summary["images_per_second"]),
    ]
    for name, aim in (
        ("stored_over_plain", ", aim 0.97"),
        ("online_over_floor", ", aim 0.97"),
        ("stored_over_online", ""),
    ):
        way, _, baseline = name.split("_")
        ratio = summary[name]
        lines.append(
            f"{way} trains {ratio['median']:.3f} times as fast as {baseline} (rounds: {ratio['min']:.3f} to "
            f"{ratio['max']:.3f}{aim})"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, report."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, quick=", a store of 2,000 images")
    parser.add_argument("--students", nargs="+", default=STUDENTS, metavar="NAME", help="(default: %(default)s)")
    parser.add_argument("--amp", action="store_true", help="under autocast (on CPUs: pays with AMX)")
    args, setting = parse_arguments(parser)
    record = {
        "setting": asdict(setting),
        "device": args.device,
        "amp": args.amp,
        "machine": this_machine(),
        "students": {},
    }
    with tempfile.TemporaryDirectory(prefix="soft-labels-") as folder:
        store = write_store(Path(folder), 2_000 if args.quick else STORED_IMAGES)
        for student in args.students:
            seconds = measure(turns(setting, student, store, args.device, args.amp), setting, student)
            summary = summarize(setting, seconds)
            print(report(setting, student, args.amp, summary), flush=True)
            record["students"][student] = {"seconds_per_step": seconds, **summary}
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    run_command("soft_labels.py", main)

"""How fast a distillation step is: the paper authors' way of stepping, ours, and the bare floor under ours.

    python scripts/bench/vision_step.py                      ResNet-50 to ResNet-18 at 224: about a minute on two cores
    python scripts/bench/vision_step.py --quick              at 64, some seconds: does it run, is the order right
    python scripts/bench/vision_step.py --json figures.json  also write every single measurement

Measured in turns of a few steps each, all three ways in every round and in changing order, so that a machine that slows
down slows all of them down; ratios are taken within a round.

  authors   fp32, contiguous memory, teacher under no_grad, loss and accuracies fetched with .item() in every step;
            ready-made batches
  ours      train_one_epoch of vision_reference/train.py, with --amp unless told otherwise: its loader (uint8 images in
            memory, no decoding), channels_last, inference mode, schedule, averages, progress lines
  floor     what no loop can do without, in the same precision and layout as ours: teacher forward, student forward,
            loss, backward, optimizer step; ready-made batches

Aims on two CPU cores at 224: ours at least 3.0 times as fast as the authors' way, and within 5 % of its floor. The
first needs a CPU that multiplies in bf16 faster than in fp32 (Intel's with AMX, for one; the report says what this one
does). Where it does not, --amp costs time, and --no-amp shows what training without it gains.
Weights are random: they do not change the amount of work.
"""

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
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
    timed,
)
from vision_reference.arguments import parse_args as parse_training_flags
from vision_reference.distillation import Teacher
from vision_reference.errors import Parser, run_command
from vision_reference.images.pipelines import Normalize
from vision_reference.images.presets import PRESETS
from vision_reference.images.samplers import TrainBatchSampler
from vision_reference.images.torch_loader import TorchvisionLoader
from vision_reference.learner import build_learner
from vision_reference.loaders import TeacherLoader
from vision_reference.losses.kd import kd_divergence
from vision_reference.machine import Machine
from vision_reference.networks.by_name import build_model
from vision_reference.train import train_one_epoch

TEACHER, STUDENT, CLASSES, TEMPERATURE = "resnet50", "resnet18", 1000, 1.0
WAYS = ("authors", "ours", "floor")


class ImagesInMemory(Dataset):
    """Decoded images, as the loader finds them after augmentation: uint8 (N, 3, H, W), labels (N,)."""

    def __init__(self, setting: Setting) -> None:
        count = setting.steps * setting.batch_size
        self.images = torch.randint(256, (count, setting.image_size, setting.image_size, 3), dtype=torch.uint8)
        self.images = self.images.permute(0, 3, 1, 2)  # as decoders leave them
        self.labels = torch.randint(CLASSES, (count,))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        index, _ = key
        return self.images[index], int(self.labels[index])


def turns(setting: Setting, device: str, amp: bool) -> dict[str, Callable[[], object]]:
    """For each way a function that does ``setting.steps`` training steps."""
    flags = [
        "--device",
        device,
        "--batch-size",
        str(setting.batch_size),
        "--model",
        STUDENT,
        *(["--amp"] if amp else []),
    ]
    flags += ["--teacher", TEACHER, "--teacher-weights", "random", "--kd-temperature", str(TEMPERATURE)]
    args = parse_training_flags(flags)
    machine = Machine.of(args)
    torch.manual_seed(0)
    dataset = ImagesInMemory(setting)
    normalize = Normalize(PRESETS["imagenet"].mean, PRESETS["imagenet"].std, machine.device)

    def loader(memory_format: torch.memory_format) -> TorchvisionLoader:
        batches = TrainBatchSampler(len(dataset), setting.batch_size, seed=0, repetitions=1, rank=0, world_size=1)
        place = {"device": machine.device, "memory_format": memory_format}
        return TorchvisionLoader(dataset, batches, workers=0, normalize=normalize, **place)

    def student(memory_format: torch.memory_format) -> torch.nn.Module:
        return build_model(STUDENT, CLASSES).to(machine.device, memory_format=memory_format).train()

    def teacher(memory_format: torch.memory_format) -> torch.nn.Module:
        return build_model(TEACHER, CLASSES).to(machine.device, memory_format=memory_format).eval()

    plain, fast = torch.contiguous_format, machine.memory_format
    sgd = {"lr": args.lr, "momentum": args.momentum, "weight_decay": args.weight_decay}

    slow_student, slow_teacher, slow_batches = student(plain), teacher(plain), list(loader(plain).epoch(0))
    slow_optimizer = torch.optim.SGD(slow_student.parameters(), **sgd)

    def authors() -> None:
        step_like_the_authors(slow_student, slow_teacher, slow_optimizer, slow_batches)

    frozen = Teacher(teacher(fast), machine.device, fast, machine.autocast)
    learner = build_learner(student(fast), args, machine.rank, machine.device, machine.amp_dtype)
    own_loader = TeacherLoader(loader(fast), frozen)

    def ours() -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # the progress lines are made, but would spoil the bar
            train_one_epoch(learner, own_loader, machine, args, epoch=0)

    bare, ready_batches = student(fast), list(loader(fast).epoch(0))
    bare_optimizer = torch.optim.SGD(bare.parameters(), **sgd)

    def floor() -> None:
        for images, _, _ in ready_batches:
            teacher_logits = frozen(images)
            with machine.autocast():
                loss = kd_divergence(bare(images), teacher_logits, TEMPERATURE)
            bare_optimizer.zero_grad()
            loss.backward()
            bare_optimizer.step()

    return {"authors": authors, "ours": ours, "floor": floor}


def step_like_the_authors(
    student: torch.nn.Module, teacher: torch.nn.Module, optimizer: torch.optim.Optimizer, batches: list
) -> dict[str, float]:
    """Steps as the paper's published scripts take them, without their loader: every one waits for three numbers."""
    sums = dict.fromkeys(("loss", "top1", "top5"), 0.0)
    for images, labels, _ in batches:
        with torch.no_grad():
            soft_labels = F.softmax(teacher(images) / TEMPERATURE, dim=1)
        logits = student(images)
        lprobs = F.log_softmax(logits / TEMPERATURE, dim=1)
        loss = TEMPERATURE**2 * F.kl_div(lprobs, soft_labels, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        hits = logits.topk(5, dim=1).indices == labels[:, None]
        sums["loss"] += loss.item()
        sums["top1"] += hits[:, :1].sum().item()
        sums["top5"] += hits.sum().item()
    return sums


def bf16_speed(device: str) -> float:
    """How many times as fast as in fp32 this device multiplies large matrices in bf16; best of five tries each."""

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(1024, 1024, dtype=dtype, device=device)
        return min(timed(lambda: matrix @ matrix) for _ in range(6))

    return seconds(torch.float32) / seconds(torch.bfloat16)


def summarize(setting: Setting, seconds: dict[str, list[float]]) -> dict:
    """Images per second of each way, and the two ratios the aims are about, each formed within a round."""
    return {
        "images_per_second": image_rates(setting, seconds),
        "ours_over_authors_speed": speed_ratio(seconds, "ours", "authors"),
        "ours_over_floor_time": speed_ratio(seconds, "floor", "ours"),
    }


def report(setting: Setting, amp: bool, summary: dict) -> str:
    """The summary as a table with the ratios below."""
    size = setting.image_size
    lines = [
        f"{TEACHER} to {STUDENT}, {size}x{size}, batch {setting.batch_size}, ours {'with' if amp else 'without'} --amp",
        f"{setting.rounds} rounds of {setting.steps} steps, {torch.get_num_threads()} threads",
        *rate_lines(summary["images_per_second"]),
    ]
    speed, time_ratio = summary["ours_over_authors_speed"], summary["ours_over_floor_time"]
    lines.append(
        f"ours against the authors' way: {speed['median']:.2f} times as fast "
        f"(rounds: {speed['min']:.2f} to {speed['max']:.2f})"
    )
    lines.append(
        f"ours against its floor: {100 * (time_ratio['median'] - 1):+.1f} % time "
        f"(rounds: {100 * (time_ratio['min'] - 1):+.1f} to {100 * (time_ratio['max'] - 1):+.1f})"
    )
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, report."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--no-amp", action="store_true", help="ours and its floor in fp32")
    args, setting = parse_arguments(parser)
    amp = not args.no_amp
    begin, cpu_begin = time.perf_counter(), time.process_time()
    seconds = measure(turns(setting, args.device, amp), setting, STUDENT)
    got = (time.process_time() - cpu_begin) / (time.perf_counter() - begin) / torch.get_num_threads()
    bf16 = bf16_speed(args.device)
    summary = summarize(setting, seconds)
    print(report(setting, amp, summary))
    print(f"matrix products in bf16: {bf16:.2f} times as fast as in fp32 on this {args.device}")
    if args.device == "cpu" and got < 0.85:
        print(f"note: other processes were busy, this one got {100 * got:.0f} % of its cores; repeat when it is quiet")
    if args.json:
        where = this_machine() | {"bf16_speed": bf16, "share_of_cores": got}
        record = {"setting": asdict(setting), "device": args.device, "amp": amp, "machine": where}
        record["seconds_per_step"] = seconds
        args.json.write_text(json.dumps(record | summary, indent=1) + "\n")


if __name__ == "__main__":
    run_command("vision_step.py", main)

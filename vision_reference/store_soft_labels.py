"""Store what a teacher says about M views of each training image, once for all students that learn from it.

    # 10 views of each image, all classes
    torchrun --nproc_per_node 8 vision_reference/store_soft_labels.py --data-path DATA --amp --views 10 \
        --teacher resnet50 --teacher-weights teacher/best.pth --output-dir teacher/soft_labels
    # the same views for a second teacher
    torchrun --nproc_per_node 8 vision_reference/store_soft_labels.py --data-path DATA --amp \
        --teacher resnet50 --teacher-weights smooth/best.pth --output-dir smooth/soft_labels \
        --same-views-as teacher/soft_labels
    # are 100 of them what the teacher says?
    python vision_reference/store_soft_labels.py ... --check 100

A view is all that ``train.py`` would do to an image in one epoch; its seed fixes it to the bit (decoded on the CPU). A
run that was killed goes on where it was, on any number of processes, and ends with the same bytes.
"""

import argparse
import secrets
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from vision_reference.arguments import parse_store_args
from vision_reference.errors import UserError, run_command

if __name__ == "__main__":  # before torch is imported, which takes seconds: --help and mistakes are answered at once
    run_command("store_soft_labels.py", parse_store_args)

import numpy as np
import torch
from tqdm import tqdm

from vision_reference.data import Look, Reading, list_samples, view_loader
from vision_reference.distillation import Teacher
from vision_reference.images.batch import Batch
from vision_reference.images.folders import Samples
from vision_reference.images.presets import PRESETS
from vision_reference.images.samplers import view_seed
from vision_reference.machine import Machine, barrier, choose_machine, from_main
from vision_reference.networks.heads import check_input_sizes
from vision_reference.networks.teachers import read_teacher
from vision_reference.soft_labels.codec import encode, error_rows, error_sums, error_table
from vision_reference.soft_labels.provenance import describe_data, hash_weights, pixel_flags, versions
from vision_reference.soft_labels.store import BLOCK, FORMAT, Block, Store, record_types
from vision_reference.soft_labels.stored_teachers import check_belongs
from vision_reference.soft_labels.views import KeyBatchSampler, ViewBatchSampler
from vision_reference.soft_labels.writer import Writer, read_plan, sizes

_SECONDS_BETWEEN_LINES = 5
# How far a logit may be off, as a share of the largest one (at least 1): float16 keeps 2**-11 of a number; other batch
# sizes, devices and TF32 cost about as much again; bf16 keeps 2**-8, in every layer.
_TOLERANCE = {"fp32": 2e-3, "bf16": 5e-2, "fp16": 1e-2}


def main(args: argparse.Namespace) -> None:
    """Store, or go on storing, and check."""
    machine = choose_machine(args)
    rank, folder = machine.rank, Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)  # --skip-unreadable reports into it
    data = list_samples(args, rank)
    samples, classes = data.train, data.classes
    if args.top_k and args.top_k >= len(classes):
        raise UserError(f"--top-k {args.top_k} of {len(classes)} classes leaves nothing out; drop it to store them all")
    trained = read_teacher(args.teacher, args.teacher_weights, classes, PRESETS[args.preset], temperatures=())
    check_input_sizes("teacher", args.teacher, trained.network, {args.train_crop_size})
    for note in trained.notes:
        rank.say(note)

    writer = None
    if rank.is_main:
        writer = Writer(folder, make_plan(args, machine, samples, classes, hash_weights(trained.network)))
    plan, whole, done = from_main((writer.plan, writer.whole, set(writer.done)) if writer else None)
    teacher = Teacher(
        trained.network,
        machine.device,
        machine.memory_format,
        machine.autocast,
        compile=args.compile,
        renormalize=trained.renormalize,
    )
    if not whole:
        with writer or Writer(folder, plan, rank.rank) as writer:
            store(args, machine, teacher, samples, writer, done)
    if rank.is_main:
        stored = Store(folder)
        if damage := stored.damage(stored.blocks):
            raise UserError(damage)
        rank.say(f"{folder} is whole" + (", nothing to store" if whole else ""))
        print(error_table(stored.errors, stored.count * stored.images), flush=True)
        if args.check and not check(args, machine, teacher, samples, stored):
            sys.exit(1)


def make_plan(
    args: argparse.Namespace, machine: Machine, samples: Samples, classes: list[str], weights_hash: str
) -> dict:
    """The manifest but for checksums and errors: what is to be stored, from what.

    Raises:
        UserError: with ``--same-views-as``, a store of other data or pixels.
    """
    plan = {
        "format": FORMAT,
        "teacher": {
            "arch": args.teacher,
            "weights_sha256": weights_hash,
            "precision": "fp32" if not args.amp else "bf16" if machine.amp_dtype == torch.bfloat16 else "fp16",
        },
        "data": describe_data(samples, classes),
        "pixels": pixel_flags(args),
        "views": {"count": args.views, "seed": args.seed},
        "labels": {"top_k": args.top_k, "temperatures": args.temperatures if args.top_k else []},
        "block": BLOCK,
        "versions": versions(args.loader),
    }
    if args.same_views_as:
        other = Store(Path(args.same_views_as))
        check_belongs(other, plan["data"], plan["pixels"])
        if other.pixels != plan["pixels"]:
            raise UserError(f"{other.folder} was stored with --loader {other.pixels['loader']}; give it")
        plan["views"] = other.manifest["views"]
        return plan
    found = read_plan(Path(args.output_dir)) or {"views": {"count": 1, "seed": secrets.randbelow(2**31)}}
    for name, value in plan["views"].items():
        if value is None:
            plan["views"][name] = found["views"][name]
    return plan


def store(
    args: argparse.Namespace,
    machine: Machine,
    teacher: Teacher,
    samples: Samples,
    writer: Writer,
    done: Collection[int],
) -> None:
    """Write the blocks that are not ``done``, shared by all processes, and the manifest."""
    rank, plan, blocks = machine.rank, writer.plan, writer.blocks
    size = tqdm.format_sizeof(sum(sizes(plan).values()), "B")
    count, seed = plan["views"]["count"], plan["views"]["seed"]
    rank.say(f"{args.teacher} about {count} views of each of {len(samples)} images: {size} in {writer.folder}")
    rank.say(f"seed {seed}" + (f"; going on after {len(done)} of {len(blocks)} blocks" * bool(done)))
    missing = [block for block in blocks if block.number not in done]
    own = missing[rank.rank :: rank.world_size]
    batches = ViewBatchSampler(own, plan["views"]["seed"], args.batch_size)
    reading = Reading.of(args, machine.device, machine.memory_format)
    loader = view_loader(samples, batches, Look.of(args), reading)
    progress = _Progress(own, rank.world_size)
    shown = loader.epoch(0)
    for block in own:
        writer.write(block, *make_block(block, shown, batches, teacher, plan))
        if rank.is_main:
            progress.show(block)
    barrier()
    if rank.is_main:
        writer.finish(error_rows(plan["data"]["classes"], args.top_k))
    barrier()


def make_block(
    block: Block, shown: Iterator[Batch], batches: ViewBatchSampler, teacher: Teacher, plan: dict
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Records of both files for ``block`` and the sums of errors over it.

    Args:
        shown: images and geometry of the batches to come.

    Raises:
        UserError: the teacher's logits are not finite.
    """
    labels = plan["labels"]
    records = {name: np.empty(block.stop - block.start, kind) for name, kind in record_types(plan).items()}
    views, stored = records.values()
    errors, place = 0, 0
    for _ in range(batches.batches_of(block)):
        images, geometry, _ = next(shown)
        logits = teacher(images).float()
        if not logits.isfinite().all():
            raise UserError("the teacher's logits are not finite; its weights are damaged, or --amp does not suit it")
        errors += error_sums(logits, labels["top_k"]).numpy()
        rows = slice(place, place + len(images))
        geometry = geometry.cpu().numpy()
        views["box"][rows], views["flip"][rows] = geometry[:, :4], geometry[:, 4]
        for name, part in encode(logits, labels["top_k"], labels["temperatures"]).items():
            stored[name][rows] = part.cpu().numpy()
        place = rows.stop
    views["seed"] = [view_seed(batches.seed, block.view, index) for index in range(block.start, block.stop)]
    return records, errors


def check(args: argparse.Namespace, machine: Machine, teacher: Teacher, samples: Samples, stored: Store) -> bool:
    """Recompute ``--check`` random views and print how far the stored ones are off; whether that is tolerable.

    What is compared: crop and flip, the logits kept, and the log-sum-exps.
    """
    generator = np.random.default_rng()
    drawn = generator.choice(stored.count * stored.images, min(args.check, stored.count * stored.images), replace=False)
    views, indices = np.divmod(np.sort(drawn), stored.images)
    keys = [(int(index), int(stored.views["seed"][view, index])) for view, index in zip(views, indices, strict=True)]
    batches = KeyBatchSampler(keys, args.batch_size)
    reading = Reading.of(args, machine.device, machine.memory_format)
    loader = view_loader(samples, batches, Look.of(args), reading)
    differences, scale, moved, place = [], 1.0, 0, 0
    for images, geometry, _ in loader.epoch(0):
        rows = slice(place, place + len(images))
        place = rows.stop
        records = stored.labels[views[rows], indices[rows]]
        boxes = stored.views[views[rows], indices[rows]]
        moved += int((np.c_[boxes["box"], boxes["flip"]] != geometry.cpu().numpy()).any(axis=1).sum())
        logits = teacher(images).double()
        logits -= logits.amax(dim=1, keepdim=True)
        scale = max(scale, logits.abs().max().item())
        if stored.top_k:
            chosen = torch.from_numpy(records["indices"].astype(np.int64)).to(logits.device)
            now = encode(logits, stored.top_k, stored.temperatures)["rest"].cpu().numpy()
            differences.append(np.abs(now - records["rest"]).max(axis=1, keepdims=True))
            logits = logits.gather(1, chosen)
        differences.append(np.abs(logits.cpu().numpy() - records["logits"].astype(np.float64)))
    largest = max(part.max() for part in differences)
    mean = sum(part.sum() for part in differences) / sum(part.size for part in differences)
    limit = _TOLERANCE[stored.precision] * scale
    good = bool(largest <= limit) and not moved
    print(
        f"check of {len(keys)} views: stored values are off by at most {largest:.2g}, {mean:.2g} in the mean (limit "
        f"{limit:.2g}); {moved} with another crop or flip: {'good' if good else 'TOO FAR OFF'}",
        flush=True,
    )
    return good


class _Progress:
    """A line now and then: share done, rate of all processes, remaining time."""

    def __init__(self, blocks: list[Block], processes: int) -> None:
        self.total = sum(block.stop - block.start for block in blocks)
        self.processes = processes
        self.done = 0
        self.begin = self.last = time.perf_counter()

    def show(self, block: Block) -> None:
        """Count a finished block of this process."""
        self.done += block.stop - block.start
        now = time.perf_counter()
        if now - self.last < _SECONDS_BETWEEN_LINES and self.done < self.total:
            return
        self.last, rate = now, self.done / (now - self.begin)
        left = int((self.total - self.done) / rate)
        print(
            f"[{100 * self.done // self.total:>3} %]  {rate * self.processes:.0f} views/s  "
            f"ETA {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}",
            flush=True,
        )


if __name__ == "__main__":
    run_command(
        "store_soft_labels.py", lambda: main(parse_store_args()), go_on="run the same command again, it goes on"
    )

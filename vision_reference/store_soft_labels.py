"""Store what a teacher says about M views of each training image, once for all students that learn from it.

A view is all that ``train.py`` would do to an image in one epoch; its seed fixes it to the bit (decoded on the CPU). A
run that was killed goes on where it was, on any number of processes, and ends with the same bytes.

Examples: ``--help``; docs/stored_teachers.md.
"""

import argparse
import secrets
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from vision_reference.arguments import parse_store_args
from vision_reference.errors import UserError, answer_at_once, run_command

if __name__ == "__main__":  # before torch is imported, which takes seconds
    answer_at_once("store_soft_labels.py", parse_store_args)

import numpy as np
import torch
from tqdm import tqdm

from vision_reference.analysis.stored_error import error_rows, error_sums, error_table
from vision_reference.data import Look, Reading, Source, list_samples, view_loader
from vision_reference.distillation import Teacher
from vision_reference.images.batch import Batch, Loader
from vision_reference.images.decoding import offering_to_skip
from vision_reference.images.fingerprint import describe_data, pixel_flags, versions
from vision_reference.images.presets import chosen
from vision_reference.images.samplers import ViewBatchSampler
from vision_reference.images.seeds import view_seed
from vision_reference.machine import Machine, Rank, barrier, from_main
from vision_reference.networks.heads import check_input_sizes
from vision_reference.networks.teachers import hash_weights, read_teacher
from vision_reference.progress import progress
from vision_reference.soft_labels.codec import encode
from vision_reference.soft_labels.store import BLOCK, FORMAT, Block, Store, all_blocks, extents, record_types
from vision_reference.soft_labels.stored_teachers import check_belongs
from vision_reference.soft_labels.writer import Writer, read_plan

# How far a logit may be off, as a share of the largest one (at least 1): float16 keeps 2**-11 of a number; other batch
# sizes, devices and TF32 cost about as much again; bf16 keeps 2**-8, in every layer.
_TOLERANCE = {"fp32": 2e-3, "bf16": 5e-2, "fp16": 1e-2}

Parts = Sequence[tuple[int, Sequence[int]]]  # see ``ViewBatchSampler``, as the seeds are
Show = Callable[[Parts, Callable[[int, int], int]], Loader]


@offering_to_skip()
def main(args: argparse.Namespace) -> None:
    """Store, or go on storing, and check."""
    machine = Machine.of(args)
    rank, folder = machine.rank, Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)  # --skip-unreadable reports into it
    data = list_samples(Source.of(args), rank)
    samples, classes = data.train, data.classes
    if args.top_k and args.top_k >= len(classes):
        raise UserError(f"--top-k {args.top_k} of {len(classes)} classes leaves nothing out; drop it to store them all")
    preset = chosen(args.preset, args.mean, args.std)
    trained = read_teacher(args.teacher, args.teacher_weights, classes, preset, temperatures=())
    check_input_sizes("teacher", args.teacher, trained.network, {args.train_crop_size})
    for note in trained.notes:
        rank.say(note)

    writer = None
    if rank.is_main:
        precision = "fp32" if not args.amp else "bf16" if machine.amp_dtype == torch.bfloat16 else "fp16"
        weights, pixels = hash_weights(trained.network), pixel_flags(vars(args))
        about = {"data": describe_data(samples, classes), "pixels": pixels}
        plan = {
            "format": FORMAT,
            "teacher": {"arch": args.teacher, "weights_sha256": weights, "precision": precision},
            **about,
            "views": choose_views(folder, {"count": args.views, "seed": args.seed}, args.same_views_as, **about),
            "labels": {"top_k": args.top_k, "temperatures": args.temperatures if args.top_k else []},
            "block": BLOCK,
            "versions": versions(pixels["loader"]),
            "label_smoothing": trained.label_smoothing,
        }
        writer = Writer(folder, plan, extents(plan))
    told = from_main((writer.plan, writer.whole, writer.done) if writer else None)
    assert told is not None, "the first process has a writer"
    plan, whole, done = told
    look, reading = Look.of(args), Reading.of(args, machine.device, machine.memory_format)
    teacher = Teacher.on(machine, trained.network, compile=args.compile, renormalize=trained.renormalize)

    def show(parts: Parts, seed: Callable[[int, int], int]) -> Loader:
        return view_loader(samples, ViewBatchSampler(parts, args.batch_size, seed), look, reading)

    if not whole:
        with writer or Writer(folder, plan, extents(plan), number=rank.rank) as writer:
            store(writer, teacher, show, rank, batch_size=args.batch_size, done=done)
    if rank.is_main:
        stored = Store(folder)
        if damage := stored.damage(stored.blocks):
            raise UserError(damage)
        rank.say(f"{folder} is whole" + (", nothing to store" if whole else ""))
        print(error_table(stored.errors, stored.count * stored.images), flush=True)
        if args.check and not check(stored, teacher, show, args.check):
            sys.exit(1)


def choose_views(folder: Path, asked: dict, same_as: str | None, *, data: dict, pixels: dict) -> dict:
    """The views to store in ``folder``: their ``count``, and the ``seed`` of all.

    Args:
        asked: both; None where not given: those of what the folder holds already, or of a new store.
        same_as: another store, whose views are taken.

    Raises:
        UserError: that is a store of other data or pixels.
    """
    if same_as:
        other = Store(Path(same_as))
        check_belongs(other, data, pixels)
        if other.pixels != pixels:
            raise UserError(f"{other.folder} was stored with --loader {other.pixels['loader']}; give it")
        return other.manifest["views"]
    found = read_plan(folder, FORMAT).get("views") or {"count": 1, "seed": secrets.randbelow(2**31)}
    return {**found, **{name: value for name, value in asked.items() if value is not None}}


def store(writer: Writer, teacher: Teacher, show: Show, rank: Rank, *, batch_size: int, done: Collection[int]) -> None:
    """Write the blocks that are not ``done``, shared by all processes, and the manifest."""
    plan, data, seed, blocks = writer.plan, writer.plan["data"], writer.plan["views"]["seed"], all_blocks(writer.plan)
    size = tqdm.format_sizeof(sum(end.stop for end in extents(plan)[-1].values()), "B")
    views = f"{plan['views']['count']} views of each of {data['images']} images"
    rank.say(f"{plan['teacher']['arch']} about {views}: {size} in {writer.folder}")
    rank.say(f"seed {seed}" + f"; going on after {len(done)} of {len(blocks)} blocks" * bool(done))
    own = [block for block in blocks if block.number not in done][rank.rank :: rank.world_size]
    loader = show([(block.view, range(block.start, block.stop)) for block in own], partial(view_seed, seed))
    shown: Iterable[Batch] = loader.epoch(0)
    if rank.is_main:
        shown = progress(shown, "storing", total=len(loader), unit="view", scale=batch_size * rank.world_size)
    batches = iter(shown)
    for block in own:
        of_block = islice(batches, -(-(block.stop - block.start) // batch_size))
        records, errors = make_block(block, of_block, teacher, plan)
        contents = {name: part.tobytes() for name, part in records.items()}
        writer.write(block.number, contents, errors=errors.tolist())
    list(batches)  # lets the progress end
    barrier()
    if rank.is_main:
        sums = np.sum([entry["errors"] for entry in writer.entries()], axis=0)
        means = sums / (plan["views"]["count"] * data["images"])
        rows = error_rows(data["classes"], plan["labels"]["top_k"])
        writer.finish(errors=dict(zip(rows, means.tolist(), strict=True)))
    barrier()


def make_block(
    block: Block, shown: Iterable[Batch], teacher: Teacher, plan: dict
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Records of both files for ``block`` and the sums of errors over it.

    Args:
        shown: its images and their geometry.

    Raises:
        UserError: the teacher's logits are not finite.
    """
    labels = plan["labels"]
    records = {name: np.empty(block.stop - block.start, kind) for name, kind in record_types(plan).items()}
    views, stored = records.values()
    views["seed"] = [view_seed(plan["views"]["seed"], block.view, index) for index in range(block.start, block.stop)]
    errors, place = np.zeros(()), 0
    for images, geometry, _ in shown:
        answer = teacher(images)
        # to float64, which Apple's GPUs do not have
        logits = (answer.cpu() if answer.device.type == "mps" else answer).double()
        if not logits.isfinite().all():
            raise UserError("the teacher's logits are not finite; its weights are damaged, or --amp does not suit it")
        errors = errors + error_sums(logits, labels["top_k"]).numpy()
        rows = slice(place, place := place + len(images))
        drawn = geometry.cpu().numpy()
        views["box"][rows], views["flip"][rows] = drawn[:, :4], drawn[:, 4]
        for name, part in encode(logits, labels["top_k"], labels["temperatures"]).items():
            stored[name][rows] = part.cpu().numpy()
    return records, errors


def check(stored: Store, teacher: Teacher, show: Show, count: int) -> bool:
    """Recompute ``count`` random views and print how far the stored ones are off; whether that is tolerable.

    What is compared: crop and flip, the logits kept, and the log-sum-exps.
    """
    total = stored.count * stored.images
    drawn = np.sort(np.random.default_rng().choice(total, min(count, total), replace=False))
    parts = [(view, (drawn[drawn // stored.images == view] % stored.images).tolist()) for view in range(stored.count)]
    loader = show(parts, lambda view, index: int(stored.views["seed"][view, index]))
    answers = [(teacher(images).float().cpu().double(), geometry.cpu()) for images, geometry, _ in loader.epoch(0)]
    logits, geometry = (torch.cat(part) for part in zip(*answers, strict=True))
    boxes, records = (part.reshape(-1)[drawn] for part in (stored.views, stored.labels))
    moved = int((np.c_[boxes["box"], boxes["flip"]] != geometry.numpy()).any(axis=1).sum())
    logits -= logits.amax(dim=1, keepdim=True)
    limit = _TOLERANCE[stored.precision] * max(1.0, logits.abs().max().item())
    differences = []
    if stored.top_k:
        rest = encode(logits, stored.top_k, stored.temperatures)["rest"].numpy()
        differences.append(np.abs(rest - records["rest"]))
        logits = logits.gather(1, torch.from_numpy(records["indices"].astype(np.int64)))
    differences.append(np.abs(logits.numpy() - records["logits"]))
    off = np.concatenate([part.ravel() for part in differences])
    good = bool(off.max() <= limit) and not moved
    print(
        f"check of {len(drawn)} views: stored values are off by at most {off.max():.2g}, {off.mean():.2g} in the mean "
        f"(limit {limit:.2g}); {moved} with another crop or flip: {'good' if good else 'TOO FAR OFF'}",
        flush=True,
    )
    return good


if __name__ == "__main__":
    run_command(
        "store_soft_labels.py", lambda: main(parse_store_args()), go_on="run the same command again, it goes on"
    )

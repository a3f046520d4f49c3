"""Train, distil and evaluate image classifiers: torchvision's classification recipe plus a teacher.

    # a teacher with label smoothing
    torchrun --nproc_per_node 8 vision_reference/train.py --data-path DATA --model resnet50 --label-smoothing 0.1
    # a student distilled from it at temperature 1
    torchrun --nproc_per_node 8 vision_reference/train.py --data-path DATA --model resnet18 \
        --teacher resnet50 --teacher-weights teacher/checkpoint.pth --kd-temperature 1
    # the same from a teacher's stored answers, at the price of plain training (see store_soft_labels.py)
    torchrun --nproc_per_node 8 vision_reference/train.py --data-path DATA --model resnet18 --soft-labels teacher/stored
    # exact accuracy of a checkpoint, of ours or of others
    python vision_reference/train.py --data-path DATA --model resnet18 --test-only --resume student/best.pth
"""

import argparse
import math
import os
import random
import secrets
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from vision_reference.arguments import changed_flags, parse_args
from vision_reference.data import Loader, build_loaders
from vision_reference.distillation import Teacher, distillation_loss, label_loss
from vision_reference.errors import UserError, run_command
from vision_reference.files import atomic_copy, atomic_file
from vision_reference.images.samplers import combine_seeds
from vision_reference.learner import Learner, build_learner
from vision_reference.loaders import TeacherLoader
from vision_reference.machine import (
    Machine,
    Rank,
    choose_machine,
    from_main,
    gather_objects,
    share_buffers,
    sum_over_ranks,
)
from vision_reference.metrics import MetricsFile, Outcomes, ProgressLine, TrainingAverages, correct_in_top
from vision_reference.networks import checkpoints
from vision_reference.networks.by_name import build_filled, read_state
from vision_reference.networks.description import describe_run
from vision_reference.networks.heads import check_input_sizes


def train_one_epoch(
    learner: Learner, loader: Loader, machine: Machine, args: argparse.Namespace, epoch: int
) -> dict[str, float]:
    """One pass over the training data; where ``loader`` brings a teacher's answers, the student learns from these.

    Returns:
        Averages over the epoch and all processes: loss, kd, ce, acc1 (percent); and images_per_second.
    """
    student, optimizer, scaler, ema = learner.student, learner.optimizer, learner.scaler, learner.ema
    student.train()
    loader.set_epoch(epoch)
    averages = TrainingAverages(machine.device)
    progress = ProgressLine(epoch, args.epochs, len(loader), args.print_freq)
    shown, images_seen, taught = averages.sums.clone(), 0, bool(args.teacher or args.soft_labels)
    for step, (images, targets, *answers) in enumerate(loader):
        learner.schedule.step_to(epoch, step, len(loader))
        with machine.autocast():
            logits = student(images)
            losses = distillation_loss(
                logits,
                targets,
                answers[0] if answers else None,
                temperature=args.kd_temperature,
                kd_weight=args.kd_weight,
                label_smoothing=args.label_smoothing,
                max_suppression=args.max_suppression,
            )
        # DDP averages over processes; where their shares of the step differ in size, each counts by its images.
        share = len(images) * machine.rank.world_size / loader.step_sizes[step]
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(losses.total * share).backward()
        if args.clip_grad_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(student.parameters(), args.clip_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        if ema is not None and step % args.model_ema_steps == 0:
            ema.update_parameters(learner.model)
            if epoch < args.lr_warmup_epochs:
                ema.n_averaged.zero_()  # the average begins, as a copy, when the warm-up is over

        averages.add(losses, logits, targets)
        images_seen += loader.step_sizes[step]
        if machine.rank.is_main and progress.due(step):
            lr = optimizer.param_groups[0]["lr"]
            print(progress.text(step, lr, averages.means(since=shown), images_seen, taught), flush=True)
            shown = averages.sums.clone()
    seconds = time.perf_counter() - progress.start
    return {**averages.global_means(), "images_per_second": images_seen / seconds}


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Loader,
    machine: Machine,
    label_smoothing: float,
    max_suppression: float = 0.0,
    outcomes: Outcomes | None = None,
) -> dict[str, float]:
    """Exact loss, top-1 and top-5 (acc1, acc5; percent): every sample counts once, on any number of processes.

    ``outcomes`` notes which of this process's images are right.
    """
    model.eval()
    share_buffers(model)
    sums = torch.zeros(4, dtype=torch.float64, device=machine.device)
    for images, labels in loader:
        with machine.autocast():
            logits = model(images)
        if outcomes is not None:
            outcomes.add(logits, labels)
        loss = label_loss(logits, labels, label_smoothing, max_suppression) * len(labels)
        counts = [
            loss,
            correct_in_top(logits, labels, 1),
            correct_in_top(logits, labels, 5),
            loss.new_tensor(len(labels)),
        ]
        sums += torch.stack([count.double() for count in counts])
    loss, top1, top5, images = sum_over_ranks(sums).tolist()
    return {"loss": loss / images, "acc1": 100 * top1 / images, "acc5": 100 * top5 / images}


def seed_generators(seed: int) -> None:
    """Start the global generators of torch, Python and numpy from ``seed``."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def fix_randomness(args: argparse.Namespace, checkpoint: dict | None, rank: Rank) -> None:
    """Settle the seed (a resumed run keeps its own) and start all generators from it."""
    if args.seed is None:
        recorded = checkpoint["args"].get("seed") if checkpoint else None
        args.seed = from_main(secrets.randbelow(2**31) if recorded is None else recorded)
        if not args.test_only:
            rank.say(f"seed {args.seed}")
    seed_generators(args.seed)
    torch.backends.cudnn.benchmark = not args.use_deterministic_algorithms
    if args.use_deterministic_algorithms:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def save(output: Path, learner: Learner, args: argparse.Namespace, epoch: int, results: dict) -> None:
    """Write ``checkpoint.pth``; the same file becomes ``best.pth`` and ``model_<epoch>.pth`` where it is that.

    Args:
        results: the entries ``best``, ``rng`` and ``description`` of a checkpoint.
    """
    last = output / "checkpoint.pth"
    state = {**learner.state_dict(), "epoch": epoch, "arch": args.model, "args": vars(args), **results}
    checkpoints.save_atomically(state, last)
    if results["best"]["epoch"] == epoch:
        atomic_copy(last, output / "best.pth")
    if args.keep_checkpoints:
        atomic_copy(last, output / f"model_{epoch}.pth")
    checkpoints.prune_epoch_checkpoints(output, args.keep_checkpoints)


def main(args: argparse.Namespace) -> None:
    """Train, or with ``--test-only`` evaluate."""
    machine = choose_machine(args)
    rank, output = machine.rank, Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    resume = checkpoints.resolve_resume(args.resume, output)
    checkpoint = checkpoints.read_checkpoint(resume) if resume and not args.test_only else None
    fix_randomness(args, checkpoint, rank)

    train_loader, val_loader, classes = build_loaders(args, rank, machine.device, machine.memory_format)
    sizes = {args.val_crop_size} if args.test_only else {args.train_crop_size, args.val_crop_size}
    start = str(resume or args.init_weights or args.weights or "")
    if checkpoint:
        state = checkpoints.weights_in(checkpoint, args.model, source=start)
    else:
        state = read_state(start, args.model)[0] if start else None
    model = build_filled(args.model, len(classes), state, start, new_head=not (resume or args.test_only))
    check_input_sizes("student" if args.teacher or args.soft_labels else "model", args.model, model, sizes)
    model.to(machine.device, memory_format=machine.memory_format)
    if args.test_only:
        result = evaluate(model, val_loader, machine, args.label_smoothing, args.max_suppression)
        rank.say(f"Test: loss {result['loss']:.4f}  Acc@1 {result['acc1']:.3f}  Acc@5 {result['acc5']:.3f}")
        return

    if args.teacher:
        state, _ = read_state(args.teacher_weights, args.teacher)
        network = build_filled(args.teacher, len(classes), state, args.teacher_weights, new_head=False)
        check_input_sizes("teacher", args.teacher, network, sizes)
        teacher = Teacher(network, machine.device, machine.memory_format, machine.autocast, compile=args.compile)
        train_loader = TeacherLoader(train_loader, teacher)
    learner = build_learner(model, args, rank, machine.device, machine.amp_dtype)
    # Processes draw differently (dropout, stochastic depth); a resumed one goes on where it stopped.
    seed_generators(combine_seeds(args.seed, rank.rank))
    start_epoch, best = args.start_epoch, {"acc1": -1.0, "acc5": -1.0, "epoch": -1}
    if checkpoint:
        learner.load_state_dict(checkpoint, str(resume))
        start_epoch, best = checkpoint["epoch"] + 1, checkpoint.get("best", best)
        if changes := changed_flags(checkpoint["args"], vars(args)):
            rank.say(f"note: going on with other flags than before: {changes}")
        rngs = checkpoint.get("rng", [])
        if len(rngs) == rank.world_size:
            checkpoints.restore_rng(rngs[rank.rank])
        else:
            rank.say(f"note: {resume} has random states of {len(rngs)} processes, not {rank.world_size}; drawing anew")
    if start_epoch >= args.epochs:
        rank.say(f"nothing to do: {resume} has all {args.epochs} epochs")
        return

    metrics = MetricsFile(output / "metrics.jsonl", start_epoch) if rank.is_main else None
    for epoch in range(start_epoch, args.epochs):
        began = time.perf_counter()
        trained = train_one_epoch(learner, train_loader, machine, args, epoch)
        if not math.isfinite(trained["loss"]):
            raise UserError(f"the loss is {trained['loss']} in epoch {epoch}; lower --lr or set --clip-grad-norm")
        outcomes = Outcomes()
        val = evaluate(learner.network, val_loader, machine, args.label_smoothing, args.max_suppression, outcomes)
        record = {
            "epoch": epoch,
            "lr": learner.optimizer.param_groups[0]["lr"],
            "train_loss": trained["loss"],
            "kd_loss": trained["kd"],
            "ce_loss": trained["ce"],
            "train_acc1": trained["acc1"],
            "val_loss": val["loss"],
            "val_acc1": val["acc1"],
            "val_acc5": val["acc5"],
            "images_per_second": trained["images_per_second"],
        }
        if learner.ema is not None:
            val = evaluate(learner.ema, val_loader, machine, args.label_smoothing, args.max_suppression)
            record |= {"ema_val_loss": val["loss"], "ema_val_acc1": val["acc1"], "ema_val_acc5": val["acc5"]}
        if val["acc1"] > best["acc1"]:
            best = {"acc1": val["acc1"], "acc5": val["acc5"], "epoch": epoch}
        rngs = gather_objects(checkpoints.capture_rng())
        right = outcomes.gather()
        if rank.is_main:
            record["seconds"] = time.perf_counter() - began
            # The record comes first: should the checkpoint not follow, a resumed run repeats the epoch and its record.
            metrics.append(record)
            with atomic_file(output / "outcomes.npy") as file:  # which validation images this epoch's model gets right
                np.save(file, right)
            accuracy = {"acc1": record["val_acc1"], "acc5": record["val_acc5"]}
            if learner.ema is not None:
                accuracy |= {"ema_acc1": record["ema_val_acc1"], "ema_acc5": record["ema_val_acc5"]}
            description = describe_run(vars(args), classes, accuracy)
            save(output, learner, args, epoch, {"best": best, "rng": rngs, "description": description})
        rank.say(
            f"Epoch {epoch + 1}/{args.epochs} done in {time.perf_counter() - began:.1f} s: "
            f"Acc@1 {val['acc1']:.3f}  Acc@5 {val['acc5']:.3f}  (best {best['acc1']:.3f} in epoch {best['epoch'] + 1})"
        )


if __name__ == "__main__":
    run_command("train.py", lambda: main(parse_args()))

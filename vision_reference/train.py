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
import csv
import io
import math
import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from vision_reference.arguments import changed_flags, follow_description, follow_start, named_teachers, parse_args
from vision_reference.errors import Terminated, UserError, answer_at_once, run_command, some

if __name__ == "__main__":  # before torch is imported, which takes seconds
    answer_at_once("train.py", parse_args)

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vision_reference.data import (
    Data,
    Look,
    Reading,
    Source,
    TrainLoader,
    build_loaders,
    build_val_loader,
    list_samples,
)
from vision_reference.distillation import Teacher, Teachers, distillation_loss
from vision_reference.files import atomic_copy, atomic_file
from vision_reference.images.batch import Batch, Loader
from vision_reference.images.decoding import offering_to_skip
from vision_reference.images.fingerprint import describe_data, pixel_flags
from vision_reference.images.presets import chosen
from vision_reference.images.seeds import combine_seeds
from vision_reference.learner import Learner, build_learner
from vision_reference.loaders import SoftLabelLoader, TaughtBatch, TeacherLoader, TimedLoader
from vision_reference.losses.by_name import check_labels, check_top_k, parse_kd_loss
from vision_reference.losses.labels import label_loss
from vision_reference.losses.wide import widest_type
from vision_reference.machine import (
    Machine,
    Rank,
    barrier,
    from_main,
    gather_objects,
    memory_in_use,
    move_network,
    share_buffers,
    sum_over_ranks,
)
from vision_reference.metrics import Outcomes, ProgressLine, RunClock, SlowProgress, TrainingAverages, correct_in_top
from vision_reference.networks import by_name, checkpoints, heads, pretrained
from vision_reference.networks.description import Description, describe_run, from_checkpoint, recorded_teachers
from vision_reference.networks.full_batches import FullBatches
from vision_reference.networks.teachers import hash_weights, read_teacher, rule_of_thumb
from vision_reference.runs.folder import begin_epochs, goes_back, open_run_folder
from vision_reference.runs.metrics_file import MetricsFile
from vision_reference.runs.pauses import SAVE, Begun, Pauses, pauses
from vision_reference.runs.tracking import Tracking
from vision_reference.soft_labels.stored_teachers import open_soft_labels

GO_ON = "the same command with --resume auto goes on after the last finished epoch"
GO_ON_WITHIN = "the same command with --resume auto goes on after {} of the {} images of epoch {}"


def train_one_epoch(
    learner: Learner,
    loader: TrainLoader,
    machine: Machine,
    args: argparse.Namespace,
    epoch: int,
    begun: Begun | None = None,
    keep: Callable[[Begun], None] = lambda begun: None,
    clock: RunClock | None = None,
) -> dict[str, float]:
    """One pass over the training data; where ``loader`` brings a teacher's answers, the student learns from these.

    Args:
        begun: what was done of the epoch before, of which the rest is to follow.
        keep: called after every update of the weights with what is done of the epoch.
        clock: of the run.

    Returns:
        Averages over the epoch and all processes: loss, kd, ce, acc1 (percent); images_per_second; and the seconds that
        it took.

    Raises:
        UserError: the loss or the weights are no finite numbers any more.
    """
    student, optimizer, scaler, ema = learner.student, learner.optimizer, learner.scaler, learner.ema
    student.train()
    averages = TrainingAverages(machine.device)
    passed = begun.seconds if begun else 0.0
    progress = ProgressLine(epoch, len(loader), args.print_freq, clock or RunClock(args.epochs), passed)
    misled = torch.zeros((), device=machine.device)  # steps in which the teacher's logits were not finite
    kd_loss, unlabelled = parse_kd_loss(args.kd_loss), args.unlabelled is not None
    update_sizes = images_per_update(loader.step_sizes, args.accumulate)
    first = images_seen = 0
    if begun:
        first, images_seen = begun.batches(loader.step_sizes, args.accumulate, args.resume), begun.images
        averages.sums += begun.sums.to(averages.sums.dtype).to(machine.device)
        misled += begun.misled
        learner.schedule.step_to(epoch, max(0, -(-first // args.accumulate) - 1), len(update_sizes))
    shown, taught = averages.sums.clone(), bool(args.teacher or args.soft_labels)
    batches: Iterator[Batch | TaughtBatch] = loader.epoch(epoch, first)
    for step, batch in enumerate(batches, first):
        images, targets = batch.images, batch.targets
        answers = batch.logits if isinstance(batch, TaughtBatch) else None
        update, place = divmod(step, args.accumulate)
        is_last = place == args.accumulate - 1 or step == len(loader) - 1
        if place == 0:
            learner.schedule.step_to(epoch, update, len(update_sizes))
            optimizer.zero_grad(set_to_none=True)
        # Gradients travel between the processes with the last batch of an update only.
        waits = not is_last and isinstance(student, DistributedDataParallel)
        with student.no_sync() if waits else nullcontext():
            with machine.autocast():
                logits = student(images)
                losses = distillation_loss(
                    logits,
                    targets,
                    answers,
                    temperature=args.kd_temperature,
                    kd_weight=args.kd_weight,
                    label_smoothing=args.label_smoothing,
                    max_suppression=args.max_suppression,
                    kd_loss=kd_loss,
                    unlabelled=unlabelled,
                )
            # DDP averages over processes; where their shares of the update differ in size, each counts by its images.
            share = len(images) * machine.rank.world_size / update_sizes[update]
            scaler.scale(losses.total * share).backward()
        if is_last:
            if args.clip_grad_norm is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(student.parameters(), args.clip_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            if ema is not None and update % args.model_ema_steps == 0:
                ema.update_parameters(learner.model)
                if epoch < args.lr_warmup_epochs:
                    ema.n_averaged.zero_()  # the average begins, as a copy, when the warm-up is over

        averages.add(losses, logits, targets)
        if answers is not None:
            misled += ~answers.isfinite().all()
        images_seen += loader.step_sizes[step]
        if machine.rank.is_main and progress.due(step):
            lr = optimizer.param_groups[0]["lr"]
            means, used = averages.means(since=shown), memory_in_use(machine.device)
            memory = "memory " + ", ".join(f"{place} {size:.1f}" for place, size in used.items()) + " GB"
            waited = getattr(loader, "waited", 0.0)
            print(progress.text(step, lr, means, images_seen, taught, waited, memory), flush=True)
            shown = averages.sums.clone()
        if is_last:
            keep(Begun(images_seen, averages.sums, misled, time.perf_counter() - progress.start))
    check_finite(learner, averages.global_means()["loss"], misled, epoch)
    seconds = time.perf_counter() - progress.start
    return {
        **averages.global_means(),
        "images_per_second": images_seen / seconds,
        "seconds": seconds,
    }


def images_per_update(step_sizes: Sequence[int], accumulate: int) -> list[int]:
    """Images of each update of the weights, from those of each batch; the last update takes what is left."""
    return [sum(step_sizes[start : start + accumulate]) for start in range(0, len(step_sizes), accumulate)]


def check_finite(learner: Learner, loss: float, misled: torch.Tensor, epoch: int) -> None:
    """The loss of an epoch and the weights after its last update are numbers; the error says whose fault it is.

    Raises:
        UserError: they are not.
    """
    # All processes have the same weights, but not the same teacher's answers.
    if steps := int(sum_over_ranks(misled)):
        raise UserError(
            f"the teacher's logits were not finite in {steps} steps of epoch {epoch}; its weights are damaged, or "
            "--amp does not suit it"
        )
    if not math.isfinite(loss):
        raise UserError(f"the loss is {loss} in epoch {epoch}; lower --lr or set --clip-grad-norm")
    for model in (learner.model, learner.ema):
        if model is not None and not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
            raise UserError(f"the last update of epoch {epoch} diverged; lower --lr or set --clip-grad-norm")


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Loader,
    machine: Machine,
    label_smoothing: float,
    max_suppression: float = 0.0,
    outcomes: Outcomes | None = None,
    stop: Callable[[], int] = lambda: 0,
) -> dict[str, float]:
    """Exact loss, top-1 and top-5 (acc1, acc5; percent): every sample counts once, on any number of processes.

    If it takes long, it says how far it is.

    Args:
        outcomes: notes which of this process's images are right.
        stop: asked before each batch; a number other than 0 ends the evaluation.

    Raises:
        Terminated: on all processes, where one was to end.
    """
    model.eval()
    share_buffers(model)
    forward = FullBatches(model) if hasattr(model, "_orig_mod") else model  # a compiled one
    progress = SlowProgress("Evaluation", len(loader))
    sums, stopped = torch.zeros(5, dtype=widest_type(machine.device), device=machine.device), 0
    for images, labels, _ in loader.epoch(0):
        if stopped := stop():
            sums[4] = 1
            break
        with machine.autocast():
            logits = forward(images)
        if outcomes is not None:
            outcomes.add(logits, labels)
        loss = label_loss(logits, labels, label_smoothing, max_suppression) * len(labels)
        counts = [
            loss,
            correct_in_top(logits, labels, 1),
            correct_in_top(logits, labels, 5),
            loss.new_tensor(len(labels)),
        ]
        sums[:4] += torch.stack([count.to(sums.dtype) for count in counts])
        if line := progress.step():
            machine.rank.say(line)
    loss, top1, top5, images, stops = sum_over_ranks(sums).tolist()
    if stops:
        raise Terminated(stopped or signal.SIGTERM)
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
    """Write ``checkpoint.pth``, and what else is made of it (see ``spread``).

    Args:
        results: the entries ``best``, ``rng`` and ``description`` of a checkpoint.
    """
    state = {**learner.state_dict(), "epoch": epoch, "arch": args.model, "args": vars(args), **results}
    checkpoints.save_atomically(state, output / "checkpoint.pth")
    spread(output, epoch, args.keep_checkpoints, is_best=results["best"]["epoch"] == epoch)


def spread(output: Path, epoch: int, keep: int, *, is_best: bool) -> None:
    """Copy ``checkpoint.pth`` to ``best.pth`` and ``model_<epoch>.pth`` where it is that, and remove what it replaces.

    A run that was killed in the middle of this does it again when it goes on.

    Args:
        keep: how many ``model_<epoch>.pth`` are kept.
    """
    last = output / "checkpoint.pth"
    if is_best:
        atomic_copy(last, output / "best.pth")
    if keep:
        atomic_copy(last, output / f"model_{epoch}.pth")
    checkpoints.prune_epoch_checkpoints(output, keep)
    (output / checkpoints.WITHIN_EPOCH).unlink(missing_ok=True)


def save_within(
    output: Path, learner: Learner, machine: Machine, args: argparse.Namespace, epoch: int, begun: Begun, results: dict
) -> None:
    """Write what there is of ``epoch`` to ``within_epoch.pth``; all processes have to call it.

    Args:
        results: the entries ``best`` and ``description`` of a checkpoint.

    Raises:
        UserError: the run has diverged.
    """
    check_finite(learner, 0.0, begun.misled, epoch)
    within, rngs = begun.gathered(), gather_objects(checkpoints.capture_rng())
    if machine.rank.is_main:
        state = {**learner.state_dict(), "epoch": epoch - 1, "arch": args.model, "args": vars(args), "rng": rngs}
        checkpoints.save_atomically({**state, "within": within, **results}, output / checkpoints.WITHIN_EPOCH)
    barrier()  # torchrun ends all when one has ended


def open_data(
    args: argparse.Namespace, rank: Rank, device: torch.device, memory_format: torch.memory_format
) -> tuple[TrainLoader, Loader, Data]:
    """The training loader, the evaluation loader, and what they show.

    Raises:
        UserError: data that is missing or makes no sense, flags that the chosen loader cannot serve, or stored soft
            labels that do not belong to the data and the flags.
    """
    data = list_samples(Source.of(args), rank)
    soft_labels = None
    if args.soft_labels:
        soft_labels = open_soft_labels(
            [Path(name) for name in args.soft_labels.split(",") if name],
            data=describe_data(data.train, data.classes),
            pixels=pixel_flags(vars(args)),
            temperature=args.kd_temperature,
            tail=args.kd_tail,
            rank=rank,
        )
        for store in soft_labels.stores:
            for note in rule_of_thumb(f"of {store.folder}", store.label_smoothing, args.kd_temperature):
                rank.say(note)
    train_loader, val_loader = build_loaders(
        data,
        Look.of(args),
        Reading.of(args, device, memory_format),
        rank,
        batch_size=args.batch_size,
        seed=args.seed,
        repetitions=args.ra_reps if args.ra_sampler else 1,
        soft_labels=soft_labels,
        mixup_alpha=args.mixup_alpha,
        cutmix_alpha=args.cutmix_alpha,
    )
    return train_loader, val_loader, data


def settle_start(
    args: argparse.Namespace, checkpoint: dict | None, rank: Rank
) -> tuple[dict[str, torch.Tensor], Description] | None:
    """The weights that a new run starts from (None: drawn), and ``args`` brought in line with how these see images.

    A run that goes on does as it did.

    Raises:
        UserError: there are no such weights.
    """
    source = args.init_weights or args.weights
    if not source:
        return None
    follows = source.startswith((pretrained.TIMM, pretrained.HUB))
    if checkpoint:
        if follows:
            follow_start(args, from_checkpoint(checkpoint, source))
        return None
    state, description = by_name.read_state(source, args.model)
    if follows and (note := follow_start(args, description)):
        rank.say(note)
    return state, description


def start_network(
    name: str, start: tuple[dict[str, torch.Tensor], Description] | None, classes: list[str], rank: Rank
) -> nn.Module:
    """The network that a new run starts from: drawn, or with the weights ``start``.

    Raises:
        UserError: the weights do not fit.
    """
    if start is None:
        return by_name.build_model(name, len(classes))
    state, description = start
    source = description.source
    saved = by_name.saved_classes(name, state, source)
    model = by_name.build_filled(name, saved, state, source)
    same = not by_name.comparable_classes(description, classes) or set(description.classes or ()) == set(classes)
    if saved == len(classes) and same:
        for note in by_name.match_classes(model, description, classes):
            rank.say(note)
        return model
    named = f" ({some(description.classes)})" if description.classes else ""
    rank.say(f"note: the head of {source}, of {saved} classes{named}, is dropped: the data has {len(classes)} others")
    return heads.replace_head(model, len(classes))


def resumed_network(name: str, checkpoint: dict, source: str, classes: list[str]) -> nn.Module:
    """The network of a checkpoint that training goes on from.

    Raises:
        UserError: it is another network or was trained on other classes, or on these in another order.
    """
    description = from_checkpoint(checkpoint, source)
    if description.classes and heads.class_order(description.classes, classes, source) is not None:
        raise UserError(
            f"'{source}' has the data's classes in another order, and its optimizer cannot be rearranged; start a new "
            "run from it with --init-weights"
        )
    state = checkpoints.weights_in(checkpoint, name, source=source)
    return by_name.build_filled(name, len(classes), state, source)


def add_teachers(
    loader: TrainLoader, args: argparse.Namespace, classes: list[str], machine: Machine
) -> tuple[TeacherLoader, list[dict[str, str]]]:
    """Batches with the answers of ``--teacher``, and who that is, for checkpoints.

    Raises:
        UserError: one cannot be read or cannot teach these classes.
    """
    preset, teachers, known = chosen(args.preset, args.mean, args.std), [], []
    for name, weights in named_teachers(args.teacher, args.teacher_weights):
        trained = read_teacher(name, weights, classes, preset, temperatures=[args.kd_temperature])
        heads.check_input_sizes("teacher", name, trained.network, {args.train_crop_size, args.val_crop_size})
        for note in trained.notes:
            machine.rank.say(note)
        known.append({"arch": name, "source": weights, "weights_sha256": hash_weights(trained.network)})
        teachers.append(Teacher.on(machine, trained.network, compile=args.compile, renormalize=trained.renormalize))
    assert not isinstance(loader, SoftLabelLoader | TeacherLoader), "parse_args lets nobody give two kinds of teacher"
    ensemble = teachers[0] if len(teachers) == 1 else Teachers(teachers, args.kd_temperature)
    return TeacherLoader(loader, ensemble, look_ahead=args.look_ahead), known


def resume(
    learner: Learner, checkpoint: dict, source: str, args: argparse.Namespace, teachers: list[dict], rank: Rank
) -> None:
    """Bring optimizer, schedule, average and random generators to where ``checkpoint`` left them.

    Raises:
        UserError: a part is damaged or does not fit the flags.
    """
    learner.load_state_dict(checkpoint, source)
    before = recorded_teachers(checkpoint)
    if before and teachers and before != [teacher["weights_sha256"] for teacher in teachers]:
        rank.say("note: going on with another teacher than before: its weights are others")
    if changes := changed_flags(checkpoint["args"], vars(args)):
        rank.say(f"note: going on with other flags than before: {changes}")
    rngs = checkpoint.get("rng", [])
    if len(rngs) == rank.world_size:
        checkpoints.restore_rng(rngs[rank.rank])
    else:
        rank.say(f"note: {source} has random states of {len(rngs)} processes, not {rank.world_size}; drawing anew")


def run_epoch(
    learner: Learner,
    train_loader: TrainLoader,
    val_loader: Loader,
    machine: Machine,
    args: argparse.Namespace,
    epoch: int,
    begun: Begun | None,
    wanted: Pauses,
    save_begun: Callable[[Begun], None],
    clock: RunClock,
) -> tuple[dict, Outcomes, Outcomes]:
    """Train for an epoch, or for the rest of it, and evaluate.

    Args:
        begun: what was done of the epoch before.
        wanted: says when to save within the epoch, and when to stop.
        save_begun: saves what is done of the epoch.
        clock: of the run.

    Returns:
        The epoch's record, which validation images the model then gets right, and which the moving average, if there is
        one, else the model.

    Raises:
        UserError: the run diverged.
        Terminated: it was to stop; what is done of the epoch is saved.
    """
    began = time.perf_counter() - (begun.seconds if begun else 0.0)
    whole = sum(train_loader.step_sizes)

    def keep(done: Begun) -> None:
        nonlocal begun
        begun = done
        what = wanted.wanted()
        if what > SAVE or (what == SAVE and done.images < whole):  # else the epoch's own checkpoint is near
            save_begun(done)
            wanted.saved()
        if what > SAVE:
            raise Terminated(what, GO_ON_WITHIN.format(done.images, whole, epoch + 1))

    def evaluated(model: nn.Module, outcomes: Outcomes | None = None) -> dict[str, float]:
        try:
            return evaluate(
                model, val_loader, machine, args.label_smoothing, args.max_suppression, outcomes, lambda: wanted.signal
            )
        except Terminated as stop:
            assert begun is not None, "the epoch was trained"
            save_begun(begun)
            raise Terminated(stop.number, GO_ON_WITHIN.format(whole, whole, epoch + 1)) from None

    try:
        trained = train_one_epoch(learner, train_loader, machine, args, epoch, begun, keep, clock)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError("batch normalization cannot learn from a batch of one image; raise --batch-size") from None
    outcomes = of_best = Outcomes()
    val = evaluated(learner.network, outcomes)
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
        of_best = Outcomes()
        val = evaluated(learner.ema, of_best)
        record |= {"ema_val_loss": val["loss"], "ema_val_acc1": val["acc1"], "ema_val_acc5": val["acc5"]}
    if not all(math.isfinite(record[name]) for name in record if name.endswith("val_loss")):
        raise UserError(
            f"after epoch {epoch} the validation loss is no finite number: the last updates diverged; lower --lr or "
            "set --clip-grad-norm"
        )
    record["seconds"] = time.perf_counter() - began
    clock.note(record["seconds"], trained["seconds"])
    return record, outcomes, of_best


def write_per_class(file: Path, outcomes: Outcomes, classes: list[str], rank: Rank) -> None:
    """``--per-class``: a table of all classes with their validation images and the share of them that is right."""
    counts = outcomes.by_class(len(classes))
    if rank.is_main:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as target:
            lines = csv.writer(text := io.StringIO(), lineterminator="\n")
            lines.writerow(["class", "images", "right", "accuracy"])
            for name, (images, right) in zip(classes, counts.tolist(), strict=True):
                lines.writerow([name, images, right, f"{100 * right / images:.3f}" if images else ""])
            target.write(text.getvalue().encode())


def evaluate_checkpoint(args: argparse.Namespace, machine: Machine) -> None:
    """``--test-only``: exact accuracy of a checkpoint of any origin, its images prepared as it says.

    Raises:
        UserError: there are no weights, or they were trained on other classes than the data has.
    """
    rank = machine.rank
    source = str(
        checkpoints.resolve_resume(args.resume, args.output_dir, training=False)
        or args.init_weights
        or args.weights
        or ""
    )
    if not source:
        raise UserError(f"--resume auto: there is no checkpoint.pth in '{args.output_dir}' to evaluate")
    state, description = by_name.read_state(source, args.model if "model" in args.given else None, ema=args.model_ema)
    args.model = args.model if "model" in args.given else by_name.recorded_name(description) or args.model
    for note in follow_description(args, description):
        rank.say(note)
    fix_randomness(args, None, rank)
    data = list_samples(Source.of(args), rank, training=False)
    reading = Reading.of(args, machine.device, machine.memory_format)
    loader = build_val_loader(data, Look.of(args), reading, rank, args.batch_size)
    model = by_name.build_filled(args.model, len(data.classes), state, source)
    for note in by_name.match_classes(model, description, data.classes):
        rank.say(note)
    heads.check_input_sizes("model", args.model, model, {args.val_crop_size})
    move_network(model, machine.device, machine.memory_format)
    outcomes = Outcomes()
    result = evaluate(model, loader, machine, args.label_smoothing, args.max_suppression, outcomes)
    if args.per_class:
        write_per_class(Path(args.per_class), outcomes, data.classes, rank)
    rank.say(f"Test: loss {result['loss']:.4f}  Acc@1 {result['acc1']:.3f}  Acc@5 {result['acc5']:.3f}")


def train(args: argparse.Namespace, machine: Machine, tracking: Tracking) -> None:
    """Train, or go on training, and keep what comes of it in ``--output-dir``; its record also goes to ``tracking``.

    Raises:
        UserError: a mistake in flags, data or files, or a run that diverged.
    """
    rank, output = machine.rank, Path(args.output_dir)
    source = checkpoints.resolve_resume(args.resume, output)
    checkpoint = checkpoints.read_checkpoint(source) if source else None
    if args.resume == "auto" and not source:
        rank.say(f"note: no checkpoint in '{output}' to go on from; starting anew")
    kd_loss = parse_kd_loss(args.kd_loss)
    mixed, unlabelled = bool(args.mixup_alpha or args.cutmix_alpha), args.unlabelled is not None
    check_labels(kd_loss, args.kd_loss, mixed=mixed, unlabelled=unlabelled)
    start = settle_start(args, checkpoint, rank)
    fix_randomness(args, checkpoint, rank)
    train_loader, val_loader, data = open_data(args, rank, machine.device, machine.memory_format)
    classes = data.classes
    for store in train_loader.soft_labels.stores if isinstance(train_loader, SoftLabelLoader) else []:
        check_top_k(kd_loss, args.kd_loss, str(store.folder), store.top_k)
    model = (
        resumed_network(args.model, checkpoint, str(source), classes)
        if checkpoint
        else start_network(args.model, start, classes, rank)
    )
    sizes = {args.train_crop_size, args.val_crop_size}
    heads.check_input_sizes("student" if args.teacher or args.soft_labels else "model", args.model, model, sizes)
    move_network(model, machine.device, machine.memory_format)
    teachers = train_loader.teachers if isinstance(train_loader, SoftLabelLoader) else []
    train_loader = TimedLoader(train_loader)
    if args.teacher:
        train_loader, teachers = add_teachers(train_loader, args, classes, machine)
    learner = build_learner(model, args, rank, machine.device, machine.amp_dtype)
    # Processes draw differently (dropout, stochastic depth); a resumed one goes on where it stopped.
    seed_generators(combine_seeds(args.seed, rank.rank))
    nothing = {"acc1": -1.0, "acc5": -1.0, "epoch": -1}
    start_epoch, best = args.start_epoch, nothing
    if checkpoint:
        resume(learner, checkpoint, str(source), args, teachers, rank)
        start_epoch, best = checkpoint["epoch"] + 1, checkpoint["best"]
        own_last = source is not None and source.resolve() == (output / "checkpoint.pth").resolve()
        if rank.is_main and own_last and not goes_back(output, start_epoch):
            spread(output, start_epoch - 1, args.keep_checkpoints, is_best=best["epoch"] == start_epoch - 1)
    if start_epoch >= args.epochs:
        why = f"{source} has all" if checkpoint else f"--start-epoch {start_epoch} leaves none of"
        rank.say(f"nothing to do: {why} {args.epochs} epochs")
        return

    if not (output / "best.pth").is_file():  # going on in another folder: it is to have one of its own
        best = nothing
    if goes_back(output, start_epoch):
        if not args.overwrite:
            raise UserError(
                f"'{output}' has later epochs than {source}, which going back would replace: give --overwrite, or "
                "another --output-dir"
            )
        best = nothing
    begun = None
    if checkpoint and "within" in checkpoint:
        begun = Begun.of(checkpoint["within"], rank, machine.device, str(source))
        done = begun.batches(train_loader.step_sizes, args.accumulate, str(source))
        rank.say(f"going on with epoch {start_epoch + 1} after {done} of its {len(train_loader)} batches")
    if rank.is_main:
        begin_epochs(output, vars(args), start_epoch, source)
        own = source is not None and source.resolve().parent == output.resolve()
        tracking.begin(output, vars(args), start_epoch, resumed=own)

    def describe(accuracy: dict[str, float]) -> dict:
        return describe_run(vars(args), classes, accuracy, teachers, data.counts)

    with pauses(rank, args.save_every_minutes) as wanted:
        loaders = train_loader, val_loader
        epochs = range(start_epoch, args.epochs)
        train_epochs(learner, loaders, machine, args, classes, describe, epochs, best, begun, wanted, tracking)


def train_epochs(
    learner: Learner,
    loaders: tuple[TrainLoader, Loader],
    machine: Machine,
    args: argparse.Namespace,
    classes: list[str],
    describe: Callable[[dict[str, float]], dict],
    epochs: range,
    best: dict,
    begun: Begun | None,
    wanted: Pauses,
    tracking: Tracking,
) -> None:
    """Train for ``epochs`` and keep what comes of each.

    Args:
        loaders: for training and for evaluation.
        classes: their names.
        describe: what a checkpoint says of weights of a given accuracy.
        best: ``acc1``, ``acc5`` and ``epoch`` of the best evaluation so far.
        begun: what was done of the first of them before.
        wanted: says when to save within an epoch, and when to stop.
        tracking: takes each epoch's record.

    Raises:
        UserError: the run diverged.
        Terminated: it was to stop; what is done of the epoch is saved.
    """
    rank, output = machine.rank, Path(args.output_dir)
    metrics = MetricsFile(output / "metrics.jsonl", epochs.start) if rank.is_main else None
    clock = RunClock(args.epochs)
    for epoch in epochs:

        def save_begun(done: Begun, epoch: int = epoch, best: dict = best) -> None:
            save_within(output, learner, machine, args, epoch, done, {"best": best, "description": describe({})})

        run = learner, *loaders, machine, args, epoch, begun, wanted, save_begun, clock
        record, outcomes, of_best = run_epoch(*run)
        right = outcomes.gather()
        if args.per_class:
            write_per_class(Path(args.per_class), of_best, classes, rank)
        begun = None
        kind = "ema_val" if learner.ema is not None else "val"
        acc1, acc5 = record[f"{kind}_acc1"], record[f"{kind}_acc5"]
        if acc1 > best["acc1"]:
            best = {"acc1": acc1, "acc5": acc5, "epoch": epoch}
        rngs = gather_objects(checkpoints.capture_rng())
        if metrics is not None:
            # The record comes first: should the checkpoint not follow, a resumed run repeats the epoch and its record.
            metrics.append(record)
            tracking.log(record)
            with atomic_file(output / "outcomes.npy") as file:
                np.save(file, right)
            accuracy = {name.replace("val_", ""): value for name, value in record.items() if "val_acc" in name}
            save(output, learner, args, epoch, {"best": best, "rng": rngs, "description": describe(accuracy)})
        wanted.saved()
        rank.say(
            f"Epoch {epoch + 1}/{args.epochs} done in {record['seconds']:.1f} s: "
            f"Acc@1 {acc1:.3f}  Acc@5 {acc5:.3f}  (best {best['acc1']:.3f} in epoch {best['epoch'] + 1})"
        )


@offering_to_skip()
def main(args: argparse.Namespace) -> None:
    """Train, or with ``--test-only`` evaluate."""
    machine = Machine.of(args)
    if args.test_only:
        return evaluate_checkpoint(args, machine)
    output = Path(args.output_dir)
    hold = open_run_folder(output, args.resume, overwrite=args.overwrite) if machine.rank.is_main else nullcontext()
    with hold, Tracking(args.track) as tracking:
        train(args, machine, tracking)


if __name__ == "__main__":
    run_command("train.py", lambda: main(parse_args()), go_on=GO_ON)

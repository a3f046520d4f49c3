"""Whether the trainings of a study would be refused by what is to run them, found out before the first one starts.

A student's mistake would else come out only when its teachers have been trained.
"""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path

from scripts.lib.jobs import value_of
from scripts.nmt.lib.fairseq_options import check_training_options
from scripts.nmt.lib.user_error import UserError as TranslationError
from scripts.studies.plan import Planned
from vision_reference.arguments import parse_args, parse_store_args
from vision_reference.errors import UserError
from vision_reference.losses import by_name as losses
from vision_reference.networks import by_name as networks
from vision_reference.networks.heads import check_input_sizes


def check_commands(plan: Iterable[Planned]) -> None:
    """Have each kind of command read by the parser of its program; no file of a study has to be there for it.

    What a student's flags ask of its loss, its network and the store of its teacher's outputs is looked at, too.

    Raises:
        UserError: the first command that would be refused, by its job's name.
    """
    seen: set[str] = set()
    known = _Known()
    for planned in plan:
        if planned.cell in seen:
            continue  # seeds differ in the seed
        seen.add(planned.cell)
        try:
            _check(planned.job.command, known)
        except (UserError, TranslationError) as error:
            raise UserError(f"{planned.job.name}: {error}") from None


class _Known:
    """What the commands before one tell about it: what stores will hold when there are any, networks looked at."""

    def __init__(self) -> None:
        self.logits: dict[str, int | None] = {}  # that a store of images keeps, by its folder; None: all
        self.words: dict[str, int] = {}  # the same of translations
        self.vocabulary = 0
        self.fits: set[tuple[str, int, int]] = set()


def _check(command: tuple[str, ...], known: _Known) -> None:
    if command[0] == "fairseq-train":
        check_training_options(command, known.words, known.vocabulary)
    elif command[1].endswith("nmt/prepare.py"):
        known.vocabulary = int(value_of("--vocab-size", command) or 0)
    elif command[1].endswith("nmt/store_teacher_outputs.py"):
        known.words[value_of("--output", command) or ""] = int(value_of("--top-k", command) or 0)
    elif command[1].endswith("vision_reference/store_soft_labels.py"):
        args = parse_store_args(list(command[2:]))
        known.logits[args.output_dir] = args.top_k
    elif command[1].endswith("vision_reference/train.py"):
        args = parse_args(list(command[2:]))
        _check_loss(args, known.logits)
        network = args.model, args.train_crop_size, args.val_crop_size
        if network not in known.fits and not networks.is_own(args.model):
            check_input_sizes("model", args.model, networks.build_model(args.model, num_classes=2), network[1:])
            known.fits.add(network)


def _check_loss(args: argparse.Namespace, stores: Mapping[str, int | None]) -> None:
    """Refuses a loss that needs more than its training will be given; one of the user's own is not imported for it."""
    if losses.is_own(args.kd_loss):
        return
    loss = losses.parse_kd_loss(args.kd_loss)
    mixed, unlabelled = bool(args.mixup_alpha or args.cutmix_alpha), args.unlabelled is not None
    losses.check_labels(loss, args.kd_loss, mixed=mixed, unlabelled=unlabelled)
    for folder in (args.soft_labels or "").split(","):
        losses.check_top_k(loss, args.kd_loss, Path(folder).parent.name, stores.get(folder))

"""Whether the trainings of a study would be refused by what is to run them, found out before the first one starts.

A student's mistake would else come out only when its teachers have been trained.
"""

import argparse
from collections.abc import Iterable, Mapping

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
    stores = _Stores()
    for planned in plan:
        if planned.cell in seen:
            continue  # seeds differ in the seed
        seen.add(planned.cell)
        try:
            _check(planned.job.command, stores)
        except (UserError, TranslationError) as error:
            raise UserError(f"{planned.job.name}: {error}") from None


class _Stores:
    """What is known of a plan's stores before there are any: how many logits each keeps, by its folder."""

    def __init__(self) -> None:
        self.images: dict[str, int | None] = {}  # None: all
        self.words: dict[str, int] = {}
        self.vocabulary = 0


def _check(command: tuple[str, ...], stores: _Stores) -> None:
    if command[0] == "fairseq-train":
        check_training_options(command, stores.words, stores.vocabulary)
    elif command[1].endswith("nmt/prepare.py"):
        stores.vocabulary = int(value_of("--vocab-size", command) or 0)
    elif command[1].endswith("nmt/store_teacher_outputs.py"):
        stores.words[value_of("--output", command) or ""] = int(value_of("--top-k", command) or 0)
    elif command[1].endswith("vision_reference/train.py"):
        args = parse_args(list(command[2:]))
        _check_loss(args, stores.images)
        if not networks.is_own(args.model):
            network = networks.build_model(args.model, num_classes=2)
            check_input_sizes("model", args.model, network, {args.train_crop_size, args.val_crop_size})
    elif command[1].endswith("vision_reference/store_soft_labels.py"):
        args = parse_store_args(list(command[2:]))
        stores.images[args.output_dir] = args.top_k


def _check_loss(args: argparse.Namespace, stores: Mapping[str, int | None]) -> None:
    """Refuses a loss that needs more than its training will be given; one of the user's own is not imported for it."""
    if losses.is_own(args.kd_loss):
        return
    loss = losses.parse_kd_loss(args.kd_loss)
    mixed, unlabelled = bool(args.mixup_alpha or args.cutmix_alpha), args.unlabelled is not None
    losses.check_labels(loss, args.kd_loss, mixed=mixed, unlabelled=unlabelled)
    for folder in (args.soft_labels or "").split(","):
        losses.check_top_k(loss, args.kd_loss, folder, stores.get(folder))

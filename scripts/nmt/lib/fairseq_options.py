"""Whether fairseq-train would take the options of a command, found out before anything is trained.

Imports `fairseq_plugins`.
"""

import argparse
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from scripts.nmt.lib.quiet_fairseq import import_fairseq, quiet
from scripts.nmt.lib.user_error import UserError

_TASKS = Path(__file__).resolve().parents[3] / "fairseq_plugins" / "tasks"


def check_training_options(command: Sequence[str], stores: Mapping[str, int], vocabulary: int) -> None:
    """Have fairseq's own parser, with the plugin's tasks and criteria, read a command.

    Args:
        command: fairseq-train, the folder of the data, and options; no file that they name is opened.
        stores: the number of logits that each store of a teacher's outputs will keep for a word, by its folder, which
            lies in that of its job.
        vocabulary: number of entries, about, of the vocabulary that is to be made; 0 where that is not known.

    Raises:
        UserError: fairseq-train would refuse it: an option or loss that does not exist, a value that it cannot have, or
            a loss that would not get the logits it needs.
    """
    import_fairseq()
    from fairseq import options
    from fairseq.tasks import import_tasks

    # Not by way of --user-dir: fairseq passes over a package that something else has imported.
    import_tasks(str(_TASKS), "fairseq_plugins.tasks")
    parser = options.get_training_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"fairseq-train would refuse it: {_shortened(message)}")

    parser.error = refuse  # type: ignore[method-assign]
    with quiet():
        args = options.parse_args_and_arch(parser, input_args=list(command[1:]))
    if getattr(args, "kd_loss", None):
        _check_loss(args, stores, vocabulary)


def _check_loss(args: argparse.Namespace, stores: Mapping[str, int], vocabulary: int) -> None:
    from fairseq_plugins.criterions.kd_loss_by_name import is_own, parse_kd_loss
    from fairseq_plugins.tasks._distillation import refuse_bucket, refuse_few_entries

    given = getattr(args, "teacher_outputs", None) or ""
    if given:
        refuse_bucket(args.kd_loss, args.kd_tail)
    if is_own(args.kd_loss):
        return
    takes_top_k = parse_kd_loss(args.kd_loss).takes_top_k
    for folder in (one.rpartition("=")[2] for one in given.split(",")):
        # half: pieces that the data turns out to lack have no entry
        if folder in stores and stores[folder] < vocabulary / 2:
            refuse_few_entries(args.kd_loss, takes_top_k, Path(folder).parent.name, stores[folder], vocabulary)


def _shortened(message: str) -> str:
    """argparse's message; of a list of a hundred names those that are like the one given."""
    said, chosen, names = message.partition(" (choose from ")
    if not chosen:
        return said
    allowed = [name.strip("' ") for name in names.rstrip(")").split(",")]
    given = said.rpartition(": ")[2].strip("'")
    near = difflib.get_close_matches(given, allowed, 5, 0.6) or allowed[:5]
    return f"{said}; allowed: {', '.join(near)}{' and others' if len(near) < len(allowed) else ''}"

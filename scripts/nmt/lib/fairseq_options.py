"""Whether fairseq-train would take the options of a command, found out before anything is trained.

Imports `fairseq_plugins`.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from scripts.nmt.lib.quiet_fairseq import import_fairseq, quiet
from scripts.nmt.lib.user_error import UserError

_TASKS = Path(__file__).resolve().parents[3] / "fairseq_plugins" / "tasks"


def check_training_options(command: Sequence[str]) -> None:
    """Have fairseq's own parser, with the plugin's tasks and criteria, read a command.

    Args:
        command: fairseq-train, the folder of the data, and options; no file that they name is opened.

    Raises:
        UserError: fairseq-train would refuse it: an option or loss that does not exist, or a value that it cannot have.
    """
    import_fairseq()
    from fairseq import options
    from fairseq.tasks import import_tasks

    from fairseq_plugins.criterions.kd_loss_by_name import is_own, parse_kd_loss

    # Not by way of --user-dir: fairseq passes over a package that something else has imported.
    import_tasks(str(_TASKS), "fairseq_plugins.tasks")
    parser = options.get_training_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"fairseq-train would refuse it: {_shortened(message)}")

    parser.error = refuse  # type: ignore[method-assign]
    with quiet():
        args = options.parse_args_and_arch(parser, input_args=list(command[1:]))
    if getattr(args, "kd_loss", None) and not is_own(args.kd_loss):
        parse_kd_loss(args.kd_loss)


def _shortened(message: str) -> str:
    """argparse's message; of a list of a hundred names those that are like the one given."""
    said, chosen, names = message.partition(" (choose from ")
    if not chosen:
        return said
    allowed = [name.strip("' ") for name in names.rstrip(")").split(",")]
    given = said.rpartition(": ")[2].strip("'")
    near = difflib.get_close_matches(given, allowed, 5, 0.6) or allowed[:5]
    return f"{said}; allowed: {', '.join(near)}{' and others' if len(near) < len(allowed) else ''}"

"""Whether the trainings of a study would be refused by what is to run them, found out before the first one starts.

A student's mistake would else come out only when its teachers have been trained.
"""

from collections.abc import Iterable

from scripts.nmt.lib.fairseq_options import check_training_options
from scripts.nmt.lib.user_error import UserError as TranslationError
from scripts.studies.plan import Planned
from vision_reference.arguments import parse_args, parse_store_args
from vision_reference.errors import UserError


def check_commands(plan: Iterable[Planned]) -> None:
    """Have each kind of command read by the parser of its program; no file of a study has to be there for it.

    Raises:
        UserError: the first command that would be refused, by its job's name.
    """
    seen: set[str] = set()
    for planned in plan:
        if planned.cell in seen:
            continue  # seeds differ in the seed
        seen.add(planned.cell)
        try:
            _check(planned.job.command)
        except (UserError, TranslationError) as error:
            raise UserError(f"{planned.job.name}: {error}") from None


def _check(command: tuple[str, ...]) -> None:
    if command[0] == "fairseq-train":
        check_training_options(command)
    elif command[1].endswith("vision_reference/train.py"):
        parse_args(list(command[2:]))
    elif command[1].endswith("vision_reference/store_soft_labels.py"):
        parse_store_args(list(command[2:]))

"""The loss that ``--kd-loss`` names, found and filled in: one of ``kd``, or a function of the user's own."""

import ast
import inspect
from collections.abc import Callable
from functools import partial

from torch import Tensor

from vision_reference.errors import UserError
from vision_reference.losses.kd import LOSSES, KdLoss
from vision_reference.user_functions import import_function

_FIXED = ("student_logits", "teacher_logits", "targets", "temperature")


def is_own(text: str) -> bool:
    """Whether ``--kd-loss TEXT`` names a function of the user's own, which has to be imported."""
    name, *rest = text.split(":")
    return name not in LOSSES and bool(rest) and "=" not in rest[0]


def parse_kd_loss(text: str) -> KdLoss:
    """The loss that ``--kd-loss`` names, its hyper-parameters filled in, with what it says of itself (see ``kd``).

    Raises:
        UserError: no such loss, or hyper-parameters that it does not have or that are no numbers.
    """
    function, given = _split(text)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise UserError(f"--kd-loss {text}: {function!r} is no function with a signature") from None
    known = [name for name in signature.parameters if name not in _FIXED]
    for name in given:
        if name not in known:
            allowed = f"has {', '.join(known)}" if known else "has no hyper-parameters"
            raise UserError(f"--kd-loss {text}: unknown hyper-parameter '{name}'; the loss {allowed}")
    try:
        signature.bind(*_FIXED, **given)
    except TypeError as error:
        raise UserError(
            f"--kd-loss {text}: a loss takes {', '.join(_FIXED)} and hyper-parameters with defaults ({error})"
        ) from None
    loss = partial(function, **given)
    for about in ("takes_top_k", "needs_labels", "needs_one_class"):
        setattr(loss, about, getattr(function, about, False))
    return loss


def check_labels(loss: KdLoss, text: str, *, mixed: bool, unlabelled: bool) -> None:
    """Refuse ``loss``, of ``parse_kd_loss`` and named ``text``, where it would not get the labels that it needs.

    Raises:
        UserError: it needs one class an image and they are ``mixed``, or a label of each and some are ``unlabelled``.
    """
    if mixed and getattr(loss, "needs_one_class", False):
        raise UserError(f"--kd-loss {text} needs one class an image; drop --mixup-alpha and --cutmix-alpha")
    if unlabelled and getattr(loss, "needs_labels", False):
        raise UserError(f"--kd-loss {text} needs the label of each image; drop --unlabelled, or take another loss")


def check_top_k(loss: KdLoss, text: str, folder: str, top_k: int | None) -> None:
    """Refuse ``loss``, of ``parse_kd_loss`` and named ``text``, where a store keeps fewer logits than it needs.

    Args:
        folder: of the store, for the message.
        top_k: logits of an image that it keeps, the largest; None: of all classes.

    Raises:
        UserError: the loss needs those of all classes.
    """
    if top_k is not None and not getattr(loss, "takes_top_k", False):
        raise UserError(
            f"--kd-loss {text} needs all logits of the teacher, {folder} has the {top_k} largest; "
            "store anew without --top-k, or let the teacher run along (--teacher)"
        )


def _split(text: str) -> tuple[Callable[..., Tensor], dict[str, object]]:
    """Function and hyper-parameters of ``name[:a=1,b=2]`` or ``package.module:function[:a=1,b=2]``."""
    name, *rest = text.split(":")
    if name in LOSSES:
        function = LOSSES[name]
    elif is_own(text):
        function = import_function(f"{name}:{rest.pop(0)}", "--kd-loss")
    else:
        raise UserError(
            f"unknown --kd-loss '{name}'; allowed: {', '.join(LOSSES)}, each with hyper-parameters as in "
            "dkd:alpha=1,beta=8, or package.module:function"
        )
    if len(rest) > 1:
        raise UserError(f"--kd-loss {text}: one colon before the hyper-parameters, commas between them")
    given = {}
    for item in rest[0].split(",") if rest else []:
        key, equals, value = item.partition("=")
        try:
            given[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            equals = ""
        if not equals:
            raise UserError(f"--kd-loss {text}: '{item}' is no name=number, as in alpha=1")
    return function, given

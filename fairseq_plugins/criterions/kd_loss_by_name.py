"""The loss that ``--kd-loss`` names, found and filled in: one of ``losses.kd``, or a function of the user's own."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable
from functools import partial

from torch import Tensor

from ..errors import UserError
from ..losses.kd import LOSSES, KdLoss

_FIXED = ("student_logits", "teacher_logits", "targets", "temperature")


def is_own(text: str) -> bool:
    """Whether ``--kd-loss TEXT`` names a function of the user's own, which has to be imported."""
    name, *rest = text.split(":")
    return name not in LOSSES and bool(rest) and "=" not in rest[0]


def parse_kd_loss(text: str) -> KdLoss:
    """The loss that ``--kd-loss`` names, its hyper-parameters filled in; ``takes_top_k`` says whether top-k stores do.

    For names from the command line alone, never for one read from a file: a function of the user's own is imported.

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
    loss.takes_top_k = getattr(function, "takes_top_k", False)  # type: ignore[attr-defined]
    return loss


def _split(text: str) -> tuple[Callable[..., Tensor], dict[str, object]]:
    """Function and hyper-parameters of ``name[:a=1,b=2]`` or ``package.module:function[:a=1,b=2]``."""
    name, *rest = text.split(":")
    if name in LOSSES:
        function = LOSSES[name]
    elif is_own(text):
        function = _import_function(name, rest.pop(0))
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


def _import_function(module: str, name: str) -> Callable[..., Tensor]:
    try:
        function = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # the module runs when it is imported, and may fail in any way
        raise UserError(
            f"--kd-loss {module}:{name}: cannot import {module} ({error}); is PYTHONPATH set to its folder?"
        ) from None
    if not callable(function):
        raise UserError(f"--kd-loss {module}:{name}: {module} has no function '{name}'")
    return function

"""Functions of the user's own, named ``package.module:function`` on the command line: networks, losses, data sets."""

import importlib
from collections.abc import Callable

from vision_reference.errors import UserError


def import_function(name: str, flag: str) -> Callable:
    """What ``package.module:function`` names. For names from the command line alone, never for one read from a file.

    Args:
        flag: names the option in errors.

    Raises:
        UserError: there is no such module or function.
    """
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # the module runs when it is imported, and may fail in any way
        raise UserError(f"{flag} {name}: cannot import {module} ({error}); is PYTHONPATH set to its folder?") from None
    if not callable(function):
        raise UserError(f"{flag} {name}: {module} has no function '{attribute}'")
    return function

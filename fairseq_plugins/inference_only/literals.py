"""Options that fairseq evaluates as Python, read without running them.

Many options are texts that fairseq hands to `eval`: `--adam-betas`, `--langtoks`, the layers of a convolutional model.
Those of a checkpoint were written by whoever wrote the file. What they are meant to hold are numbers, texts and lists
of them, sometimes repeated and joined, as in `[(512, 3)] * 14 + [(1024, 3)] * 4`.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from .errors import UserError

_LONGEST_TEXT, _LONGEST_LIST = 20_000, 10_000
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}


def evaluate(text: Any) -> Any:
    """In place of `eval`: numbers, texts, True, False, None, lists, tuples and dicts of them, and +, -, * of those.

    Raises:
        TypeError: not a text, as `eval` does.
        UserError: anything else, which is not run.
    """
    if not isinstance(text, str):
        raise TypeError("eval() arg 1 must be a string, bytes or code object")
    try:
        if len(text) > _LONGEST_TEXT:
            raise ValueError
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        shown = text if len(text) <= 60 else text[:60] + "..."
        raise UserError(
            f"fairseq would run the option `{shown}` as Python, and it is more than a value; nothing of it was "
            "executed. Allowed are numbers, texts, lists, tuples and dicts, and +, -, * of them"
        ) from None


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float, bool, type(None))):
        return node.value
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(item) for item in node.elts)
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise ValueError("a dict unpacked in a dict")
        return {_value(key): _value(item) for key, item in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        number = _value(node.operand)
        return -number if isinstance(node.op, ast.USub) else +number
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        left, right = _value(node.left), _value(node.right)
        length = sum(len(side) for side in (left, right) if isinstance(side, (str, list, tuple)))
        times = max((side for side in (left, right) if isinstance(side, int)), default=1)
        if length * (times if isinstance(node.op, ast.Mult) else 1) > _LONGEST_LIST:
            raise ValueError("too long")
        return _ARITHMETIC[type(node.op)](left, right)
    raise ValueError(f"not a value: {type(node).__name__}")

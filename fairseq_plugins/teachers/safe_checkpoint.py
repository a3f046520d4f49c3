"""Reads a fairseq checkpoint without executing what is inside.

A checkpoint is a pickle, and a pickle can run any program when it is read. `torch.load(weights_only=True)` rebuilds
only tensors, plain containers and the classes listed here: those that fairseq 0.12.2 itself writes. Options are text
then, but fairseq evaluates some of them as Python: `literal_options` leaves it only literals to evaluate.
"""

from __future__ import annotations

import argparse
import ast
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import utils

from ..errors import UserError

# Options of tasks and models without a dataclass come as a Namespace; meters of --eval-bleu hold numpy arrays.
_WRITTEN_BY_FAIRSEQ = [
    argparse.Namespace,
    np.ndarray,
    np.core.multiarray._reconstruct,
    np.core.multiarray.scalar,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.bool_, np.int32, np.int64, np.float32, np.float64)),
]


def read_checkpoint(path: str) -> dict[str, Any]:
    """The checkpoint's dict, tensors on the CPU; at least `model` and one of `cfg` and `args` are there.

    Raises:
        UserError: no such file, not a fairseq checkpoint, or it holds something fairseq does not write.
    """
    if not Path(path).is_file():
        raise UserError(f"no teacher checkpoint at {path}: give the path of a .pt file written by fairseq-train")
    try:
        with torch.serialization.safe_globals(_WRITTEN_BY_FAIRSEQ):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as refusal:
        stranger = re.search(r"GLOBAL (\S+)", str(refusal))
        held = f"holds `{stranger.group(1)}`, which fairseq does not write" if stranger else "is no plain checkpoint"
        raise UserError(
            f"teacher checkpoint {path} {held}; nothing of it was executed. Allowed are tensors, plain containers and "
            "fairseq's options: train the teacher with fairseq-train, or save its `model` and `cfg` alone"
        ) from None
    except Exception as problem:  # a file of arbitrary bytes makes the unpickler stumble in any way there is
        first_line = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise UserError(f"cannot read teacher checkpoint {path} ({first_line}): is the file complete?") from None
    if not (isinstance(state, dict) and "model" in state and (state.get("cfg") or state.get("args"))):
        raise UserError(
            f"{path} is not a fairseq checkpoint: it must hold `model` and `cfg` (or `args`); give a .pt file written "
            "by fairseq-train"
        )
    return state


def _literal(text: Any) -> Any:
    if not isinstance(text, str):
        raise TypeError("not a text to evaluate")
    return ast.literal_eval(text)


@contextmanager
def literal_options() -> Iterator[None]:
    """While open, `fairseq.utils.eval_bool`, `eval_str_list` and `eval_str_dict` run no code: ValueError instead."""
    # those three look the name up in their module before they find Python's own
    utils.eval = _literal
    try:
        yield
    finally:
        del utils.eval

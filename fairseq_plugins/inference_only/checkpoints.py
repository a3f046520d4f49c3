"""Reads a fairseq checkpoint without executing what is inside, and refuses one that is damaged or meant to harm.

A checkpoint is a pickle, and a pickle can run any program when it is read. `torch.load(weights_only=True)` rebuilds
only tensors, plain containers and the classes listed here: those that fairseq 0.12.2 itself writes. What torch's reader
lets through nevertheless is looked for before (TorchScript programs, tar archives, files that inflate) and after
(tensors that claim more than the file holds, containers that grow when they are walked).

torch writes the checksum (CRC-32) of every tensor into the file and does not compare it when it reads: it is compared
here, so that a flipped bit is noticed.
"""

from __future__ import annotations

import logging
import mmap
import pickle
import re
import tarfile
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import UserError

logger = logging.getLogger(__name__)

# Options of tasks and models without a dataclass come as a Namespace; meters of --eval-bleu hold numpy arrays.
_WRITTEN_BY_FAIRSEQ = [
    Namespace,
    np.ndarray,
    np.core.multiarray._reconstruct,  # type: ignore[attr-defined]
    np.core.multiarray.scalar,  # type: ignore[attr-defined]
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.bool_, np.int32, np.int64, np.float32, np.float64)),
]
# torch stores tensors as they are: what grows much more than this when it is unpacked is no checkpoint.
_MOST_INFLATION, _ALWAYS_ALLOWED_BYTES = 4, 16 << 20
# Who wrote a checkpoint: options that only this plugin has, and what scripts/lib/jobs.py leaves beside its trainings.
OWN_NAMES = (b"multilingual_translation_kd", b"translation_kd", b"label_smoothed_kd_cross_entropy")
RUN_RECORD = "run.json"
_MOST_ENTRIES, _DEEPEST = 10_000_000, 50


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The checkpoint's dict, tensors on the CPU; at least `model` and one of `cfg` and `args` are present.

    Raises:
        UserError: no such file, not a fairseq checkpoint, damaged, or it holds something that fairseq does not write.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: give the path of a .pt file written by fairseq-train")
    try:
        _look_before_unpickling(path)
        _tell_reader_faults(path)
        with torch.serialization.safe_globals(_WRITTEN_BY_FAIRSEQ):
            state = torch.load(path, map_location="cpu", weights_only=True)
        _count_entries(path, state, 0, {})
        _check_tensors(path, state)
    except OSError as problem:
        raise UserError(f"cannot read checkpoint {path} ({problem.strerror or problem})") from None
    except pickle.UnpicklingError as refusal:
        stranger = re.search(r"GLOBAL (\S+)", str(refusal))
        held = f"holds `{stranger.group(1)}`, which fairseq does not write" if stranger else "is no plain checkpoint"
        raise _refusal(path, held) from None
    except Exception as problem:  # a file of arbitrary bytes makes the unpickler stumble in any way there is
        first_line = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise UserError(f"cannot read checkpoint {path} ({first_line}): is the file complete?") from None
    if not (isinstance(state, dict) and "model" in state and _has_options(state)):
        raise UserError(
            f"{path} is not a fairseq checkpoint: it must hold `model` and `cfg` (or `args`); give a .pt file written "
            "by fairseq-train"
        )
    _check_weights(path, state["model"])
    return state


def _has_options(state: dict[str, Any]) -> bool:
    cfg, args = state.get("cfg"), state.get("args")
    return bool(cfg or args) and isinstance(cfg or {}, Mapping) and isinstance(args or Namespace(), Namespace)


def _refusal(path: Path, held: str) -> UserError:
    return UserError(
        f"checkpoint {path} {held}; nothing of it was executed. Allowed are tensors, plain containers and fairseq's "
        "options: train the model with fairseq-train, or save its `model` and `cfg` alone"
    )


_told = False


def _tell_reader_faults(path: Path) -> None:
    """Says once what the reader of tensors cannot be trusted with on this torch, for a file of an unknown author.

    Known are checkpoints that name this plugin's tasks, and those beside the record of the run that made them.
    """
    global _told
    if _told or (path.parent / RUN_RECORD).is_file():
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if any(content.find(name) >= 0 for name in OWN_NAMES):
            return
    release = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    fixed_in = {"CVE-2025-32434": (2, 6), "CVE-2026-24747": (2, 10)}
    faults = [number for number, fixed in fixed_in.items() if release < fixed]
    if faults:
        _told = True
        logger.info(
            f"{path} may be of anybody, and torch {torch.__version__} reads checkpoints with known faults "
            f"({', '.join(faults)}): do not open files whose author you do not know"
        )


def _look_before_unpickling(path: Path) -> None:
    """Refuses what torch would do more with than unpickle, and what has changed since it was written.

    torch before 2.6 runs TorchScript archives and unpacks tar archives even where only weights are asked for. Its name
    is looked for in the raw bytes, because two readers of a forged archive may see two directories.
    """
    if tarfile.is_tarfile(path):
        raise _refusal(path, "is a tar archive")
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"checkpoint {path} is an empty file: was its writing interrupted?")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b"/constants.pkl") >= 0:
            raise _refusal(path, "is a TorchScript program")
    if not zipfile.is_zipfile(path):
        return  # as torch wrote before 1.6, without checksums
    with zipfile.ZipFile(path) as archive:
        _refuse_inflation(path, size, sum(entry.file_size for entry in archive.infolist()))
        try:
            damaged = archive.testzip()
        except zipfile.BadZipFile as problem:
            damaged = str(problem)
        if damaged is not None:
            raise UserError(
                f"checkpoint {path} has changed since it was written (checksum of {damaged}): copy it again, or take "
                "another one"
            )


def _refuse_inflation(path: Path, size: int, inflated: int) -> None:
    if inflated > max(_ALWAYS_ALLOWED_BYTES, _MOST_INFLATION * size):
        raise UserError(
            f"checkpoint {path}: its {size:,} bytes would grow to {inflated:,} in memory, as no checkpoint does (at "
            f"most {_MOST_INFLATION} times is allowed)"
        )


def _parts(value: object) -> list[Any]:
    """What a container holds; nothing of anything else."""
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    return list(vars(value).values()) if isinstance(value, Namespace) else []


def _count_entries(path: Path, value: object, depth: int, counted: dict[int, int]) -> int:
    """Entries of a nested container, those named twice counted twice: so many steps it takes to walk it.

    Lists that name other lists twice, thirty levels deep, are a few hundred bytes and a billion entries.
    """
    parts = _parts(value)
    if parts and id(value) not in counted:
        if depth > _DEEPEST:
            raise UserError(f"checkpoint {path} is nested more than {_DEEPEST} levels deep, as no checkpoint is")
        counted[id(value)] = sum(_count_entries(path, part, depth + 1, counted) for part in parts)
        if counted[id(value)] > _MOST_ENTRIES:
            raise UserError(f"checkpoint {path} has more than {_MOST_ENTRIES:,} entries, as no checkpoint has")
    return 1 + counted.get(id(value), 0)


def _tensors_in(content: object) -> Iterator[Tensor]:
    """Every tensor inside nested containers, each object once however often it is named."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if id(value) not in seen:
            seen.add(id(value))
            waiting += _parts(value)
            if isinstance(value, Tensor):
                yield value


def _check_tensors(path: Path, content: object) -> None:
    """Shapes and strides are numbers in the pickle: a few bytes of storage may claim to be any number of elements."""
    for tensor in _tensors_in(content):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            kind = "quantized" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}"
            raise UserError(f"checkpoint {path} holds a tensor that is {kind}; plain tensors are allowed")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(
                f"checkpoint {path} holds a tensor of {tensor.numel():,} entries made of "
                f"{tensor.untyped_storage().nbytes():,} bytes, as no checkpoint does"
            )


def _check_weights(path: Path, weights: object) -> None:
    if not (isinstance(weights, Mapping) and all(isinstance(name, str) for name in weights)):
        raise UserError(f"{path} is not a fairseq checkpoint: `model` must hold tensors by name")
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"{path} is not a fairseq checkpoint: `model` holds {name}, which is no tensor")
        if name.endswith("_float_tensor"):
            continue  # fairseq's way to know a device and a precision: memory as it came, never read
        if not tensor.is_floating_point():
            if tensor.dim() > 1:
                raise UserError(f"checkpoint {path}: {name} has {tensor.dtype} weights, which no model is trained to")
        elif tensor.numel() and not all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor)):
            raise UserError(
                f"checkpoint {path}: {name} has weights that are not finite (NaN or infinite): its training "
                "diverged, or the file is damaged; take another checkpoint"
            )

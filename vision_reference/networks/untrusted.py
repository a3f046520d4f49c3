"""Files of weights from people one need not trust: what is in them, or one line that says why they were refused.

Nothing but tensors, plain Python values, ``argparse.Namespace`` and numpy numbers is ever made of a pickle; whatever
else it may call is refused before it is called. What remains is trust in torch's own reader of tensors, which older
versions do not deserve in full (``reader_faults``); safetensors need no trust at all.
"""

import argparse
import mmap
import os
import re
import struct
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vision_reference.errors import UserError

ACCEPTED = (
    "a checkpoint of this project, of torchvision's recipe or of the paper's authors, a bare state dict, or safetensors"
)
# What we write carries this name (see ``checkpoints``). It proves nothing: it only spares our users a note.
OWN_MARK = b"lskd_checksum"
# Weights hardly compress, so what grows more than this is no file of weights; small files may hold zeros.
_MOST_INFLATION, _ALWAYS_ALLOWED_BYTES = 20, 64 << 20
_MOST_ENTRIES, _DEEPEST = 10_000_000, 50


def load_file(path: str | Path) -> object:
    """Content of a file of weights, tensors on the CPU.

    Raises:
        UserError: the file is missing, is no checkpoint, is cut short, holds anything else than tensors and plain
            values, or would take far more memory than its own size.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint file '{path}'; give the path of {ACCEPTED}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        _look_before_unpickling(path)
        with torch.serialization.safe_globals(_ALLOWED_IN_PICKLES), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)  # such files fail just below
            content = torch.load(path, map_location="cpu", weights_only=True)
        _count_entries(path, content, 0, {})
        _refuse_tensors_larger_than_their_file(path, content)
        return content
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from None
    except Exception as error:  # a parser of arbitrary bytes may fail in any way
        if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise _refusal(path, refused[1]) from None
        raise UserError(f"cannot read '{path}': damaged, cut short or no checkpoint; give {ACCEPTED}") from None


def reader_faults(torch_version: str) -> list[str]:
    """Known faults of ``torch.load(weights_only=True)`` in this version of torch, by their numbers."""
    release = tuple(int(part) for part in re.findall(r"\d+", torch_version)[:2])
    fixed_in = {"CVE-2025-32434": (2, 6), "CVE-2026-24747": (2, 10)}
    return [number for number, fixed in fixed_in.items() if release < fixed]


def _parts(value: object) -> list:
    """What a container holds; nothing of anything else."""
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    return list(vars(value).values()) if isinstance(value, argparse.Namespace) else []


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


def _count_entries(path: Path, value: object, depth: int, counted: dict[int, int]) -> int:
    """Entries of a nested container, those named twice counted twice: whoever walks it needs so many steps.

    A few hundred bytes of lists that name other lists twice would keep him busy for years; a list may hold itself.
    """
    parts = _parts(value)
    if parts and id(value) not in counted:
        if depth > _DEEPEST:
            raise UserError(f"refused '{path}': it is nested more than {_DEEPEST} levels deep, as no checkpoint is")
        counted[id(value)] = sum(_count_entries(path, part, depth + 1, counted) for part in parts)
        if counted[id(value)] > _MOST_ENTRIES:
            raise UserError(f"refused '{path}': it has more than {_MOST_ENTRIES:,} entries, as no checkpoint does")
    return 1 + counted.get(id(value), 0)


def _look_before_unpickling(path: Path) -> None:
    """Refuses what torch would do more with than unpickle, and says once what its reader cannot be trusted with.

    torch before 2.6 runs TorchScript archives and unpacks tar archives even where only weights are asked for. The
    tell-tale name is looked for in the raw bytes (names in a zip file's directory are never compressed), because two
    readers of a forged zip file may see two directories.
    """
    if tarfile.is_tarfile(path):
        raise _refusal(path, "a tar archive")
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"cannot read '{path}': the file is empty; give {ACCEPTED}")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b"/constants.pkl") >= 0:
            raise _refusal(path, "a TorchScript program")
        of_ours = content.find(OWN_MARK) >= 0
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _refuse_inflation(path, size, sum(entry.file_size for entry in archive.infolist()))
    if not of_ours:
        _tell_reader_faults(path)


def _refuse_inflation(path: Path, size: int, inflated: int) -> None:
    if inflated > max(_ALWAYS_ALLOWED_BYTES, _MOST_INFLATION * size):
        raise UserError(
            f"refused '{path}': its {size:,} bytes would grow to {inflated:,} in memory, as no file of weights does "
            f"(at most {_MOST_INFLATION} times is allowed)"
        )


def _refuse_tensors_larger_than_their_file(path: Path, content: object) -> None:
    """Shapes and strides are numbers in the pickle: a few bytes of storage may claim to be any number of elements."""
    size = path.stat().st_size
    total = 0
    for tensor in _tensors_in(content):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            kind = "quantized" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}"
            raise UserError(f"refused '{path}': it holds a tensor that is {kind}; plain tensors are allowed")
        total += tensor.numel() * tensor.element_size()
    _refuse_inflation(path, size, total)


_told = False


def _tell_reader_faults(path: Path) -> None:
    global _told
    faults = reader_faults(torch.__version__)
    if _told or not faults or os.environ.get("RANK", "0") != "0":
        return
    _told = True
    version = torch.__version__.partition("+")[0]
    print(
        f"note: '{path}' is a pickle that this project did not write, and torch {version} reads such files with known "
        f"faults ({', '.join(faults)}): if you do not know its author, ask for safetensors",
        file=sys.stderr,
        flush=True,
    )


def _refusal(path: Path, what: str) -> UserError:
    return UserError(
        f"refused '{path}': loading it could run code of its author's choice ({what}); allowed in a checkpoint: "
        "tensors, plain values, argparse.Namespace, numpy numbers"
    )


# What Python's struct calls the types of numpy's numbers.
_STRUCT_CODES = {"b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "f2": "e", "f4": "f", "f8": "d"}
_STRUCT_CODES |= {"u1": "B", "u2": "H", "u4": "I", "u8": "Q"}


class _NumpyType:
    """Stands in for numpy.dtype while unpickling, so that a file can build nothing but a number's type.

    Pickles of numpy numbers call ``numpy.dtype(code, False, True)`` and then set a state whose second entry is the
    byte order. Being independent of numpy, this reads the files of numpy 1 and 2 alike.
    """

    def __init__(self, code: str, *_: object) -> None:
        self.struct_code = _STRUCT_CODES[code]
        self.order = "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _answering_to(name: str, stand_in: Callable) -> Callable:
    """``stand_in`` under the full name by which pickles call for it; torch's allow-list goes by these attributes."""
    stand_in.__module__, stand_in.__name__ = name.rsplit(".", 1)
    stand_in.__qualname__ = stand_in.__name__
    return stand_in


def _number_maker(name: str) -> Callable[[_NumpyType, bytes], float]:
    """Stand-in for numpy's function ``name``, which makes a number of its type and bytes: a Python number instead."""
    return _answering_to(name, lambda kind, data: struct.unpack(kind.order + kind.struct_code, data)[0])


_ALLOWED_IN_PICKLES: list[Callable] = [
    argparse.Namespace,
    _answering_to("numpy.dtype", _NumpyType),
    _number_maker("numpy.core.multiarray.scalar"),  # numpy 1
    _number_maker("numpy._core.multiarray.scalar"),  # numpy 2
]

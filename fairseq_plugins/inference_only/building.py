"""Models are rebuilt from a checkpoint within bounds: known architectures, and no more than the file's tensors show.

The options in a checkpoint say which classes fairseq builds and how large. Here they can choose only classes that open
no other file and run no program, and a model a few times as large as the weights that the file brings for it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from fairseq import models, tasks
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY
from omegaconf import OmegaConf, open_dict
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import UserError

logger = logging.getLogger(__name__)

# Of fairseq's own; those of a user-dir are the user's choice.
MODELS = (
    *("transformer", "transformer_align", "multilingual_transformer", "bart", "lightconv", "fconv", "lstm"),
    *("nonautoregressive_transformer", "iterative_nonautoregressive_transformer", "cmlm_transformer"),
    *("nacrf_transformer", "insertion_transformer", "levenshtein_transformer"),
    *("transformer_lm", "lightconv_lm", "fconv_lm", "lstm_lm", "masked_lm"),
)
TASKS = (
    *("translation", "translation_multi_simple_epoch", "translation_lev", "translation_from_pretrained_bart"),
    *("multilingual_translation", "language_modeling", "multilingual_masked_lm", "denoising"),
)
# A model may have so many times the elements and tensors of its file, plus what small ones take for tables.
_TIMES, _ALWAYS_ALLOWED_ELEMENTS, _CALLS_FOR_A_TENSOR, _ALWAYS_ALLOWED_CALLS = 4, 2**27, 16, 4096


@dataclass
class _Shown:
    """What a file shows about its model: number of its tensors and of their elements."""

    path: str
    tensors: int = 0
    elements: int = 0

    def see(self, weights: dict[str, Tensor]) -> None:
        self.tensors, self.elements = len(weights), sum(weight.numel() for weight in weights.values())


# The checkpoint that is being rebuilt; fairseq reads one file and builds its model before it reads the next.
_rebuilding: _Shown | None = None


def show(path: str, weights: dict[str, Tensor]) -> None:
    """A file was read: if a model is rebuilt, it is the one of this file."""
    if _rebuilding is not None:
        _rebuilding.path = path
        _rebuilding.see(weights)


@contextmanager
def rebuilding(path: str, weights: dict[str, Tensor] | None) -> Iterator[None]:
    """While open, tasks and models are built as the options of a checkpoint say.

    Args:
        weights: of the file, where it is read already.
    """
    global _rebuilding
    before, _rebuilding = _rebuilding, _Shown(path)
    if weights is not None:
        _rebuilding.see(weights)
    try:
        yield
    finally:
        _rebuilding = before


def _is_fairseqs(cls: type) -> bool:
    return cls.__module__.split(".")[0] == "fairseq"


def bounded_build_model(stock: Callable[..., Any]) -> Callable[..., Any]:
    """`fairseq.models.build_model`, bounded while a checkpoint is rebuilt."""

    def build_model(cfg: Any, task: Any, *args: Any, **kwargs: Any) -> Any:
        shown = _rebuilding
        if shown is None:
            return stock(cfg, task, *args, **kwargs)
        _check_architecture(shown.path, cfg)
        with open_dict(cfg) if OmegaConf.is_config(cfg) else nullcontext():
            for name in ("encoder_embed_path", "decoder_embed_path"):
                if getattr(cfg, name, None) is not None:
                    setattr(cfg, name, None)  # pretrained embeddings are in the checkpoint by now
        for name, value in cfg.items() if OmegaConf.is_config(cfg) else vars(cfg).items():
            # a list of so many entries may be made before any layer is built
            if "layers" in str(name) and isinstance(value, int) and value > shown.tensors:
                raise UserError(
                    f"checkpoint {shown.path} asks for {name} = {value:,} and has {shown.tensors:,} tensors"
                )
        with _Budget(shown):
            return stock(cfg, task, *args, **kwargs)

    return build_model


def _check_architecture(path: str, cfg: Any) -> None:
    arch = getattr(cfg, "_name", None) or getattr(cfg, "arch", None)
    known = isinstance(arch, str) and (arch in ARCH_MODEL_REGISTRY or arch in MODEL_REGISTRY)
    if not known:
        raise UserError(
            f"checkpoint {path} has --arch {arch}, which is not known here: name the --user-dir that defines it"
        )
    cls = ARCH_MODEL_REGISTRY.get(arch) or MODEL_REGISTRY[arch]
    if _is_fairseqs(cls) and ARCH_MODEL_NAME_REGISTRY.get(arch, arch) not in MODELS:
        raise UserError(
            f"checkpoint {path} has --arch {arch}, which may open other files or run options as programs when it is "
            f"built; allowed are the architectures of {', '.join(MODELS)}"
        )


def bounded_setup_task(stock: Callable[..., Any]) -> Callable[..., Any]:
    """`fairseq.tasks.setup_task`, bounded while a checkpoint is rebuilt, whose task it then is."""

    def setup_task(cfg: Any, **kwargs: Any) -> Any:
        if _rebuilding is not None:
            name = cfg if isinstance(cfg, str) else getattr(cfg, "_name", None) or getattr(cfg, "task", None)
            cls = TASK_REGISTRY.get(name) if isinstance(name, str) else None
            if cls is None or (_is_fairseqs(cls) and name not in TASKS):
                raise UserError(
                    f"checkpoint {_rebuilding.path} was trained with --task {name}; allowed are {', '.join(TASKS)} and "
                    "those of the --user-dir"
                )
        return stock(cfg, **kwargs)

    return setup_task


class _Budget(TorchDispatchMode):
    """Stops the building of a model before it takes more memory or time than its file can be worth."""

    def __init__(self, shown: _Shown) -> None:
        super().__init__()
        self._path = shown.path
        self._elements = _TIMES * shown.elements + _ALWAYS_ALLOWED_ELEMENTS
        self._calls = _CALLS_FOR_A_TENSOR * shown.tensors + _ALWAYS_ALLOWED_CALLS

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not (function._schema.is_mutable or function.is_view):
            self._elements -= _elements_of(args, kwargs or {})
            self._calls -= 1
            if self._elements < 0 or self._calls < 0:
                raise UserError(
                    f"checkpoint {self._path}: its options ask for a model far larger than the weights it holds; it "
                    "was not built"
                )
        return function(*args, **(kwargs or {}))


def _elements_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """About how many elements a tensor operation makes, from its arguments alone."""
    values = [*args, *kwargs.values()]
    tensors = [value for value in values if isinstance(value, Tensor)]
    sizes = [math.prod(value) for value in values if _is_size(value)]
    if not tensors:  # zeros(size), arange(end), eye(n)
        counts = [abs(int(value)) for value in args if isinstance(value, (int, float)) and math.isfinite(value)]
        return max([*sizes, *counts], default=0)
    try:
        broadcast = math.prod(torch.broadcast_shapes(*(tensor.shape for tensor in tensors)))
    except RuntimeError:  # a matrix product or the like
        broadcast = sum(tensor.numel() for tensor in tensors)
    return max([broadcast, *sizes])


def _is_size(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(length, int) and length >= 0 for length in value)


def install() -> None:
    models.build_model = bounded_build_model(models.build_model)
    tasks.setup_task = bounded_setup_task(tasks.setup_task)

"""Puts safe reading in the place of everything in fairseq that unpickles a file or evaluates an option."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

import torch
from fairseq import checkpoint_utils
from fairseq.trainer import Trainer

from . import building
from .checkpoints import read_checkpoint
from .errors import UserError
from .literals import evaluate

logger = logging.getLogger(__name__)

# Modules of fairseq that evaluate options or lines of data, and those that unpickle files. (What processes of one run
# send each other is trusted: `fairseq.distributed.utils`.)
EVALUATING = (
    "fairseq.utils",
    *(f"fairseq.models.{name}" for name in ("fconv", "fconv_lm", "fconv_self_att", "lightconv_lm", "transformer_lm")),
    *("fairseq.models.hubert.hubert", "fairseq.models.wav2vec.wav2vec", "fairseq.models.wav2vec.wav2vec2"),
    *("fairseq.models.speech_to_text.s2t_wav_transformer", "fairseq.criterions.ctc"),
    *("fairseq.data.audio.raw_audio_dataset", "fairseq.data.codedataset"),
    *(f"fairseq.optim.{name}" for name in ("adam", "adafactor", "adamax", "cpu_adam", "fused_adam", "fused_lamb")),
)
UNPICKLING = (
    *("fairseq.checkpoint_utils", "fairseq.data.codedataset", "fairseq.modules.quantization.pq.em"),
    *("fairseq.models.text_to_speech.vocoder", "fairseq.models.speech_to_text.xm_transformer"),
)


class _SafeTorch(ModuleType):
    """`torch`, as these modules see it: the same but for `load`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def load(file: Any, *args: Any, **kwargs: Any) -> Any:
        path = file if isinstance(file, str) else getattr(file, "name", None)
        if not isinstance(path, str):
            raise UserError("a checkpoint is read from a file; this is none")
        return read_checkpoint(path)


def _first_line(problem: BaseException) -> str:
    text = str(problem).strip()
    return f"{type(problem).__name__}: {text.splitlines()[0]}" if text else type(problem).__name__


def _refuse(what: str, problem: Exception) -> NoReturn:
    logger.debug(what, exc_info=problem)
    raise UserError(f"{what}: {_first_line(problem)}") from None


def _load_checkpoint_to_cpu(stock: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    @functools.wraps(stock)
    def load_checkpoint_to_cpu(path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            state = stock(path, *args, **kwargs)
        except Exception as problem:  # options and histories of any form make fairseq stumble in any way
            _refuse(
                f"cannot read checkpoint {path}: its options or its history are not as fairseq writes them", problem
            )
        building.show(path, state["model"])
        return state

    return load_checkpoint_to_cpu


def _load_model_ensemble_and_task(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def load_model_ensemble_and_task(filenames: list[str], *args: Any, **kwargs: Any) -> Any:
        state = kwargs.get("state") or (args[5] if len(args) > 5 else None)
        names = ", ".join(filenames)
        with building.rebuilding(names, None if state is None else state["model"]):
            try:
                return stock(filenames, *args, **kwargs)
            except Exception as problem:  # weights or options that fairseq cannot make a model of
                _refuse(f"checkpoint {names} cannot be rebuilt from its options and weights", problem)

    return load_model_ensemble_and_task


def _load_into_trainer(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def load_checkpoint(self: Trainer, filename: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return stock(self, filename, *args, **kwargs)
        except Exception as problem:  # another architecture, criterion or optimizer than this run's, or none of ours
            _refuse(f"cannot go on from checkpoint {filename}", problem)

    return load_checkpoint


def install() -> None:
    """From now on, in this process."""
    for name in EVALUATING:
        if name in sys.modules:
            sys.modules[name].eval = evaluate  # type: ignore[attr-defined]
    safe_torch = _SafeTorch("torch")
    for name in UNPICKLING:
        if name in sys.modules:
            sys.modules[name].torch = safe_torch  # type: ignore[attr-defined]
    checkpoint_utils.load_checkpoint_to_cpu = _load_checkpoint_to_cpu(checkpoint_utils.load_checkpoint_to_cpu)
    checkpoint_utils.load_model_ensemble_and_task = _load_model_ensemble_and_task(
        checkpoint_utils.load_model_ensemble_and_task
    )
    Trainer.load_checkpoint = _load_into_trainer(Trainer.load_checkpoint)
    building.install()

"""fairseq-train's checkpoints take their place in one step, so that a kill at any moment leaves the old one whole.

Stock fairseq 0.12.2 writes the first file of a save beside its place and moves it there. The others, nearly always
`checkpoint_last.pt` among them, it copies in place: a kill in the midst leaves a file that is cut or empty, and the
training cannot go on.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from .files import atomic_file, remove_partials, writing_to

# What a training writes by `atomic_file` into its folder, see `multilingual.kept_vocabulary` for the last two.
_WRITTEN = ("checkpoint*.pt", "dict.*.txt", "spm.model")


class _InOneStep(PathManager):
    """`PathManager`, as `checkpoint_utils` sees it: the same but for `copy`."""

    @staticmethod
    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        if not PathManager.supports_rename(dst_path):  # a place on the net, by iopath
            return PathManager.copy(src_path, dst_path, overwrite)
        target = Path(dst_path)
        with writing_to(target.parent, "--save-dir"), open(src_path, "rb") as source, atomic_file(target) as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
        return True


def _torch_persistent_save(stock: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(stock)
    def torch_persistent_save(obj: Any, filename: str, async_write: bool = False) -> None:
        if async_write or not PathManager.supports_rename(filename):
            return stock(obj, filename, async_write)
        with writing_to(Path(filename).parent, "--save-dir"), atomic_file(Path(filename)) as file:
            try:
                torch.save(obj, file)
            except RuntimeError as problem:  # torch, stopped while it writes, then fails at closing its archive
                raise (problem.__context__ or problem) from None
        return None

    return torch_persistent_save


def _load_checkpoint(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def load_checkpoint(cfg: Any, trainer: Any, **kwargs: Any) -> Any:
        # no process of this training can have begun to save before all have passed here and trained a step together
        if trainer.data_parallel_rank == 0 and not cfg.no_save:
            remove_partials(Path(cfg.save_dir), *_WRITTEN)
        return stock(cfg, trainer, **kwargs)

    return load_checkpoint


def save_in_one_step() -> None:
    """From now on, in this process."""
    checkpoint_utils.torch_persistent_save = _torch_persistent_save(checkpoint_utils.torch_persistent_save)
    checkpoint_utils.PathManager = _InOneStep
    checkpoint_utils.load_checkpoint = _load_checkpoint(checkpoint_utils.load_checkpoint)

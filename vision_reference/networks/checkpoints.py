"""Checkpoints: read from anyone without trusting them, written whole or not at all.

Formats read, all by unpickling nothing but weights and plain values:

- ours and torchvision's recipe's: a dict with ``model`` and perhaps ``model_ema``, the network's name in ``arch`` or
  ``args.model``;
- the paper authors' ``*.pth.tar``: a dict with ``state_dict`` (keys prefixed ``module.``) and ``arch``;
- a bare state dict;
- safetensors.

What ``train.py`` writes is torchvision's format with more in it:

================  ===================================================================================================
``model``         state dict of the bare network, no ``module.`` or ``_orig_mod.`` prefixes
``model_ema``     with --model-ema: state dict of the AveragedModel (``module.`` prefixes and ``n_averaged``)
``optimizer``     its state dict
``lr_scheduler``  what torch's schedulers need to go on from here (see ``optimization``); we need the epoch alone
``scaler``        with fp16 autocast: the gradient scaler's state dict
``epoch``         number of the last finished epoch, from 0
``arch``          torchvision name of the network
``args``          dict of the command line, plain values only
``best``          dict with ``acc1``, ``acc5`` (percent) and ``epoch`` of the best evaluation so far
``rng``           list with ``capture_rng()`` of every rank, in rank order
``description``   dict of class names, image sizes, normalization, accuracy, versions (see ``description.describe_run``)
``within``        in ``within_epoch.pth`` only: how far the epoch after ``epoch`` (-1 before the first) has come, see
                  ``runs.pauses.Begun``
``lskd_checksum`` SHA-256 of all of the above, compared when the file is read
================  ===================================================================================================
"""

import hashlib
import json
import math
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import safetensors
import torch
from torch import Tensor, nn

from vision_reference.errors import UserError, some
from vision_reference.files import atomic_file, remove_partials
from vision_reference.networks.description import recorded_arch, recorded_args
from vision_reference.networks.heads import last_layer
from vision_reference.networks.untrusted import ACCEPTED, OWN_MARK, load_file

WITHIN_EPOCH = "within_epoch.pth"  # beside checkpoint.pth, only as long as it is ahead of that
_CHECKSUM = OWN_MARK.decode()


def load_checkpoint(path: str | Path) -> object:
    """Content of a checkpoint file, as ``load_file``; of files of ours it is the content that was written.

    Raises:
        UserError: as ``load_file``, or the content is not what its checksum says.
    """
    content = load_file(path)
    if not isinstance(content, dict):
        return content
    if Path(path).suffix == ".safetensors":
        return _exported(path, content)
    written = content.pop(_CHECKSUM, None)
    if written is not None and written != checksum(content):
        raise UserError(f"'{path}' is damaged: its content does not have the checksum that was written with it")
    return content


def safetensors_metadata(state: Mapping[str, Tensor], facts: Mapping) -> dict[str, str]:
    """What an export to safetensors carries beside its tensors, so that ``load_checkpoint`` knows and checks it.

    Args:
        facts: ``architecture``, ``classes``, ``accuracy`` and, under ``input``, ``preset``, ``resize_shorter_side``,
            ``center_crop``, ``interpolation``, ``mean``, ``std``; plain values; more may be there.
    """
    return {"format": "pt", "description": json.dumps(facts), _CHECKSUM: checksum(dict(sorted(state.items())))}


def _exported(path: str | Path, state: dict[str, Tensor]) -> dict:
    """The tensors of a safetensors file; of an export of ours, in the form of a checkpoint with a description."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    written = metadata.get(_CHECKSUM)
    if written is not None and written != checksum(dict(sorted(state.items()))):
        raise UserError(f"'{path}' is damaged: its tensors do not have the checksum that was written with them")
    try:
        facts = json.loads(metadata.get("description", ""))
        shown = facts["input"]
        description = {name: shown.get(name) for name in ("preset", "interpolation", "mean", "std")}
        description |= {"val_resize_size": shown.get("resize_shorter_side"), "val_crop_size": shown.get("center_crop")}
        description |= {"classes": facts.get("classes"), "accuracy": {"acc1": facts.get("accuracy")}}
        return {"model": state, "arch": facts["architecture"], "description": description}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # somebody else's metadata
        return state


def checksum(content: object) -> str:
    """SHA-256 of nested dicts, lists and tuples of tensors and plain values: every bit, type and name counts."""
    digest = hashlib.sha256()
    _add_to(digest, content)
    return digest.hexdigest()


def _add_to(digest, value: object) -> None:
    if isinstance(value, Tensor):
        digest.update(f"tensor {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        digest.update(f"dict {len(value)}\n".encode())
        for key, part in value.items():
            _add_to(digest, key)
            _add_to(digest, part)
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)}\n".encode())
        for part in value:
            _add_to(digest, part)
    else:
        digest.update(f"{type(value).__name__} {value!r}\n".encode(errors="surrogateescape"))


def read_checkpoint(path: str | Path) -> dict:
    """A checkpoint that training can go on from: model, optimizer, lr_scheduler, epoch; ``args`` as a dict.

    Raises:
        UserError: as ``load_checkpoint``, or one of these is missing (bare weights have none, the authors' files
            have no ``lr_scheduler``).
    """
    content = load_checkpoint(path)
    checkpoint: dict = content if isinstance(content, dict) else {}
    kinds = {"model": Mapping, "optimizer": Mapping, "lr_scheduler": Mapping, "epoch": int}
    missing = [key for key in kinds if key not in checkpoint]
    if missing:
        raise UserError(
            f"'{path}' has no {', '.join(missing)}, so training cannot go on from it; evaluate it with --test-only, or "
            "start a new run from its weights with --init-weights"
        )
    kinds |= {
        "within": Mapping,
        "rng": list,
        "best": Mapping,
        "scaler": Mapping,
        "model_ema": Mapping,
        "description": Mapping,
    }
    odd = [key for key, kind in kinds.items() if key in checkpoint and not isinstance(checkpoint[key], kind)]
    if odd or checkpoint["epoch"] < (-1 if "within" in checkpoint else 0):
        raise UserError(f"'{path}' is damaged: its {', '.join(odd) or 'epoch'} is not what training writes there")
    return {**checkpoint, "args": recorded_args(checkpoint), "best": _best(checkpoint.get("best"), path)}


def _best(best: Mapping | None, path: str | Path) -> dict:
    """``acc1``, ``acc5`` and ``epoch`` of the best evaluation so far; files of others tell none."""
    nothing = {"acc1": -1.0, "acc5": -1.0, "epoch": -1}
    best = nothing if best is None else {name: best.get(name) for name in nothing}
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in best.values()):
        raise UserError(f"'{path}' is damaged: its best result is {best}")
    return best


def read_weights(path: str | Path, arch: str | None, *, ema: bool = False) -> dict[str, Tensor]:
    """State dict found in a file of any accepted format: ``weights_in(load_checkpoint(path), ...)``.

    Raises:
        UserError: as ``load_checkpoint`` and ``weights_in``.
    """
    return weights_in(load_checkpoint(path), arch, source=str(path), ema=ema)


def weights_in(checkpoint: object, arch: str | None, *, source: str, ema: bool = False) -> dict[str, Tensor]:
    """State dict inside what ``load_checkpoint`` returned, keys as the bare network has them.

    Args:
        checkpoint: content of a checkpoint file.
        arch: torchvision name of the network that the weights are meant for; None accepts any.
        source: names the file in errors.
        ema: take the moving average ``model_ema`` instead of ``model``. Off by default: the plain weights are what
            training continues from, and what files without an average hold.

    Raises:
        UserError: no weights inside (or no average with ``ema``), or the file says that they belong to another
            network than ``arch``.
    """
    weights = _find_state_dict(checkpoint, source, ema)
    found = recorded_arch(checkpoint)
    if arch is not None and found is not None and found != arch:
        raise UserError(f"'{source}' holds weights of {found}, not of {arch}; name the network {found} or give others")
    for name, value in weights.items():
        if not isinstance(name, str):
            raise UserError(f"'{source}': a weight is called {str(name)[:20]}, which is no text")
        if not isinstance(value, Tensor):
            raise UserError(f"'{source}': entry '{name}' of the weights is no tensor but {type(value).__name__}")
    return _strip_prefixes({name: value for name, value in weights.items() if name != "n_averaged"})


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Put ``state_dict`` into ``model``; every key must be there in the right shape, and no other.

    The one liberty is torch's own: ``num_batches_tracked`` of batch norms may be absent (old files lack it).

    Args:
        source: names the weights in errors.

    Raises:
        UserError: something is missing, unexpected or misshapen, is of integers where numbers belong, or is not
            finite; the model is left as it was.
    """
    check_shapes(model, state_dict, source)
    for key, value in model.state_dict().items():
        given = state_dict.get(key, value)
        if value.is_floating_point() != given.is_floating_point():
            raise UserError(f"'{source}' is damaged or made for something else: its {key} is of type {given.dtype}")
        if not bool(given.float().isfinite().all()):
            raise UserError(f"'{source}' is damaged or of a run that diverged: its {key} is not finite everywhere")
    model.load_state_dict(state_dict)


def check_shapes(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """As ``load_weights`` but for the values; ``model`` may be on the meta device."""
    own = model.state_dict()
    missing = [key for key in own if key not in state_dict and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state_dict if key not in own]
    misshapen = [key for key in own if key in state_dict and own[key].shape != state_dict[key].shape]
    problems = []
    if misshapen and (head := _differing_class_counts(model, state_dict, misshapen)):
        problems.append(f"the file has {head[0]} classes, the model {head[1]}")
        misshapen = [key for key in misshapen if not key.startswith(head[2])]
    if missing:
        problems.append(f"{len(missing)} of {len(own)} missing: {some(missing, 3)}")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected: {some(unexpected, 3)}")
    if misshapen:
        shapes = [f"{key} {list(state_dict[key].shape)} instead of {list(own[key].shape)}" for key in misshapen]
        problems.append(f"{len(misshapen)} of another shape: {some(shapes, 3)}")
    if problems:
        raise UserError(f"weights of '{source}' do not fit {type(model).__name__}: {'; '.join(problems)}")


def save_atomically(obj: object, path: str | Path) -> None:
    """``torch.save`` that never leaves half a file: after a crash ``path`` holds the new content or the old one.

    A dict gets a checksum of its content, which ``load_checkpoint`` compares. Only one process may save to a path:
    what an earlier one left behind, killed while it saved, is removed.

    Raises:
        OSError: as writing a file, with its path.
    """
    path = Path(path)
    remove_partials(path.parent, path.name)
    if isinstance(obj, dict):
        obj = {**obj, _CHECKSUM: checksum(obj)}
    with atomic_file(path) as file:
        writer = _Writer(file)
        try:
            torch.save(obj, cast(BinaryIO, writer))  # it writes and flushes, no more
        except Exception:
            if writer.error is not None:
                raise OSError(writer.error.errno, writer.error.strerror, str(path)) from None
            raise


class _Writer:
    """A file to ``torch.save``, which answers a full disk with an error of its own that does not say so."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        return self._noting_errors(self.file.write, data)

    def flush(self) -> None:
        self._noting_errors(self.file.flush)

    def _noting_errors(self, method: Callable, *arguments: object):
        try:
            return method(*arguments)
        except OSError as error:
            self.error = error
            raise


def prune_epoch_checkpoints(output_dir: str | Path, keep: int) -> None:
    """Remove all ``model_<epoch>.pth`` files in a folder but those of the ``keep`` (0 or more) highest epochs."""
    epochs = {}
    for path in Path(output_dir).iterdir():
        if match := re.fullmatch(r"model_(\d+)\.pth", path.name):
            epochs[path] = int(match[1])
    newest_first = sorted(epochs, key=epochs.__getitem__, reverse=True)
    for path in newest_first[keep:]:
        path.unlink()


def resolve_resume(resume: str, output_dir: str | Path, *, training: bool = True) -> Path | None:
    """The file that --resume means; None starts afresh.

    Args:
        resume: "" for none, "auto" for the last checkpoint of ``output_dir`` if there is one, else a file.
        training: an epoch that was begun is to go on; otherwise the last finished one counts.

    Raises:
        UserError: the file does not exist.
    """
    if resume == "auto":
        last, begun = Path(output_dir) / "checkpoint.pth", Path(output_dir) / WITHIN_EPOCH
        if begun.is_file() and (training or not last.is_file()):
            return begun
        return last if last.is_file() else None
    if not resume:
        return None
    if not Path(resume).is_file():
        raise UserError(f"--resume: there is no file '{resume}'; give a checkpoint, or auto for the last one, if any")
    return Path(resume)


def capture_rng() -> dict:
    """States of all random number generators of this process, as tensors and plain values.

    Returns:
        ``python``, ``numpy``, ``torch``, ``cuda`` with one entry per visible device (none before CUDA is used), and on
        Apple's GPUs ``mps``.
    """
    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    apple = {"mps": torch.mps.get_rng_state()} if torch.backends.mps.is_available() else {}
    return {
        **apple,
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": {
            "words": torch.tensor(numpy_state["state"]["key"].tolist()),
            "position": numpy_state["state"]["pos"],
            "has_gauss": numpy_state["has_gauss"],
            "gauss": numpy_state["gauss"],
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore_rng(state: Mapping) -> None:
    """Set all generators to what ``capture_rng`` saw; devices that are absent here, or were there, are passed over.

    Raises:
        UserError: it is no such state.
    """
    try:
        saved = state["python"]
        random.setstate((saved["version"], tuple(saved["words"].tolist()), saved["gauss"]))
        if saved := state.get("numpy"):  # older checkpoints have it only where numpy was in use
            words = np.array(saved["words"].tolist(), dtype=np.uint32)
            np.random.set_state(("MT19937", words, saved["position"], saved["has_gauss"], saved["gauss"]))
        torch.set_rng_state(state["torch"])
        for device, device_state in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
            torch.cuda.set_rng_state(device_state, device)
        if "mps" in state and torch.backends.mps.is_available():
            torch.mps.set_rng_state(state["mps"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise UserError(f"the states of the random generators are damaged ({' '.join(str(error).split())})") from None


def _find_state_dict(checkpoint: object, source: str, ema: bool) -> Mapping:
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"'{source}' holds {type(checkpoint).__name__}, not weights; give {ACCEPTED}")
    if ema:
        if not isinstance(checkpoint.get("model_ema"), Mapping):
            raise UserError(f"'{source}' has no moving average of the weights (model_ema)")
        return checkpoint["model_ema"]
    for key in ("model", "state_dict"):
        if isinstance(checkpoint.get(key), Mapping):
            return checkpoint[key]
    if checkpoint and all(isinstance(value, Tensor) for value in checkpoint.values()):
        return checkpoint
    raise UserError(f"'{source}' has no weights, only {some([str(key) for key in checkpoint], 3)}; give {ACCEPTED}")


def _strip_prefixes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without what DistributedDataParallel and torch.compile put before all of them, in either order."""
    for prefix in ("module.", "_orig_mod."):
        if weights and all(name.startswith(prefix) for name in weights):
            return _strip_prefixes({name.removeprefix(prefix): value for name, value in weights.items()})
    return weights


def _differing_class_counts(
    model: nn.Module, state_dict: Mapping[str, Tensor], misshapen: list[str]
) -> tuple[int, int, str] | None:
    """Classes in the file, classes of the model, and the classifier's prefix, if that is where the two differ."""
    name, layer = last_layer(model)
    saved = state_dict.get(f"{name}.weight")
    if saved is None or f"{name}.weight" not in misshapen or saved.shape[1:] != layer.weight.shape[1:]:
        return None
    return len(saved), len(layer.weight), f"{name}."

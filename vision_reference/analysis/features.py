"""What a network makes of images: the input of its last linear layer and its logits, collected once and kept.

The last linear layer is found by looking, not by name: it is the one whose output is the network's output.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vision_reference.errors import UserError
from vision_reference.files import atomic_file
from vision_reference.progress import progress

_FORMAT = 1  # of the kept files; a changed meaning of what they hold needs a new number


@dataclass(frozen=True)
class Outputs:
    """A network's view of N images.

    Attributes:
        features: (N, h) float32, input of the last linear layer.
        logits: (N, K) float32.
        labels: (N,) int64.
    """

    features: np.ndarray
    logits: np.ndarray
    labels: np.ndarray

    @property
    def predictions(self) -> np.ndarray:
        """(N,) the likeliest class of each image."""
        return self.logits.argmax(axis=1)


@torch.inference_mode()
def find_last_layer(network: nn.Module, images: Tensor) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Name and layer whose output is the network's output: a ``Linear``, or a 1x1 ``Conv2d`` on a 1x1 map.

    Args:
        network: in evaluation mode.
        images: (B, C, H, W) to try it on.

    Raises:
        UserError: there is no such layer, as in SqueezeNet, which averages and clips after its last convolution.
    """
    outputs: dict[str, Tensor] = {}

    def record(name: str):
        # a copy: what follows may clip it in place
        return lambda _module, _inputs, output: outputs.__setitem__(name, output.clone())

    layers = {name: m for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    handles = [layer.register_forward_hook(record(name)) for name, layer in layers.items()]
    try:
        logits = network(images)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise UserError(f"{type(network).__name__} does not answer with one row of logits for each image")
    for name, output in reversed(outputs.items()):
        if output.numel() == logits.numel() and torch.allclose(output.reshape(logits.shape), logits, equal_nan=True):
            return name, layers[name]
    raise UserError(
        f"the logits of {type(network).__name__} are not the output of a linear layer (SqueezeNet's come from a "
        "convolution, clipped and averaged), so it has no penultimate features; choose another network"
    )


def last_weights(layer: nn.Linear | nn.Conv2d) -> tuple[np.ndarray, np.ndarray | None]:
    """Weight (K, h) and bias (K,) of what ``find_last_layer`` found, as float64; None for no bias."""
    weight = layer.weight.detach().double().flatten(1).cpu().numpy()
    return weight, None if layer.bias is None else layer.bias.detach().double().cpu().numpy()


@torch.inference_mode()
def collect(network: nn.Module, loader: Iterable[tuple[Tensor, ...]], title: str = "features") -> Outputs:
    """Features and logits of all images of ``loader``, which yields (images, labels, ...) on the network's device.

    Args:
        network: in evaluation mode.
        loader: with ``len()``, for the progress bar.
        title: what the progress bar says.

    Raises:
        UserError: as ``find_last_layer``; or the outputs are not finite.
    """
    seen: list[Tensor] = []
    features, logits, labels = [], [], []
    hook = None
    try:
        for images, targets, *_ in progress(loader, title):
            if hook is None:
                _, layer = find_last_layer(network, images[:2])
                hook = layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].flatten(1)))
            logits.append(network(images).float().cpu())
            features.append(seen.pop().float().cpu())
            labels.append(targets.cpu())
    finally:
        if hook is not None:
            hook.remove()
    outputs = Outputs(*(torch.cat(parts).numpy() for parts in (features, logits, labels)))
    if not (np.isfinite(outputs.features).all() and np.isfinite(outputs.logits).all()):
        raise UserError(f"{title}: the network's outputs are not finite; its weights are damaged")
    return outputs


def content_key(*facts: object) -> str:
    """A name for all that a result depends on; ``facts`` are what JSON can express."""
    return hashlib.sha256(json.dumps([_FORMAT, *facts]).encode()).hexdigest()[:32]


def kept(path: Path) -> Outputs | None:
    """What ``keep`` wrote to ``path``; None where there is nothing, or nothing whole."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = Outputs(arrays["features"], arrays["logits"], arrays["labels"])
    except Exception:  # damaged archives fail in many ways; whatever is wrong, it is made anew
        return None
    sound = len(found.features) == len(found.logits) == len(found.labels)
    return found if sound and found.features.ndim == found.logits.ndim == 2 else None


def keep(path: Path, outputs: Outputs) -> bool:
    """Write ``outputs`` for later runs, whole or not at all; False where the folder cannot be written to."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            np.savez(file, features=outputs.features, logits=outputs.logits, labels=outputs.labels)
    except OSError:
        return False
    return True

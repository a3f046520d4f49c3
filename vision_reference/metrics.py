"""What a run reports of an epoch: running averages, a progress line, which images the student gets right."""

import math
import time

import numpy as np
import torch
from torch import Tensor

from vision_reference.distillation import Losses
from vision_reference.images.folders import UNLABELLED
from vision_reference.machine import gather_objects, sum_over_ranks


def correct_in_top(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """How many of the B rows of ``logits`` (B, K) have their label (B,) among the k largest entries: a 0-d tensor."""
    return in_top(logits, labels, k).sum()


def in_top(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """For each of the B rows of ``logits`` (B, K) whether its label (B,) is among the k largest entries: (B,) bool."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (best == labels.unsqueeze(1)).any(dim=1)


class Outcomes:
    """Which validation images a model gets right, kept for comparisons of two models image by image."""

    def __init__(self) -> None:
        self._batches: list[Tensor] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Note a batch of this process: logits (B, K), labels (B,)."""
        self._batches.append(in_top(logits, labels, 1).to(torch.uint8))

    def gather(self) -> np.ndarray:
        """One uint8 for each validation image, in the data set's order: 1 where top-1 is right, else 0.

        Every process must call it; ``EvalBatchSampler`` gives process r of W the images r, r + W, r + 2 W, ...
        """
        own = torch.cat(self._batches).cpu().numpy() if self._batches else np.zeros(0, np.uint8)
        shares = gather_objects(own)
        merged = np.empty(sum(map(len, shares)), np.uint8)
        for rank, share in enumerate(shares):
            merged[rank :: len(shares)] = share
        return merged


class TrainingAverages:
    """Loss, its parts and top-1 accuracy over images, summed on the device so that no step waits for a number.

    Cross entropy and accuracy are means over the images that have a label.
    """

    NAMES = ("loss", "kd", "ce", "acc1")

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(self.NAMES) + 2, dtype=torch.float64, device=device)

    def add(self, losses: Losses, logits: Tensor, targets: Tensor) -> None:
        """Count a batch of B images: logits (B, K), targets (B,) or, for mixed images, probabilities (B, K)."""
        labels = targets.argmax(dim=1) if targets.ndim == 2 else targets
        labelled = (labels != UNLABELLED).sum().double()
        batch, correct = torch.full_like(labelled, len(labels)), 100 * correct_in_top(logits.detach(), labels, 1)
        total, kd, ce = (loss.detach().double() for loss in losses)
        self.sums += torch.stack([batch * total, batch * kd, labelled * ce, correct.double(), batch, labelled])

    def means(self, since: Tensor | None = None) -> dict[str, float]:
        """Averages of this process; with ``since`` (an earlier copy of ``sums``), of what came after it."""
        return self._divide(self.sums if since is None else self.sums - since)

    def global_means(self) -> dict[str, float]:
        """Averages over all processes."""
        return self._divide(sum_over_ranks(self.sums))

    def _divide(self, sums: Tensor) -> dict[str, float]:
        loss, kd, ce, correct, count, labelled = sums.tolist()
        of_labels = {
            name: total / labelled if labelled else math.nan for name, total in (("ce", ce), ("acc1", correct))
        }
        return {"loss": loss / count, "kd": kd / count, **of_labels}


class ProgressLine:
    """Rate, remaining time and current figures every ``every`` steps of an epoch.

    Args:
        epoch, epochs: number of this one, from 0, and of all.
        steps: in the epoch.
        every: steps from one line to the next.
        passed: seconds that the epoch has taken before, where it was interrupted.
    """

    def __init__(self, epoch: int, epochs: int, steps: int, every: int, passed: float = 0.0) -> None:
        self.title = f"Epoch {epoch + 1}/{epochs}"
        self.steps = steps
        self.every = every
        self.start = time.perf_counter() - passed

    def due(self, step: int) -> bool:
        """Whether step number ``step`` (from 0) is shown."""
        return step % self.every == 0 or step == self.steps - 1

    def text(self, step: int, lr: float, averages: dict[str, float], images: int, teacher: bool) -> str:
        """The line after step number ``step`` and ``images`` images of all processes."""
        elapsed = time.perf_counter() - self.start
        left = elapsed / (step + 1) * (self.steps - step - 1)
        kd = f"  kd {averages['kd']:.4f}" if teacher else ""
        right = "no labels" if math.isnan(averages["acc1"]) else f"top-1 {averages['acc1']:.2f} %"
        return (
            f"{self.title}  [{step + 1:>{len(str(self.steps))}}/{self.steps}]  lr {lr:.4g}  "
            f"loss {averages['loss']:.4f}{kd}  {right}  "
            f"{images / elapsed:.0f} images/s  ETA {int(left) // 60}:{int(left) % 60:02d}"
        )

"""What a run reports of an epoch: running averages, a progress line, which images the student gets right."""

import math
import time

import numpy as np
import torch
from torch import Tensor

from vision_reference.distillation import Losses
from vision_reference.images.folders import UNLABELLED
from vision_reference.losses.wide import widest_type
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
        self._labels: list[Tensor] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Note a batch of this process: logits (B, K), labels (B,)."""
        self._batches.append(in_top(logits, labels, 1).to(torch.uint8))
        self._labels.append(labels)

    def by_class(self, classes: int) -> np.ndarray:
        """(K, 2) images of each class and how many of them are right, over all processes, every one of which must call.

        Args:
            classes: K.
        """
        counts = np.zeros((classes, 2), np.int64)
        for right, labels in zip(self._batches, self._labels, strict=True):
            np.add.at(counts[:, 0], labels.cpu().numpy(), 1)
            np.add.at(counts[:, 1], labels.cpu().numpy(), right.cpu().numpy())
        return np.sum(gather_objects(counts), axis=0)

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
        self.sums = torch.zeros(len(self.NAMES) + 2, dtype=widest_type(device), device=device)

    def add(self, losses: Losses, logits: Tensor, targets: Tensor) -> None:
        """Count a batch of B images: logits (B, K), targets (B,) or, for mixed images, probabilities (B, K)."""
        labels = targets.argmax(dim=1) if targets.ndim == 2 else targets
        wide = self.sums.dtype
        labelled = (labels != UNLABELLED).sum().to(wide)
        batch, correct = torch.full_like(labelled, len(labels)), 100 * correct_in_top(logits.detach(), labels, 1)
        total, kd, ce = (loss.detach().to(wide) for loss in losses)
        self.sums += torch.stack([batch * total, batch * kd, labelled * ce, correct.to(wide), batch, labelled])

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


class RunClock:
    """How long a run still takes: what it has left, at the pace of the epoch before.

    Args:
        epochs: of the whole run.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.evaluation = 0.0  # seconds an epoch spends on anything but training, once one is over

    def note(self, epoch: float, training: float) -> None:
        """An epoch is over that took so many seconds in all, and so many to train."""
        self.evaluation = epoch - training

    def left(self, epoch: int, elapsed: float, share: float) -> float:
        """Seconds to the end of the run.

        Args:
            epoch: the one under way, from 0.
            elapsed: seconds since it began.
            share: of its steps that is done, above 0.
        """
        training = elapsed / share
        return training - elapsed + self.evaluation + (self.epochs - epoch - 1) * (training + self.evaluation)


class ProgressLine:
    """Figures, rate, what the time goes on and what is left of it, every ``every`` steps of an epoch.

    Args:
        epoch: from 0.
        steps: of an epoch.
        every: steps between lines.
        clock: of the run.
        passed: seconds that the epoch has taken before, where it was interrupted.
    """

    def __init__(self, epoch: int, steps: int, every: int, clock: RunClock, passed: float = 0.0) -> None:
        self.epoch = epoch
        self.steps = steps
        self.every = every
        self.clock = clock
        self.start = time.perf_counter() - passed

    def due(self, step: int) -> bool:
        """Whether step number ``step`` (from 0) is shown."""
        return step % self.every == 0 or step == self.steps - 1

    def text(
        self, step: int, lr: float, averages: dict[str, float], images: int, teacher: bool, waited: float, memory: str
    ) -> str:
        """The line after step number ``step``.

        Args:
            averages: of the steps since the last line.
            images: of all processes since the epoch began.
            teacher: whether there is one.
            waited: seconds that this process has waited for data since then.
            memory: what is in use.
        """
        elapsed, done = time.perf_counter() - self.start, (step + 1) / self.steps
        kd = f"  kd {averages['kd']:.4f}" if teacher else ""
        right = "no labels" if math.isnan(averages["acc1"]) else f"top-1 {averages['acc1']:.2f} %"
        return (
            f"Epoch {self.epoch + 1}/{self.clock.epochs}  [{step + 1:>{len(str(self.steps))}}/{self.steps}]  "
            f"lr {lr:.4g}  loss {averages['loss']:.4f}{kd}  {right}  "
            f"{images / elapsed:.0f} images/s  data {100 * waited / elapsed:.0f} %  {memory}  "
            f"ETA {duration(elapsed / done - elapsed)}, run {duration(self.clock.left(self.epoch, elapsed, done))}"
        )


class SlowProgress:
    """A line now and then about steps that usually are over before one is due.

    Args:
        title: what the steps are.
        steps: how many.
        every: seconds between lines.
    """

    def __init__(self, title: str, steps: int, every: float = 10.0) -> None:
        self.title = title
        self.steps = steps
        self.every = every
        self.done = 0
        self.start = self.last = time.perf_counter()

    def step(self) -> str | None:
        """Count a step; the line, if one is due."""
        self.done += 1
        now = time.perf_counter()
        if now - self.last < self.every:
            return None
        self.last = now
        left = (now - self.start) * (self.steps / self.done - 1)
        return f"{self.title}  [{self.done:>{len(str(self.steps))}}/{self.steps}]  ETA {duration(left)}"


def duration(seconds: float) -> str:
    """Time as m:ss, from an hour on as h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

"""Within an epoch: when to save what there is and when to stop, alike on all processes; how far the epoch has come."""

import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vision_reference.errors import UserError
from vision_reference.machine import Rank, gather_objects

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SAVE = 1  # what all agree on: nothing (0), to save, or to stop (the number of the signal)


@dataclass
class Begun:
    """How far an epoch has come, of this process.

    Attributes:
        images: that all processes have learned from.
        sums: of ``metrics.TrainingAverages``, over this process's images.
        misled: 0-d, steps of this process in which the teacher's logits were not finite.
        seconds: the epoch has taken.
    """

    images: int
    sums: Tensor
    misled: Tensor
    seconds: float

    def gathered(self) -> dict[str, Any]:
        """What a checkpoint keeps under ``within``: plain values, of all processes. All have to call it."""
        shares = gather_objects((self.sums.cpu(), float(self.misled)))
        return {
            "images": self.images,
            "seconds": self.seconds,
            "sums": [sums for sums, _ in shares],
            "misled": [misled for _, misled in shares],
        }

    @classmethod
    def of(cls, within: Mapping, rank: Rank, device: torch.device, source: str) -> "Begun":
        """The share of this process in ``within`` of the checkpoint ``source``; of other processes than now, 0 has all.

        Raises:
            UserError: it is not what ``gathered`` returns.
        """
        try:
            images, seconds = within["images"], within["seconds"]
            sums, misled = torch.stack(list(within["sums"])).double(), torch.tensor(within["misled"])
            good = isinstance(images, int) and isinstance(seconds, float) and sums.shape[1:] == (6,)
            good = good and images >= 0 and bool(sums.isfinite().all()) and misled.shape == sums.shape[:1]
            if not good:
                raise ValueError
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError):
            raise UserError(f"'{source}' is damaged: what it says of the epoch it is in makes no sense") from None
        if len(sums) == rank.world_size:
            own = sums[rank.rank], misled[rank.rank]
        else:
            own = (sums.sum(0), misled.sum()) if rank.is_main else (torch.zeros_like(sums[0]), torch.zeros(()))
        return cls(images, own[0], own[1].to(device), seconds)  # the sums may be wider than the device's numbers

    def batches(self, step_sizes: Sequence[int], accumulate: int, source: str) -> int:
        """The number of batches that are done, where an epoch has batches of ``step_sizes`` images.

        Raises:
            UserError: no update of the weights ends after these images: batch size or processes are others.
        """
        done = 0
        for number, size in enumerate(step_sizes, 1):
            done += size
            if done == self.images and (number % accumulate == 0 or number == len(step_sizes)):
                return number
        raise UserError(
            f"'{source}' is within an epoch, after {self.images} images, where with these batches no update ends; give "
            "--batch-size, --accumulate and as many processes as before, or --resume with checkpoint.pth"
        )


class Pauses:
    """Signals and clock of a training; see ``pauses``.

    Args:
        rank: this process.
        minutes: from one save within an epoch to the next; None for none.
    """

    def __init__(self, rank: Rank, minutes: float | None) -> None:
        self.rank = rank
        self.seconds = minutes * 60 if minutes else None
        self.signal = 0  # that this process has received
        self.saved()
        # Of their own, on the CPU: training does not wait for the GPU because of them.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._asked: tuple[Tensor, dist.Work] | None = None

    def saved(self) -> None:
        """Take note that what there is has been saved."""
        self._last = time.monotonic()

    def wanted(self) -> int:
        """Asked by all after an update: 0, or the same on all of them: 1 to save, a signal's number to save and stop.

        Of several processes, what one wants is what all do an update later: meanwhile the word goes round, and nobody
        waits for it.
        """
        due = self.seconds is not None and self.rank.is_main and time.monotonic() - self._last >= self.seconds
        own = self.signal or (SAVE if due else 0)
        if self._group is None:
            return own
        wanted = 0
        if self._asked is not None:
            word, work = self._asked
            work.wait()
            wanted = int(word)
        word = torch.tensor(0 if wanted else own)
        self._asked = word, dist.all_reduce(word, dist.ReduceOp.MAX, self._group, async_op=True)
        return wanted


@contextmanager
def pauses(rank: Rank, minutes: float | None) -> Iterator[Pauses]:
    """SIGTERM and SIGUSR1 are noted in the block, in place of what else they would do; however often they come."""
    noted = Pauses(rank, minutes)

    def note(number: int, _: object) -> None:
        noted.signal = number

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

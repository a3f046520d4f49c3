"""What is done to batches of images on their way to the training loop: mixing, and a teacher's logits beside them.

These are loaders around another loader, see ``images.batch.Loader``; where there is a teacher, running along or stored,
its logits come with the batch.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2

from vision_reference.distillation import Teacher, Teachers
from vision_reference.images.batch import Batch, Loader
from vision_reference.images.seeds import combine_seeds, seeded
from vision_reference.losses.wide import widest_type
from vision_reference.soft_labels.stored_teachers import SoftLabels


class TaughtBatch(NamedTuple):
    """A ``Batch`` and what a teacher says about it.

    Attributes:
        images, targets, indices: as in ``Batch``.
        logits: (B, K) of the teacher, on the device of the images.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    logits: Tensor


class TimedLoader:
    """Another loader's batches, and how long one had to wait for them.

    Attributes:
        waited: seconds of the epoch that was begun last.
    """

    def __init__(self, loader: "Loader | SoftLabelLoader | TeacherLoader") -> None:
        self.loader = loader
        self.step_sizes = loader.step_sizes
        self.waited = 0.0

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, number: int, first: int = 0) -> Iterator:
        """The batches of epoch ``number`` from batch ``first`` on."""
        self.waited = 0.0
        batches = iter(self.loader.epoch(number, first))
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch


class MixingLoader:
    """Another loader's batches with mixup or cutmix applied; targets become class probabilities (B, K).

    Where both are asked for, each batch takes one of them at random. The choice is a function of (seed, epoch, step,
    process), like all augmentation.

    Args:
        loader: its targets are class numbers.
        num_classes: K.
        mixup_alpha, cutmix_alpha: parameter of the Beta distribution of the mixing weight; 0 leaves that method out.
        seed, rank: of the run and of this process.
    """

    def __init__(
        self,
        loader: Loader,
        *,
        num_classes: int,
        mixup_alpha: float,
        cutmix_alpha: float,
        seed: int,
        rank: int,
    ) -> None:
        self.loader = loader
        self.step_sizes = loader.step_sizes
        self.seed = seed
        self.rank = rank
        self.methods: list[Callable] = []
        if mixup_alpha:
            self.methods.append(v2.MixUp(alpha=mixup_alpha, num_classes=num_classes))
        if cutmix_alpha:
            self.methods.append(v2.CutMix(alpha=cutmix_alpha, num_classes=num_classes))

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """The mixed batches of epoch ``number`` from batch ``first`` on."""
        for step, (images, targets, indices) in enumerate(self.loader.epoch(number, first), first):
            with seeded(combine_seeds(self.seed, number, step, self.rank)):
                method = self.methods[int(torch.randint(len(self.methods), ()))]
                images, targets = method(images, targets)
            yield Batch(images, targets, indices)


class SoftLabelLoader:
    """Another loader's batches with what the stored teachers answered.

    Args:
        loader: shows the views that the teachers saw.
        soft_labels: the stored teachers.
    """

    def __init__(self, loader: Loader, soft_labels: SoftLabels) -> None:
        self.loader = loader
        self.soft_labels = soft_labels
        self.step_sizes = loader.step_sizes

    @property
    def teachers(self) -> list[dict[str, str]]:
        """Who taught, for checkpoints: network, folder of the store, SHA-256 of the weights."""
        told = ((store, store.manifest["teacher"]) for store in self.soft_labels.stores)
        return [
            {"arch": store.arch, "source": str(store.folder), "weights_sha256": str(teacher.get("weights_sha256"))}
            for store, teacher in told
        ]

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, number: int, first: int = 0) -> Iterator[TaughtBatch]:
        """The batches of epoch ``number`` from batch ``first`` on, with the answers to the view that it shows."""
        for images, targets, indices in self.loader.epoch(number, first):
            logits = self.soft_labels.logits(number, indices.numpy())
            if images.device.type == "cuda":
                logits = logits.pin_memory()
            elif logits.dtype == torch.float64:
                logits = logits.to(widest_type(images.device))
            yield TaughtBatch(images, targets, indices, logits.to(images.device, non_blocking=True))


class TeacherLoader:
    """Another loader's batches with what a teacher answers.

    On a GPU the next batch travels there and is answered while the student works on this one: up to three batches are
    there at a time. Not so beside an epoch's first step, in which cuDNN may time its algorithms.

    Args:
        loader: its images are what the teacher is to see.
        teacher: on the device of the images; one, or several of which it is made.
        look_ahead: False: one after the other on a GPU, too.
    """

    def __init__(self, loader: Loader, teacher: Teacher | Teachers, *, look_ahead: bool = True) -> None:
        self.loader = loader
        self.teacher = teacher
        self.step_sizes = loader.step_sizes
        self.look_ahead = look_ahead and teacher.device.type == "cuda"
        # One for all epochs: torch keeps freed memory by stream, a working set of the teacher's for each.
        self._side = torch.cuda.Stream(teacher.device) if self.look_ahead else None

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def waited(self) -> float:
        """Seconds that were waited for images, not for the teacher; 0 where nobody measures."""
        return getattr(self.loader, "waited", 0.0)

    def epoch(self, number: int, first: int = 0) -> Iterator[TaughtBatch]:
        """The batches of epoch ``number`` from batch ``first`` on, with the teacher's answers."""
        answered = (TaughtBatch(*batch, self.teacher(batch.images)) for batch in self.loader.epoch(number, first))
        return answered if self._side is None else _made_ahead(answered, self._side)


def _made_ahead(batches: Iterator[TaughtBatch], side: torch.cuda.Stream) -> Iterator[TaughtBatch]:
    """The same batches; all but the first are made on the stream ``side``, beside the caller's work on the one before.

    The second is begun when the caller's first step is queued, so the first step has the GPU to itself.
    """

    def make() -> TaughtBatch | None:
        # After the caller's steps queued so far: what they read may be overwritten then, and however far Python is
        # ahead of the GPU, there are only the batch that was handed out last, the next one, and the one after.
        side.wait_stream(torch.cuda.current_stream(side.device))
        with torch.cuda.stream(side):
            return next(batches, None)

    first = next(batches, None)
    if first is None:
        return
    yield first
    following = make()
    while (batch := following) is not None:
        torch.cuda.current_stream(side.device).wait_stream(side)
        following = make()
        yield batch

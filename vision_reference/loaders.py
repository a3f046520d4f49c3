"""Batches as the training loop takes them: (images, labels) on the device, in the model's memory layout, normalized.

Where there is a teacher, running along or stored, its logits come third.

A loader has ``len()`` (batches of this process), ``set_epoch(epoch)``, ``step_sizes`` (images per step, summed over
processes; training only) and can be iterated once per epoch.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2

from vision_reference.distillation import Teacher
from vision_reference.images.folders import seeded
from vision_reference.images.pipelines import Normalize
from vision_reference.images.samplers import EvalBatchSampler, TrainBatchSampler, combine_seeds
from vision_reference.soft_labels.store import SoftLabels


class TorchvisionLoader:
    """A data set decoded and augmented by worker processes, finished on the device.

    Args:
        dataset: (pixels, label) for keys ``(index, seed)``; uint8 pixels are normalized here, float ones are done.
        batches: what a step of this process holds.
        workers: number of worker processes; 0 loads in this process.
        normalize: applied to uint8 images on the device.
        device, memory_format: of the images handed out.
    """

    def __init__(
        self,
        dataset: Dataset,
        batches: TrainBatchSampler | EvalBatchSampler,
        *,
        workers: int,
        normalize: Normalize,
        device: torch.device,
        memory_format: torch.memory_format,
    ) -> None:
        self.batches = batches
        self.normalize = normalize
        self.device = device
        self.memory_format = memory_format
        self._loader = DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=_collate,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=_single_thread,
            # torch draws a seed for the workers when it starts them. Drawn from the global generator, a resumed run
            # would draw it once more than one that was never stopped, and its dropout would differ from then on.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def step_sizes(self) -> list[int]:
        return self.batches.step_sizes

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation the next iteration yields."""
        self.batches.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self._loader:
            # The bytes travel; layout and normalization are the device's work.
            images = images.to(self.device, non_blocking=True).contiguous(memory_format=self.memory_format)
            if images.dtype == torch.uint8:
                images = self.normalize(images)
            yield images, labels.to(self.device, non_blocking=True)


class MixingLoader:
    """Another loader's batches with mixup or cutmix applied; labels become class probabilities (B, K).

    Where both are asked for, each batch takes one of them at random. The choice is a function of (seed, epoch, step,
    process), like all augmentation.

    Args:
        loader: yields (images, class numbers).
        num_classes: K.
        mixup_alpha, cutmix_alpha: parameter of the Beta distribution of the mixing weight; 0 leaves that method out.
        seed, rank: of the run and of this process.
    """

    def __init__(
        self,
        loader: TorchvisionLoader,
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
        self.epoch = 0
        self.methods: list[Callable] = []
        if mixup_alpha:
            self.methods.append(v2.MixUp(alpha=mixup_alpha, num_classes=num_classes))
        if cutmix_alpha:
            self.methods.append(v2.CutMix(alpha=cutmix_alpha, num_classes=num_classes))

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch
        self.loader.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for step, (images, labels) in enumerate(self.loader):
            with seeded(combine_seeds(self.seed, self.epoch, step, self.rank)):
                method = self.methods[torch.randint(len(self.methods), ()).item()]
                mixed = method(images, labels)
            yield mixed


class SoftLabelLoader:
    """Another loader's batches with what the stored teachers answered: (images, labels, logits (B, K)).

    Args:
        loader: yields (images, labels) for the keys of its ``batches``.
        soft_labels: the stored teachers; their views are those that ``loader`` shows.
    """

    def __init__(self, loader: TorchvisionLoader, soft_labels: SoftLabels) -> None:
        self.loader = loader
        self.soft_labels = soft_labels
        self.step_sizes = loader.step_sizes
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch
        self.loader.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        # The sampler gives the same keys whenever it is asked, here those whose images the loader hands out.
        for keys, (images, labels) in zip(self.loader.batches, self.loader, strict=True):
            logits = self.soft_labels.logits(self.epoch, np.array([index for index, _ in keys]))
            if images.device.type == "cuda":
                logits = logits.pin_memory()
            yield images, labels, logits.to(images.device, non_blocking=True)


class TeacherLoader:
    """Another loader's batches with what a teacher answers: (images, labels, logits (B, K)).

    On a GPU the next batch travels there and is answered while the student works on this one.

    Args:
        loader: yields (images, labels), as the teacher is to see them.
        teacher: on the device of the images.
    """

    def __init__(self, loader: TorchvisionLoader | MixingLoader, teacher: Teacher) -> None:
        self.loader = loader
        self.teacher = teacher
        self.step_sizes = loader.step_sizes

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.loader.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        answered = ((images, labels, self.teacher(images)) for images, labels in self.loader)
        return _made_ahead(answered, self.teacher.device) if self.teacher.device.type == "cuda" else answered


def _made_ahead(batches: Iterator[tuple[Tensor, ...]], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """The same batches, each made on a CUDA stream of its own beside the caller's work on the batch before."""
    side = torch.cuda.Stream(device)

    def make() -> tuple[Tensor, ...] | None:
        # After the caller's steps queued so far: what they read may be overwritten then, and no more than two batches
        # are ever there, however far the Python side is ahead of the GPU.
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            return next(batches, None)

    following = make()
    while (batch := following) is not None:
        torch.cuda.current_stream(device).wait_stream(side)
        following = make()
        yield batch


def _collate(items: list[tuple[Tensor, object]]) -> tuple[Tensor, Tensor]:
    """A batch whose images are channels last in memory, which is how decoders leave them: nothing is rearranged."""
    images, targets = default_collate([(image.permute(1, 2, 0), target) for image, target in items])
    return images.permute(0, 3, 1, 2), targets


def _single_thread(_: int) -> None:
    torch.set_num_threads(1)

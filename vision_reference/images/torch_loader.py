"""Batches of images that are decoded and augmented by torchvision in worker processes."""

import atexit
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from vision_reference.images.batch import Batch
from vision_reference.images.decoding import read_image
from vision_reference.images.folders import Sample
from vision_reference.images.pipelines import Normalize, drawn_geometry
from vision_reference.images.presets import Preset
from vision_reference.images.samplers import BatchSampler, Key, TrainBatchSampler
from vision_reference.images.seeds import seeded


class ImageDataset(Dataset):
    """(pixels, label) for keys ``(index, seed)``: the seed fixes every random choice of ``transform``.

    Args:
        samples: (path, label) pairs.
        transform: from what ``read`` returns to a tensor, drawing on torch's CPU generator.
        read: from a path to its image, ``read_image`` or ``read_pixels``; asked to ``check`` when it reads a file for
            the first time, whichever worker process does.
    """

    def __init__(self, samples: Sequence[Sample], transform: Callable, read: Callable = read_image) -> None:
        self.samples = samples
        self.transform = transform
        self.read = read
        self._checked = torch.zeros(len(samples), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.samples)

    def image(self, index: int) -> Any:
        """The image of a sample, as ``read`` returns it.

        Raises:
            UserError: it cannot be read, with its path.
        """
        image = self.read(self.samples[index][0], check=not self._checked[index])
        self._checked[index] = True
        return image

    def __getitem__(self, key: Key) -> tuple[Tensor, Any]:
        index, seed = key
        image = self.image(index)
        with seeded(seed):
            return self.transform(image), self.samples[index][1]


class ViewDataset(ImageDataset):
    """(pixels, geometry (5,) int32) for keys ``(index, seed)``: the images of ``ImageDataset`` and their crop and flip.

    Args:
        preset: whose augmentation ``transform`` is.
    """

    def __init__(self, *args: Any, preset: Preset) -> None:
        super().__init__(*args)
        self.preset = preset

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        index, seed = key
        image = self.image(index)
        size = (image.shape[1], image.shape[2]) if isinstance(image, Tensor) else (image.height, image.width)
        with seeded(seed):
            geometry = drawn_geometry(self.preset, size)
        with seeded(seed):
            return self.transform(image), torch.tensor(geometry, dtype=torch.int32)


class TorchvisionLoader:
    """A data set decoded and augmented by worker processes, finished on the device.

    Args:
        dataset: (pixels, target) for keys ``(index, seed)``; uint8 pixels are normalized here, float ones are done.
        batches: what a step of this process holds.
        workers: number of worker processes; 0 loads in this process.
        normalize: applied to uint8 images on the device.
        device, memory_format: of the images handed out.
    """

    def __init__(
        self,
        dataset: Dataset,
        batches: BatchSampler,
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
        self._order = _Order(batches)
        self._loader: DataLoader = DataLoader(
            dataset,
            batch_sampler=self._order,
            collate_fn=_collate,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=_begin_worker,
            # torch draws a seed for the workers when it starts them. Drawn from the global generator, a resumed run
            # would draw it once more than one that was never stopped, and its dropout would differ from then on.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def step_sizes(self) -> list[int]:
        """Images of each step, summed over processes."""
        return cast(TrainBatchSampler, self.batches).step_sizes

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``number`` from batch ``first`` on.

        Raises:
            UserError: a file that cannot be read, with its path.
        """
        self._order.epoch, self._order.first = number, first
        for images, targets in self._loader:
            # The bytes travel; layout and normalization are the device's work.
            images = images.to(self.device, non_blocking=True).contiguous(memory_format=self.memory_format)
            if images.dtype == torch.uint8:
                images = self.normalize(images)
            yield Batch(images, targets.to(self.device, non_blocking=True), self._order.indices.popleft())


class _Order:
    """A sampler as torch's ``DataLoader`` takes it, and the indices of what that has asked for but not handed out."""

    def __init__(self, batches: BatchSampler) -> None:
        self.batches = batches
        self.epoch = self.first = 0
        self.indices: deque[Tensor] = deque()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        self.indices.clear()  # of an epoch that was not carried to its end
        for keys in islice(self.batches.epoch(self.epoch), self.first, None):
            self.indices.append(torch.tensor([index for index, _ in keys]))
            yield keys


def _collate(items: list[tuple[Tensor, object]]) -> tuple[Tensor, Tensor]:
    """A batch whose images are channels last in memory, which is how decoders leave them: nothing is rearranged."""
    images, targets = default_collate([(image.permute(1, 2, 0), target) for image, target in items])
    return images.permute(0, 3, 1, 2), targets


def _begin_worker(_: int) -> None:
    torch.set_num_threads(1)
    # A scheduler's warning reaches all processes; what it asks for is the training's to do, which needs its workers.
    # These end when the training tells them to, or is no more.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    # Those that an error has left behind. Python sends them SIGTERM, and would then wait for them for ever. torch takes
    # the end of a worker for a fault of its own.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()

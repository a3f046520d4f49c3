"""The same batches as ``torch_loader.TorchvisionLoader``, decoded and augmented by NVIDIA DALI on the CPU or the GPU.

Order, seeds and split over processes come from the same samplers. What is random is computed from each sample's seed
(``dali_views``) and only executed by DALI or torch, so that the pixels are a function of (run's seed, epoch, image) and
neither of the number of processes nor of where a run was resumed. Crops are those of the same distribution as
torchvision's, not the very same ones; evaluation shows the same pixels to rounding.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import cast

import numpy as np
import torch
from torch import Tensor

from vision_reference.errors import UserError
from vision_reference.images.batch import Batch
from vision_reference.images.dali_views import EvaluationView, TrainingView
from vision_reference.images.decoding import read_encoded
from vision_reference.images.folders import Sample
from vision_reference.images.pipelines import Normalize
from vision_reference.images.samplers import BatchSampler, Key, TrainBatchSampler

_READ_AHEAD = 2  # batches whose files are being read while DALI works on the ones before
_QUEUE = 2  # batches that DALI keeps ready


def load_dali():
    """The module ``nvidia.dali`` with all that is used of it (``fn``, ``types``, ``math``, ``plugin.pytorch``).

    Raises:
        UserError: DALI is not installed.
    """
    try:
        import nvidia.dali.plugin.pytorch
    except ImportError:
        raise UserError(
            "--loader dali needs NVIDIA DALI: run scripts/setup.sh --dali, or install "
            "nvidia-dali-cuda110==1.34.0 or nvidia-dali-cuda120 with pip; or use --loader torchvision"
        ) from None
    return nvidia.dali


@dataclass(frozen=True)
class Underway:
    """A batch on its way through DALI.

    Attributes:
        keys: B pairs (index, seed).
        sizes: (B, 2) heights and widths of the files' images in pixels.
        values: what the view chose for each, see ``TrainingView.arguments``.
        inputs: what DALI reads without a copy of its own, kept alive here.
    """

    keys: list[Key]
    sizes: np.ndarray
    values: dict[str, np.ndarray]
    inputs: list


class DaliLoader:
    """Batches from files, through DALI; the contract is that of ``TorchvisionLoader``.

    Where images are decoded on the CPU and only cropped, resized and mirrored, torch does so; else DALI's graph does.

    Args:
        samples: (path, label) pairs.
        batches: which samples a step of this process holds, and their seeds.
        view: what is shown of an image.
        threads: that read files, decode and resize on the CPU.
        mean, std: per channel, of pixels scaled to 0..1.
        device, memory_format: of the images handed out.
        decode_on: "cpu", or "gpu" for DALI's decoder on ``device``.

    Raises:
        UserError: DALI is not installed, or ``decode_on`` is "gpu" without a GPU; while iterating: a file that cannot
            be read or decoded, with its path.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        batches: BatchSampler,
        view: TrainingView | EvaluationView,
        *,
        threads: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        memory_format: torch.memory_format,
        decode_on: str,
    ) -> None:
        if decode_on == "gpu" and device.type != "cuda":
            raise UserError("--dali-device gpu needs a GPU to train on; use --dali-device cpu")
        load_dali()
        self.samples = samples
        self.batches = batches
        self.view = view
        self.threads = max(1, threads)
        self.mean, self.std = mean, std
        self.normalize = Normalize(mean, std, device)
        self.device = device
        self.memory_format = memory_format
        self.decode_on = decode_on
        self.in_dali = decode_on == "gpu" or view.needs_dali_after_decoding
        self._pipeline = None
        self._files: Iterator[list] = iter(())
        self._in_flight: deque[Underway] = deque()
        self._checked = np.zeros(len(samples), dtype=bool)  # files in whose image data damage was looked for

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
        # An iteration that is not carried to its end leaves batches in the pipeline, so it takes the pipeline with it.
        pipeline, self._pipeline = self._pipeline or self._build(), None
        self._in_flight.clear()
        with ThreadPoolExecutor(self.threads) as readers:
            self._files = self._read_ahead(number, first, readers)
            while True:
                try:
                    (images,) = pipeline.run()
                except StopIteration:
                    break
                except RuntimeError as error:
                    raise self._explained(error) from error
                batch = self._in_flight.popleft()
                finished = self._copied(images) if self.in_dali else self._finished(images, batch.values, readers)
                indices = torch.tensor([index for index, _ in batch.keys])
                yield Batch(finished, self.targets(batch).to(self.device, non_blocking=True), indices)
        pipeline.reset()
        self._pipeline = pipeline

    def targets(self, batch: Underway) -> Tensor:
        """What is handed out beside the images of a batch: the labels (B,)."""
        return torch.tensor([self.samples[index][1] for index, _ in batch.keys])

    def _read_ahead(self, epoch: int, first: int, readers: ThreadPoolExecutor) -> Iterator[list]:
        """Inputs of DALI's pipeline, batch by batch, the files of the next ones being read meanwhile."""
        waiting: deque = deque()
        for keys in islice(self.batches.epoch(epoch), first, None):
            indices = [index for index, _ in keys]
            shares = [indices[start :: self.threads] for start in range(self.threads)]
            waiting.append((keys, [readers.submit(self._read, share) for share in shares]))
            if len(waiting) > _READ_AHEAD:
                yield self._inputs(*waiting.popleft())
        while waiting:
            yield self._inputs(*waiting.popleft())

    def _read(self, indices: list[int]) -> list[tuple[np.ndarray, tuple[int, int]]]:
        """Bytes and sizes of some files; damage is looked for when a file is read for the first time."""
        files = []
        for index in indices:
            files.append(read_encoded(self.samples[index][0], check=not self._checked[index]))
            self._checked[index] = True
        return files

    def _inputs(self, keys: list[Key], jobs: list) -> list:
        files: list = [None] * len(keys)
        for start, job in enumerate(jobs):
            files[start :: self.threads] = job.result()
        sizes = np.array([size for _, size in files], dtype=np.int64)
        values = self._arguments(keys, sizes)
        inputs = [[data for data, _ in files], *self._for_dali(values).values()]
        self._in_flight.append(Underway(keys, sizes, values, inputs))
        return inputs

    def _arguments(self, keys: list[Key], sizes: np.ndarray) -> dict[str, np.ndarray]:
        seeds = np.array([seed for _, seed in keys], dtype=np.uint64)
        return self.view.arguments(sizes, seeds, np.array([index for index, _ in keys]))

    def _for_dali(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Those of a batch's arguments that DALI's graph takes."""
        names = values if self.in_dali else self.view.decoder_arguments
        return {name: values[name] for name in names}

    def _build(self):
        dali = load_dali()
        fn, types = dali.fn, dali.types
        on_gpu = self.device.type == "cuda"
        # A batch of the first two indices tells the names; every batch has the same.
        names = list(self._for_dali(self._arguments([(0, 0), (0, 0)], np.full((2, 2), 512))))
        largest = max((len(keys) for keys in self.batches.epoch(0)), default=1)
        pipeline = dali.Pipeline(
            batch_size=largest,
            num_threads=self.threads,
            device_id=self.device.index if on_gpu else None,
            prefetch_queue_depth=_QUEUE,
        )
        with pipeline:
            # Not copied: what DALI reads stays in self._in_flight until its batch is out.
            encoded, *rest = fn.external_source(
                source=lambda: next(self._files), num_outputs=1 + len(names), batch=True, no_copy=True
            )
            values = dict(zip(names, rest, strict=True))
            decoder, crop = fn.decoders.image, {name: values[name] for name in self.view.decoder_arguments}
            if crop:
                decoder, crop["axes"] = fn.decoders.image_slice, [0, 1]
            place = "mixed" if self.decode_on == "gpu" else "cpu"
            images = decoder(encoded, device=place, **crop, **_as_stored(decoder))
            if self.in_dali:
                images = self.view.pixels(dali, images, values, lambda x: x.gpu() if on_gpu else x)
                images = fn.crop_mirror_normalize(
                    images,
                    mirror=values.get("mirror", 0),
                    mean=[255 * part for part in self.mean],
                    std=[255 * part for part in self.std],
                    dtype=types.FLOAT,
                    output_layout="HWC" if self.memory_format == torch.channels_last else "CHW",
                )
            pipeline.set_outputs(images)
        pipeline.build()
        return pipeline

    def _finished(self, decoded, values: dict[str, np.ndarray], workers: ThreadPoolExecutor) -> Tensor:
        """Batch (B, C, H, W) from DALI's list of decoded parts of images."""
        side = self.view.crop_size
        pixels = torch.empty(len(decoded), side, side, 3, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        rows = pixels.numpy()  # the workers are not in this thread's inference mode, where there is one

        def finish(start: int) -> None:
            for place in range(start, len(decoded), self.threads):
                part = torch.from_numpy(np.asarray(decoded[place])).permute(2, 0, 1)
                chosen = {name: value[place] for name, value in values.items()}
                rows[place] = self.view.finish(part, chosen).permute(1, 2, 0).numpy()

        list(workers.map(finish, range(self.threads)))
        images = pixels.permute(0, 3, 1, 2).to(self.device, non_blocking=True)
        return self.normalize(images.contiguous(memory_format=self.memory_format))

    def _copied(self, images) -> Tensor:
        """DALI's finished batch as a tensor (B, C, H, W) in memory that is not DALI's, which DALI would overwrite."""
        batch = images.as_tensor()
        if self.device.type == "cuda":
            tensor = torch.empty(tuple(batch.shape()), dtype=torch.float32, device=self.device)
            load_dali().plugin.pytorch.feed_ndarray(batch, tensor, cuda_stream=torch.cuda.current_stream(self.device))
        else:
            tensor = torch.from_numpy(np.array(batch)).to(self.device)
        return tensor.permute(0, 3, 1, 2) if self.memory_format == torch.channels_last else tensor

    def _explained(self, error: RuntimeError) -> UserError:
        """The user's mistake behind a failure of DALI: which file it was."""
        for batch in self._in_flight:
            for index, _ in batch.keys:
                path = self.samples[index][0]
                if not _decodes(path):
                    return UserError(f"DALI cannot decode {path}; convert it, or use --loader torchvision")
        raise error


class DaliViewLoader(DaliLoader):
    """Batches of (images, geometry (B, 5) int32): those of ``DaliLoader`` with their crop and flip."""

    def targets(self, batch: Underway) -> Tensor:
        """Geometry (B, 5) of a batch."""
        values, whole = batch.values, batch.sizes
        starts, shapes = values.get("start", np.zeros_like(whole)), values.get("shape", whole)
        flips = values.get("mirror", np.zeros(len(whole), np.int32))
        return torch.from_numpy(np.concatenate([starts, shapes, flips[:, None]], axis=1).astype(np.int32))


def _decodes(path: str) -> bool:
    dali = load_dali()
    pipeline = dali.Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipeline:
        encoded = dali.fn.external_source(source=lambda: [read_encoded(path)[0]], batch=True)
        pipeline.set_outputs(dali.fn.decoders.image(encoded, device="cpu"))
    pipeline.build()
    try:
        pipeline.run()
    except RuntimeError:
        return False
    return True


def _as_stored(decoder) -> dict[str, bool]:
    """Newer DALIs turn images by their EXIF orientation unless told not to; torchvision and older DALIs never do."""
    return {"adjust_orientation": False} if "adjust_orientation" in (decoder.__doc__ or "") else {}

"""The same batches as ``loaders.TorchvisionLoader``, decoded and augmented by NVIDIA DALI on the CPU or the GPU.

Order, seeds and split over processes come from the same samplers. What is random is computed here from each sample's
seed (``random_geometry``) and only executed by DALI, so that the pixels are a function of (run's seed, epoch, image)
and neither of the number of processes nor of where a run was resumed. Crops are those of the same distribution as
torchvision's, not the very same ones; evaluation shows the same pixels to rounding.
"""

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vision_reference.datasets import Sample, read_image
from vision_reference.errors import UserError
from vision_reference.image_files import read_encoded
from vision_reference.presets import Preset
from vision_reference.random_geometry import centre_crop, movements, random_crops, uniform_numbers
from vision_reference.samplers import EvalBatchSampler, TrainBatchSampler, combine_seeds

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
            "--loader dali needs NVIDIA DALI: run scripts/setup.sh without --no-dali, or install "
            "nvidia-dali-cuda110==1.34.0 or nvidia-dali-cuda120 with pip; or use --loader torchvision"
        ) from None
    return nvidia.dali


@dataclass(frozen=True)
class TrainingView:
    """A preset's random augmentation as DALI does it; ``crop_size`` is the side of the result in pixels."""

    preset: Preset
    crop_size: int
    interpolation: str = "bilinear"

    def arguments(self, sizes: np.ndarray, seeds: np.ndarray, indices: np.ndarray) -> dict[str, np.ndarray]:
        """What DALI is told about each sample: {name: (B, ...)}.

        Args:
            sizes: (B, 2) heights and widths in pixels.
            seeds: (B,) uint64.
            indices: (B,) numbers of the samples; they make no difference here.
        """
        preset, values = self.preset, {}
        # One stream of random numbers per purpose, so that no two choices move together.
        crop_seeds, move_seeds, choice_seeds = (_stream(seeds, number) for number in range(3))
        if preset.crop_scale:
            values["start"], values["shape"] = random_crops(crop_seeds, sizes, preset.crop_scale, preset.crop_ratio)
        if preset.rotation or preset.shift:
            values["move"] = movements(move_seeds, self.crop_size, preset.rotation, preset.shift)
        mirror, grey, bright, contrast = uniform_numbers(choice_seeds, 4).T
        if preset.mirror:
            values["mirror"] = (mirror < 0.5).astype(np.int32)
        if preset.grayscale:
            values["saturation"] = (grey >= preset.grayscale).astype(np.float32)
        if preset.brightness or preset.contrast:
            values["brightness"] = (1 + preset.brightness * (2 * bright - 1)).astype(np.float32)
            values["contrast"] = (1 + preset.contrast * (2 * contrast - 1)).astype(np.float32)
        return values

    def pixels(self, dali, encoded, values: dict, decoder: str, to_device):
        """DALI's graph from encoded images to pixels (0..255) of ``crop_size``, mirrored later, while normalizing."""
        fn, types = dali.fn, dali.types
        if "start" in values:
            crop = {"start": values["start"], "shape": values["shape"], "axes": [0, 1]}
            images = fn.decoders.image_slice(encoded, device=decoder, **crop, **_as_stored(fn.decoders.image_slice))
        else:
            images = fn.decoders.image(encoded, device=decoder, **_as_stored(fn.decoders.image))
        images = fn.resize(images, size=[self.crop_size] * 2, **_filter(types, self.interpolation))
        images = to_device(images)
        if "move" in values:
            images = fn.warp_affine(images, matrix=values["move"], fill_value=0, interp_type=types.INTERP_LINEAR)
        if "saturation" in values:
            images = fn.hsv(images, saturation=values["saturation"])
        if "brightness" in values:
            # torchvision's contrast turns about the mean grey of each image. Arithmetic, because DALI's own operator
            # takes no pivot from the GPU.
            grey = fn.color_space_conversion(images, image_type=types.RGB, output_type=types.GRAY)
            pivot, bright, contrast = (
                fn.reductions.mean(grey),
                *map(to_device, (values["brightness"], values["contrast"])),
            )
            images = dali.math.clamp(bright * (pivot + contrast * (images - pivot)), 0.0, 255.0)
        return images


@dataclass(frozen=True)
class StoredView(TrainingView):
    """A training view whose crop and flip are those that a teacher saw; all further choices follow from the seed.

    Boxes that were drawn by torchvision can thus be decoded here, as regions of interest; pixels then differ by
    rounding in decoder and filter (on smooth images by two grey levels at most and a fifth of one in the mean).

    Args:
        views: (M, N) records ``seed``, ``box``, ``flip`` of N samples.
    """

    views: np.ndarray = None

    def arguments(self, sizes: np.ndarray, seeds: np.ndarray, indices: np.ndarray) -> dict[str, np.ndarray]:
        """As ``TrainingView.arguments``, crop and flip from the stored view that has the seed."""
        values = super().arguments(sizes, seeds, indices)
        number = (self.views["seed"][:, indices] == seeds).argmax(axis=0)
        stored = self.views[number, indices]
        if "start" in values:
            values["start"], values["shape"] = stored["box"][:, :2].copy(), stored["box"][:, 2:].copy()
        if "mirror" in values:
            values["mirror"] = stored["flip"].astype(np.int32)
        return values


@dataclass(frozen=True)
class EvaluationView:
    """Shorter side to ``resize_size``, centre crop of ``crop_size``, rounded as torchvision rounds.

    Raises:
        UserError: the crop is larger than the resized image.
    """

    resize_size: int
    crop_size: int
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.crop_size > self.resize_size:
            raise UserError(
                f"--loader dali does not pad: --val-crop-size {self.crop_size} must not exceed "
                f"--val-resize-size {self.resize_size}"
            )

    def arguments(self, sizes: np.ndarray, seeds: np.ndarray, indices: np.ndarray) -> dict[str, np.ndarray]:
        """As ``TrainingView.arguments``; nothing is random."""
        start, end = centre_crop(sizes, self.resize_size, self.crop_size)
        return {"start": start, "end": end}

    def pixels(self, dali, encoded, values: dict, decoder: str, to_device):
        """DALI's graph from encoded images to pixels (0..255) of ``crop_size``; only these are computed."""
        fn, types = dali.fn, dali.types
        images = fn.decoders.image(encoded, device=decoder, **_as_stored(fn.decoders.image))
        region = {"roi_start": values["start"], "roi_end": values["end"]}
        images = fn.resize(images, size=[self.crop_size] * 2, **region, **_filter(types, self.interpolation))
        return to_device(images)


class _Arrays:
    """Float arrays for batches, used again once the tensors made from them are gone.

    Fresh memory of this size costs more in page faults than the copy itself: a fifth of the loader's time.
    """

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of ``shape`` that nobody else uses."""
        for array in self._arrays:
            # The list, the loop variable and the call itself; a tensor on this memory would be one more.
            if array.shape == shape and sys.getrefcount(array) == 3:
                return array
        self._arrays = [array for array in self._arrays if array.shape == shape]
        self._arrays.append(np.empty(shape, np.float32))
        return self._arrays[-1]


class DaliLoader:
    """Batches of (images, labels) from files, through DALI; the contract is that of ``TorchvisionLoader``.

    Args:
        samples: (path, label) pairs.
        batches: which samples a step of this process holds, and their seeds.
        view: what is shown of an image.
        threads: that read files and decode on the CPU.
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
        batches: TrainBatchSampler | EvalBatchSampler,
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
        self.device = device
        self.memory_format = memory_format
        self.decode_on = decode_on
        self._arrays = _Arrays()
        self._pipeline = None
        self._files: Iterator[list] = iter(())
        self._in_flight: deque[tuple[list[tuple[int, int]], np.ndarray, list]] = deque()

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def step_sizes(self) -> list[int]:
        return self.batches.step_sizes

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation the next iteration yields."""
        self.batches.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # An iteration that is not carried to its end leaves batches in the pipeline, so it takes the pipeline with it.
        pipeline, self._pipeline = self._pipeline or self._build(), None
        self._in_flight.clear()
        with ThreadPoolExecutor(self.threads) as readers:
            self._files = self._read_ahead(readers)
            while True:
                try:
                    (images,) = pipeline.run()
                except StopIteration:
                    break
                except RuntimeError as error:
                    raise self._explained(error) from error
                keys, sizes, _ = self._in_flight.popleft()
                yield self._to_torch(images), self.targets(keys, sizes).to(self.device, non_blocking=True)
        pipeline.reset()
        self._pipeline = pipeline

    def targets(self, keys: list[tuple[int, int]], sizes: np.ndarray) -> Tensor:
        """What is handed out beside the images of a batch: the labels (B,).

        Args:
            keys: B pairs (index, seed).
            sizes: (B, 2) heights and widths of the files' images in pixels.
        """
        return torch.tensor([self.samples[index][1] for index, _ in keys])

    def _read_ahead(self, readers: ThreadPoolExecutor) -> Iterator[list]:
        """Inputs of DALI's pipeline, batch by batch, the files of the next ones being read meanwhile."""
        waiting: deque = deque()
        for keys in self.batches:
            paths = [self.samples[index][0] for index, _ in keys]
            shares = [paths[start :: self.threads] for start in range(self.threads)]
            waiting.append((keys, [readers.submit(_read_all, share) for share in shares]))
            if len(waiting) > _READ_AHEAD:
                yield self._inputs(*waiting.popleft())
        while waiting:
            yield self._inputs(*waiting.popleft())

    def _inputs(self, keys: list[tuple[int, int]], jobs: list) -> list:
        files: list = [None] * len(keys)
        for start, job in enumerate(jobs):
            files[start :: self.threads] = job.result()
        sizes = np.array([size for _, size in files], dtype=np.int64)
        inputs = [[data for data, _ in files], *self._arguments(keys, sizes).values()]
        self._in_flight.append((keys, sizes, inputs))
        return inputs

    def _arguments(self, keys: list[tuple[int, int]], sizes: np.ndarray) -> dict[str, np.ndarray]:
        seeds = np.array([seed for _, seed in keys], dtype=np.uint64)
        return self.view.arguments(sizes, seeds, np.array([index for index, _ in keys]))

    def _build(self):
        dali = load_dali()
        fn, types = dali.fn, dali.types
        on_gpu = self.device.type == "cuda"
        # A batch of the first two indices tells the names; every batch has the same.
        names = list(self._arguments([(0, 0), (0, 0)], np.full((2, 2), 512)))
        largest = max((len(keys) for keys in self.batches), default=1)
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
            decoder = "mixed" if self.decode_on == "gpu" else "cpu"
            images = self.view.pixels(dali, encoded, values, decoder, lambda x: x.gpu() if on_gpu else x)
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

    def _to_torch(self, images) -> Tensor:
        """DALI's batch as a tensor (B, C, H, W) in memory that is not DALI's, which DALI would overwrite."""
        batch = images.as_tensor()
        if self.device.type == "cuda":
            tensor = torch.empty(tuple(batch.shape()), dtype=torch.float32, device=self.device)
            load_dali().plugin.pytorch.feed_ndarray(batch, tensor, cuda_stream=torch.cuda.current_stream(self.device))
        else:
            source = np.asarray(batch)
            array = self._arrays.take(source.shape)
            np.copyto(array, source)
            tensor = torch.from_numpy(array)
        return tensor.permute(0, 3, 1, 2) if self.memory_format == torch.channels_last else tensor

    def _explained(self, error: RuntimeError) -> UserError:
        """The user's mistake behind a failure of DALI: which file it was."""
        for keys, *_ in self._in_flight:
            for index, _ in keys:
                path = self.samples[index][0]
                read_image(path)
                if not _decodes(path):
                    return UserError(f"DALI cannot decode {path}; convert it, or use --loader torchvision")
        raise error


def _read_all(paths: list[str]) -> list[tuple[np.ndarray, tuple[int, int]]]:
    return [read_encoded(path) for path in paths]


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


def _stream(seeds: np.ndarray, number: int) -> np.ndarray:
    return seeds ^ np.uint64(combine_seeds(number))


def _filter(types, interpolation: str) -> dict:
    """Arguments of DALI's resize for torchvision's name of the filter (with antialiasing, as on images there)."""
    names = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC, "nearest": types.INTERP_NN}
    return {"interp_type": names[interpolation], "antialias": True}


def _as_stored(decoder) -> dict[str, bool]:
    """Newer DALIs turn images by their EXIF orientation unless told not to; torchvision and older DALIs never do."""
    return {"adjust_orientation": False} if "adjust_orientation" in (decoder.__doc__ or "") else {}

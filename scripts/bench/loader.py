"""Images per second of every way to load training images, interleaved in one run; or what each way does to accuracy.

    python scripts/bench/loader.py --data-path /data/imagenet/train
    python scripts/bench/loader.py --accuracy student/best.pth DATA      one checkpoint through every loader and backend

The folder holds one folder of images per class. Rows: JPEG decoding alone (no crop, no resize: what the files cost);
torchvision's recipe (PIL, normalized in the workers); our torchvision loader with PIL and with tensors; a bare DALI
pipeline (DALI's own reader and random crop, through its own PyTorch iterator); our DALI loader; the last two on the CPU
and, where there is one, on the GPU. All but the first give 224x224 training batches.

Rates are those of the middle of a round: loaders work ahead, so that the first batches may be there before the clock
starts, and the last ones are followed by nothing or by the next round's. Freed memory is kept, as by train.py on CPUs.

--accuracy evaluates the checkpoint on DATA/val (or on DATA, a folder of classes) and counts, beside the accuracy, the
images whose likeliest class is another than with torchvision's PIL images. "DALI alone" is DALI's own resize, which is
what a GPU does; on a CPU our loader uses it only where more is done than cropping.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch.utils.data import DataLoader
from torchvision import io, transforms
from torchvision.datasets.folder import pil_loader
from tqdm import tqdm

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.bench.timing import spread
from vision_reference.analysis.flags import natural, new_file, path
from vision_reference.data import Look, Reading, val_loader
from vision_reference.errors import Parser, UserError, run_command
from vision_reference.images.batch import Batch
from vision_reference.images.dali_loader import DaliLoader, load_dali
from vision_reference.images.dali_views import EvaluationView, TrainingView
from vision_reference.images.decoding import read_image, read_pixels
from vision_reference.images.folders import Sample, image_folder
from vision_reference.images.pipelines import Normalize, training_pipeline
from vision_reference.images.presets import PRESETS, TENSOR_INTERPOLATIONS, chosen
from vision_reference.images.samplers import EvalBatchSampler, TrainBatchSampler
from vision_reference.images.torch_loader import ImageDataset, TorchvisionLoader
from vision_reference.machine import choose_device, keep_freed_memory, usable_workers
from vision_reference.networks import by_name, heads

PRESET = PRESETS["imagenet"]
SIDE = 224
MARGIN = 4  # batches at both ends of a round that are not counted: as many as any way has under way


def decoding(samples: list[Sample], workers: int) -> Iterable[int]:
    """Decodes every file with torchvision's JPEG decoder; yields 1 for each."""

    def decode(sample: Sample) -> int:
        io.decode_image(io.read_file(sample[0]), io.ImageReadMode.RGB)
        return 1

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(decode, samples)


def as_the_reference(samples: list[Sample], batch: int, workers: int) -> Iterable[int]:
    """torchvision's own recipe: PIL, float conversion and normalization in the workers."""
    pipeline = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIDE, antialias=True),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float32),
            transforms.Normalize(PRESET.mean, PRESET.std),
        ]
    )
    dataset = [(index, index) for index in range(len(samples))]
    images = ImageDataset(samples, pipeline, lambda path, check: pil_loader(path))
    loader = DataLoader(_Keyed(images, dataset), batch, shuffle=True, num_workers=workers, persistent_workers=True)
    return _Again(lambda: (len(labels) for _, labels in loader))


class _Keyed(torch.utils.data.Dataset):
    """``images`` under plain indices, as torchvision's own sampler gives them."""

    def __init__(self, images: ImageDataset, keys: list[tuple[int, int]]) -> None:
        self.images, self.keys = images, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int):
        return self.images[self.keys[index]]


class BareDali:
    """DALI's reader, random-crop decoder, resize and normalization, through its PyTorch iterator."""

    def __init__(self, samples: list[Sample], batch: int, threads: int, device: torch.device) -> None:
        dali = load_dali()
        fn, types = dali.fn, dali.types
        gpu = device.type == "cuda"
        pipeline = dali.Pipeline(batch, threads, device_id=0 if gpu else None, seed=0)
        paths, labels = [path for path, _ in samples], [label for _, label in samples]
        with pipeline:
            encoded, numbers = fn.readers.file(files=paths, labels=labels, random_shuffle=True, name="reader")
            crop = {"num_attempts": 100, "random_area": [0.08, 1.0], "random_aspect_ratio": [3 / 4, 4 / 3]}
            images = fn.decoders.image_random_crop(encoded, device="mixed" if gpu else "cpu", **crop)
            images = fn.resize(images, size=[SIDE, SIDE], interp_type=types.INTERP_TRIANGULAR)
            images = fn.crop_mirror_normalize(
                images,
                mirror=fn.random.coin_flip(),
                mean=[255 * part for part in PRESET.mean],
                std=[255 * part for part in PRESET.std],
                dtype=types.FLOAT,
                output_layout="CHW",
            )
            pipeline.set_outputs(images, numbers)
        pipeline.build()
        iterator = dali.plugin.pytorch.DALIClassificationIterator
        self.batches = iterator(
            pipeline,
            reader_name="reader",
            auto_reset=True,
            last_batch_policy=dali.plugin.pytorch.LastBatchPolicy.PARTIAL,
        )

    def __iter__(self):
        return (len(batch[0]["label"]) for batch in self.batches)


def ways(samples: list[Sample], batch: int, workers: int) -> dict[str, Callable[[], Iterable[int]]]:
    """Makers of everything that is measured, by the name shown."""
    cpu = torch.device("cpu")
    devices = {"CPU": cpu, **({"GPU": torch.device("cuda", 0)} if torch.cuda.is_available() else {})}

    def torchvision(backend: str) -> Iterable[int]:
        loader = TorchvisionLoader(
            ImageDataset(
                samples,
                training_pipeline(PRESET, crop_size=SIDE, backend=backend),
                read_pixels if backend == "tensor" else read_image,
            ),
            TrainBatchSampler(len(samples), batch, seed=0),
            workers=workers,
            normalize=Normalize(PRESET.mean, PRESET.std),
            device=cpu,
            memory_format=torch.channels_last,
        )
        return _Again(lambda: (len(images) for images, _, _ in loader.epoch(0)))

    def dali(name: str) -> Iterable[int]:
        loader = DaliLoader(
            samples,
            TrainBatchSampler(len(samples), batch, seed=0),
            TrainingView(PRESET, SIDE),
            threads=workers,
            mean=PRESET.mean,
            std=PRESET.std,
            device=devices[name],
            memory_format=torch.channels_last,
            decode_on=name.lower(),
        )
        return _Again(lambda: (len(images) for images, _, _ in loader.epoch(0)))

    makers: dict[str, Callable[[], Iterable[int]]] = {
        "decoding alone": lambda: _Again(partial(decoding, samples, workers)),
        "torchvision's recipe, PIL": partial(as_the_reference, samples, batch, workers),
        "ours, torchvision PIL": partial(torchvision, "pil"),
        "ours, torchvision tensor": partial(torchvision, "tensor"),
    }
    for name, device in devices.items():
        makers[f"bare DALI pipeline, {name}"] = partial(BareDali, samples, batch, workers, device)
        makers[f"ours, DALI {name}"] = partial(dali, name)
    return makers


class DaliAlone(EvaluationView):
    """Evaluation as DALI's graph does all of it."""

    needs_dali_after_decoding = True


def accuracy_ways(
    samples: Sequence[Sample], look: Look, batch: int, workers: int, device: torch.device
) -> dict[str, Callable[[], Iterable[Batch]]]:
    """Makers of the evaluation batches of every loader and backend, by the name shown; the first is what others do."""
    layout = torch.channels_last
    batches = EvalBatchSampler(len(samples), batch)

    def ours(loader: str, decode_on: str = "cpu", **changes) -> Iterable[Batch]:
        reading = Reading(loader, workers, device, layout, decode_on)
        return val_loader(samples, batches, replace(look, **changes), reading).epoch(0)

    def alone() -> Iterable[Batch]:
        view = DaliAlone(look.val_resize_size, look.val_crop_size, look.interpolation)
        place = {"device": device, "memory_format": layout, "decode_on": "cpu"}
        mean, std = look.preset.mean, look.preset.std
        return DaliLoader(samples, batches, view, threads=workers, mean=mean, std=std, **place).epoch(0)

    found: dict[str, Callable[[], Iterable[Batch]]] = {
        "torchvision, PIL": partial(ours, "torchvision"),
        "torchvision, PIL, transforms.v2": partial(ours, "torchvision", use_v2=True),
    }
    if look.interpolation in TENSOR_INTERPOLATIONS:
        found["torchvision, tensor"] = partial(ours, "torchvision", backend="tensor")
        found["torchvision, tensor, transforms.v2"] = partial(ours, "torchvision", backend="tensor", use_v2=True)
        if look.val_crop_size <= look.val_resize_size:
            found["DALI, CPU"] = partial(ours, "dali")
            found["DALI alone, CPU"] = alone
            if device.type == "cuda":
                found["DALI, GPU"] = partial(ours, "dali", "gpu")
    return found


def compare_accuracy(checkpoint: str, data: Path, batch: int, workers: int) -> list[dict]:
    """What every way makes of a trained network.

    Returns:
        By way: ``way``, ``images``, ``accuracy`` (top-1, percent), ``differing`` predictions and ``largest`` difference
        of a logit, both beside the first way.

    Raises:
        UserError: weights or data that cannot be read or do not fit.
    """
    network, description = by_name.load_network(checkpoint)
    root = data / "val" if (data / "val").is_dir() else data
    samples, classes = image_folder(root)
    if heads.class_count(network) != len(classes):
        raise UserError(f"{checkpoint} tells {heads.class_count(network)} classes apart, {root} has {len(classes)}")
    for note in by_name.match_classes(network, description, classes):
        print(note)
    look = Look(
        preset=chosen("imagenet", description.mean, description.std),  # of which only the colours count here
        train_crop_size=description.val_crop_size,
        val_resize_size=description.val_resize_size,
        val_crop_size=description.val_crop_size,
        interpolation=description.interpolation,
        backend="pil",
        use_v2=False,
        auto_augment=None,
        ra_magnitude=0,
        augmix_severity=0,
        random_erase=0.0,
    )
    device = choose_device("cuda", None)
    network = network.to(device, memory_format=torch.channels_last)
    labels = torch.tensor([label for _, label in samples])
    rows, first = [], None
    for name, make in tqdm(accuracy_ways(samples, look, batch, workers, device).items(), leave=False, unit="way"):
        with torch.inference_mode():
            logits = torch.cat([network(images).float().cpu() for images, _, _ in make()])
        first = logits if first is None else first
        rows.append(
            {
                "way": name,
                "images": len(logits),
                "accuracy": 100 * (logits.argmax(1) == labels).double().mean().item(),
                "differing": int((logits.argmax(1) != first.argmax(1)).sum()),
                "largest": (logits - first).abs().max().item(),
            }
        )
    return rows


def accuracy_report(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    lines = ["| | images | top-1, % | other predictions | largest difference of a logit |", "|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['way']} | {row['images']} | {row['accuracy']:.3f} | {row['differing']} | {row['largest']:.3g} |"
        )
    return "\n".join(lines)


class _Again:
    """An iterable that starts a new generator each time."""

    def __init__(self, start: Callable[[], Iterable[int]]) -> None:
        self.start = start

    def __iter__(self):
        return iter(self.start())


# what is compared, and how fast the first should be beside the second on two cores
RATIOS = [
    ("ours, DALI CPU", "bare DALI pipeline, CPU", 0.95),
    ("ours, DALI CPU", "torchvision's recipe, PIL", 2.0),
    ("ours, torchvision PIL", "torchvision's recipe, PIL", 1.0),
    ("ours, torchvision tensor", "torchvision's recipe, PIL", 1.0),
]


def steady_rate(batches: Iterable[int], margin: int) -> float:
    """Images per second from image number ``margin`` to the one so many before the last.

    Args:
        batches: sizes of the batches as they come; more than ``2 * margin`` images in all.
    """
    seen, images = [], 0
    for size in batches:
        images += size
        seen.append((images, time.perf_counter()))
    middle = [(count, moment) for count, moment in seen if margin <= count <= images - margin]
    (first, began), (last, ended) = middle[0], middle[-1]
    return (last - first) / (ended - began)


def wait_until_idle() -> None:
    """Wait until the threads of this process have stopped working ahead."""
    spent = -1.0
    while time.process_time() - spent > 0.005:
        spent = time.process_time()
        time.sleep(0.1)


def measure(makers: dict[str, Callable[[], Iterable[int]]], rounds: int, batch: int) -> dict[str, list[float]]:
    """Images per second of each way in each round; a first round that is not counted warms up caches and workers."""
    # Each is made when its turn comes: torchvision's worker processes must be forked before DALI has threads.
    made: dict[str, Iterable[int]] = {}
    rates: dict[str, list[float]] = {name: [] for name in makers}
    with tqdm(total=(rounds + 1) * len(makers), unit="epoch", leave=False) as bar:
        for number in range(rounds + 1):
            for name, make in makers.items():
                bar.set_description(name)
                batches = made[name] if name in made else made.setdefault(name, make())
                wait_until_idle()
                rate = steady_rate(batches, MARGIN * batch)
                if number:
                    rates[name].append(rate)
                bar.update()
    return rates


def summarize(rates: dict[str, list[float]]) -> dict:
    """Median and range of the rates, and of the ratios round by round, which a machine's changing speed spares."""
    ratios = []
    for ours, baseline, bar in RATIOS:
        each = [a / b for a, b in zip(rates[ours], rates[baseline], strict=True)]
        ratios.append({"way": ours, "baseline": baseline, "bar": bar, **spread(each)})
    return {"images_per_second": {name: spread(values) for name, values in rates.items()}, "ratios": ratios}


def report(summary: dict) -> str:
    """The summary as two Markdown tables."""
    lines = ["| | images/s (median) | range |", "|---|---|---|"]
    for name, rate in summary["images_per_second"].items():
        lines.append(f"| {name} | {rate['median']:.0f} | {rate['min']:.0f} to {rate['max']:.0f} |")
    lines += ["", "| | baseline | ratio (median) | range | at least |", "|---|---|---|---|---|"]
    for ratio in summary["ratios"]:
        lines.append(
            f"| {ratio['way']} | {ratio['baseline']} | {ratio['median']:.2f} | {ratio['min']:.2f} to "
            f"{ratio['max']:.2f} | {ratio['bar']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, report."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", type=path, help="folder with one folder of images per class")
    parser.add_argument(
        "--accuracy",
        nargs=2,
        metavar=("CHECKPOINT", "DATA"),
        help="instead of speed: accuracy and differing predictions of a checkpoint through every loader and backend",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch (default: %(default)s)")
    parser.add_argument("--workers", type=natural, default=16, help="processes or threads, at most the cores there are")
    parser.add_argument("--images", type=int, default=2000, help="images per round; fewer files are gone through again")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds of each way (default: %(default)s)")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write setting, measurements and summary here")
    args = parser.parse_args()
    if bool(args.data_path) == bool(args.accuracy):
        raise UserError("give --data-path DIR (speed) or --accuracy CHECKPOINT DATA")
    if min(args.batch_size, args.images, args.rounds) < 1:
        raise UserError("--batch-size, --images and --rounds must be at least 1")
    if args.images < (least := (2 * MARGIN + 2) * args.batch_size):
        raise UserError(f"--images {args.images} is too few for batches of {args.batch_size}; give at least {least}")
    keep_freed_memory()
    if args.accuracy:
        checkpoint, data = args.accuracy
        rows = compare_accuracy(checkpoint, Path(data), args.batch_size, usable_workers(max(1, args.workers)))
        print(accuracy_report(rows))
        if args.json:
            args.json.write_text(json.dumps({"checkpoint": checkpoint, "data": data, "ways": rows}, indent=1) + "\n")
        return
    samples: list[Sample] = list(image_folder(args.data_path)[0])
    samples = (samples * -(-args.images // len(samples)))[: args.images]
    workers = usable_workers(max(1, args.workers))
    print(f"{len(samples)} images a round, batches of {args.batch_size}, {workers} workers\n", flush=True)
    rates = measure(ways(samples, args.batch_size, workers), args.rounds, args.batch_size)
    summary = summarize(rates)
    print(report(summary))
    if args.json:
        setting = {"images": len(samples), "batch_size": args.batch_size, "workers": workers, "rounds": args.rounds}
        machine = {"cpus": os.cpu_count(), "torch": torch.__version__, "torchvision": torchvision.__version__}
        record = {"setting": setting, "machine": machine, "rates": rates} | summary
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    run_command("loader.py", main)

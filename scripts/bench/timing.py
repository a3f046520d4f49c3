"""What the benchmarks of training steps share: settings, taking turns, spreads, and their flags."""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from vision_reference.analysis.flags import new_file


@dataclass(frozen=True)
class Setting:
    """What is measured: square images of ``image_size`` pixels, ``steps`` steps a turn, one turn per way and round."""

    image_size: int
    batch_size: int
    steps: int
    rounds: int


FULL = Setting(image_size=224, batch_size=16, steps=3, rounds=7)
QUICK = Setting(image_size=64, batch_size=8, steps=4, rounds=3)


def add_arguments(parser: argparse.ArgumentParser, *, quick: str = "") -> None:
    """The flags that all of these benchmarks have; ``quick`` ends what is said of ``--quick``."""
    parser.add_argument("--quick", action="store_true", help=f"64x64 images, batch 8, 3 rounds{quick}")
    parser.add_argument("--batch-size", type=int, metavar="B", help="images per step (default: 16; --quick: 8)")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds (default: 7; --quick: 3)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write setting, measurements and summary here")


def parse_arguments(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Setting]:
    """The command line's flags, and the setting that they amount to; ends the program where they are impossible."""
    args = parser.parse_args()
    changes = {name: value for name in ("batch_size", "rounds") if (value := getattr(args, name)) is not None}
    if any(value < 1 for value in changes.values()):
        parser.error("--batch-size and --rounds must be 1 or more")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    return args, Setting(**{**asdict(QUICK if args.quick else FULL), **changes})


def measure(by_way: dict[str, Callable[[], object]], setting: Setting, name: str) -> dict[str, list[float]]:
    """Seconds per step of each way, one entry per round: all ways in every round, in changing order.

    A first turn of each is not counted.

    Args:
        by_way: functions that do ``setting.steps`` steps each.
        name: shown beside the progress bar.
    """
    ways, seconds = list(by_way), {way: [] for way in by_way}
    with tqdm(total=(1 + setting.rounds) * len(ways), unit="turn") as bar:
        for number in range(1 + setting.rounds):
            bar.set_description(f"{name}, warming up" if number == 0 else f"{name}, round {number}/{setting.rounds}")
            first = number % len(ways)
            for way in ways[first:] + ways[:first]:
                spent = timed(by_way[way]) / setting.steps
                if number > 0:
                    seconds[way].append(spent)
                bar.update()
    return seconds


def timed(turn: Callable[[], object]) -> float:
    """Seconds that ``turn`` takes, the GPU's work included."""
    begin = time.perf_counter()
    turn()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest of ``values``."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def speed_ratio(seconds: dict[str, list[float]], way: str, baseline: str) -> dict[str, float]:
    """How many times as fast as ``baseline`` a way is; the spread of the ratios formed within each round."""
    return spread([slow / fast for fast, slow in zip(seconds[way], seconds[baseline], strict=True)])


def image_rates(setting: Setting, seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Spread of the images per second of each way."""
    return {way: spread([setting.batch_size / value for value in values]) for way, values in seconds.items()}


def rate_lines(rates: dict[str, dict[str, float]]) -> list[str]:
    """A table of ``image_rates``, its head included."""
    lines = [f"{'way':<10}{'images/s':>10}   slowest and fastest round"]
    return lines + [
        f"{way:<10}{rate['median']:>10.2f}   {rate['min']:.2f} to {rate['max']:.2f}" for way, rate in rates.items()
    ]


def this_machine() -> dict:
    """Where it was measured."""
    return {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}

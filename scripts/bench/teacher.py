"""What each step towards a cheap teacher brings: its forward pass alone, one improvement after the other.

    python scripts/bench/teacher.py                       ResNet-50 at 224
    python scripts/bench/teacher.py --quick               at 64, does it run
    python scripts/bench/teacher.py --compile             also compiled (takes a C++ compiler and a minute)
    python scripts/bench/teacher.py --json figures.json   also write every single measurement

Every row adds one thing to the row above: contiguous fp32 under no_grad (what the paper's scripts do), channels-last,
batch norms folded into convolutions, inference mode, bf16 autocast, weights kept in bf16, compiled. All rows take turns
in every round, in changing order; factors are taken within a round. On CPUs without AMX bf16 costs time: --no-amp
leaves its rows out.
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.bench.timing import (
    Setting,
    add_arguments,
    image_rates,
    measure,
    parse_arguments,
    speed_ratio,
    this_machine,
)
from scripts.bench.vision_step import CLASSES, TEACHER
from vision_reference.distillation import Teacher
from vision_reference.errors import Parser, run_command
from vision_reference.networks.by_name import build_model
from vision_reference.networks.folding import fold_batch_norms


def turns(setting: Setting, device: str, amp: bool, compiled: bool) -> dict[str, Callable[[], object]]:
    """For each row a function that answers ``setting.steps`` batches."""
    torch.manual_seed(0)
    network = build_model(TEACHER, CLASSES).eval().requires_grad_(False).to(device)
    folded = fold_batch_norms(network)
    images = torch.randn(setting.batch_size, 3, setting.image_size, setting.image_size, device=device)
    last = torch.channels_last
    images_last = images.contiguous(memory_format=last)
    autocast = partial(torch.autocast, device, dtype=torch.bfloat16)

    def answers(model: Callable, batch: torch.Tensor, *contexts: Callable) -> Callable[[], None]:
        def turn() -> None:
            with contexts[0](), (contexts[1] if len(contexts) > 1 else nullcontext)():
                for _ in range(setting.steps):
                    model(batch)

        return turn

    def in_layout(model: torch.nn.Module) -> torch.nn.Module:
        return copy.deepcopy(model).to(memory_format=last)

    rows = {
        "contiguous fp32": answers(network, images, torch.no_grad),
        "channels-last": answers(in_layout(network), images_last, torch.no_grad),
        "batch norm folded": answers(in_layout(folded), images_last, torch.no_grad),
        "inference mode": answers(in_layout(folded), images_last, torch.inference_mode),
    }
    if amp:
        ours = Teacher(network, images.device, last, autocast)
        rows["bf16 autocast"] = answers(in_layout(folded), images_last, torch.inference_mode, autocast)
        rows["weights in bf16"] = answers(ours, images_last, nullcontext)
    if compiled:
        ours = Teacher(network, images.device, last, autocast if amp else nullcontext, compile=True)
        rows["compiled"] = answers(ours, images_last, nullcontext)
    return rows


def summarize(setting: Setting, seconds: dict[str, list[float]]) -> dict:
    """Per row: images per second, how many times as fast as the row above, and as the first."""
    rows, rates = list(seconds), image_rates(setting, seconds)
    return {
        row: {
            "images_per_second": rates[row],
            "over_row_above": speed_ratio(seconds, row, rows[max(number - 1, 0)]),
            "over_first_row": speed_ratio(seconds, row, rows[0]),
        }
        for number, row in enumerate(rows)
    }


def report(setting: Setting, summary: dict) -> str:
    """The summary as a table."""
    size = setting.image_size
    lines = [
        f"{TEACHER} forward, {size}x{size}, batch {setting.batch_size}, {setting.rounds} rounds of {setting.steps} "
        f"batches, {torch.get_num_threads()} threads; factors of speed, medians of rounds",
        f"{'row':<20}{'images/s':>10}{'over row above':>17}{'over first row':>17}   slowest and fastest round",
    ]
    for row, figures in summary.items():
        rate = figures["images_per_second"]
        above, first = (figures[name]["median"] for name in ("over_row_above", "over_first_row"))
        lines.append(
            f"{row:<20}{rate['median']:>10.2f}{above:>17.2f}{first:>17.2f}   {rate['min']:.2f} to {rate['max']:.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, report."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--no-amp", action="store_true", help="without the rows in bf16")
    parser.add_argument("--compile", action="store_true", help="with a compiled row")
    args, setting = parse_arguments(parser)
    seconds = measure(turns(setting, args.device, not args.no_amp, args.compile), setting, TEACHER)
    summary = summarize(setting, seconds)
    print(report(setting, summary))
    if args.json:
        record = {
            "setting": asdict(setting),
            "device": args.device,
            "machine": this_machine(),
            "seconds_per_batch": seconds,
        }
        args.json.write_text(json.dumps({**record, "rows": summary}, indent=1) + "\n")


if __name__ == "__main__":
    run_command("teacher.py", main)

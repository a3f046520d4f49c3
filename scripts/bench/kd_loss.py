"""What the distillation loss costs, from the decoder's output to the gradients: seconds and peak memory.

    python scripts/bench/kd_loss.py                        vocabularies of 8k, 32k and 64k: minutes on two cores
    python scripts/bench/kd_loss.py --quick                a small vocabulary: does it run, is the order right
    python scripts/bench/kd_loss.py --json figures.json    also write every single measurement
    python scripts/bench/kd_loss.py --device cuda --dtype bfloat16

One step is: N decoder features and the output layer's weight go in, the gradients of both come out. The ways:

  labels    label-smoothed cross entropy alone, from logits, as stock fairseq works it out: training without a teacher
  dense     the baseline: the same plus KL(teacher || student) at temperature T the obvious way, from the logits of
            both, which the teacher's features are projected to without gradient
  liger     Liger-Kernel's chunked distillation loss in plain PyTorch: LigerFusedLinearJSDLoss with beta=0, which is
            KL(teacher || student), chunks of 1,024 tokens (its default), compiled=False; cross entropy without label
            smoothing, which it does not have. Needs `pip install liger-kernel`, else its row says so
  compiled  the same with compiled=True, its default, where --compile-liger asks for it: needs a C++ compiler
  fused     ours: fairseq_plugins/losses/fused.py, the teacher's features projected chunk by chunk
  top-k     ours, from the k largest logits and the log-sum-exp stored for each token, tail spread evenly

Time is taken in turns, every way in every round and in changing order; ratios are taken within a round. Peak memory is
that of a process of its own for each way: resident memory (on a GPU: allocated) at the peak of one step, less that
before it, when all inputs are there. The gradients that a step leaves behind count, for all ways alike.

Aims on two CPU cores at V = 32,000 in float32: time at most 0.50 and memory at most 0.10 of dense, both less than
Liger's, and memory that does not grow with N but for the gradient of the features.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from fairseq_plugins.losses.fused import fused_distil
from fairseq_plugins.losses.soft_labels import ProjectedLogits, SoftLabels, TopKLogits
from scripts.bench.timing import spread
from vision_reference.analysis.flags import count, new_file, temperature
from vision_reference.errors import Parser, run_command

WAYS = ("labels", "dense", "liger", "compiled", "fused", "top-k")
BASELINE = "dense"
PAD, LABEL_SMOOTHING, KD_WEIGHT = 1, 0.1, 0.9
MEGABYTE = 10**6


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        tokens: N
        width: D of student and teacher.
        vocabulary: V
        temperature: T
        k: entries stored for each token.
        dtype: precision of features and weights.
        device: cpu or cuda.
    """

    tokens: int
    width: int
    vocabulary: int
    temperature: float
    k: int
    dtype: str
    device: str


@dataclass(frozen=True)
class Inputs:
    """Random ones of the size of a trained model's.

    Attributes:
        features, teacher_features: (N, D)
        weight, teacher_weight: (V, D)
        target: (N,)
        stored: the teacher's largest logits.
    """

    features: Tensor
    weight: Tensor
    target: Tensor
    teacher_features: Tensor
    teacher_weight: Tensor
    stored: TopKLogits


def make_inputs(setting: Setting) -> Inputs:
    """The same numbers for the same setting."""
    torch.manual_seed(0)
    place = {"dtype": getattr(torch, setting.dtype), "device": setting.device}
    n, d, v = setting.tokens, setting.width, setting.vocabulary
    features, weight = (torch.randn(rows, d, **place) for rows in (n, v))
    teacher_features, teacher_weight = (torch.randn(rows, d, **place) for rows in (n, v))
    parts = []
    for begin in range(0, n, 128):
        # random features and weights of size 1 would make logits of size sqrt(D)
        logits = (teacher_features[begin : begin + 128] @ (teacher_weight / d**0.5).t()).float()
        top = logits.topk(min(setting.k, v), dim=1)
        rest = torch.logsumexp(logits.scatter_(1, top.indices, -torch.inf) / setting.temperature, dim=1)
        parts.append((top.indices, top.values.half(), rest))
    stored = TopKLogits(*(torch.cat(part) for part in zip(*parts, strict=True)), v, "uniform")
    return Inputs(
        features.requires_grad_(),
        (weight / d**0.5).requires_grad_(),
        torch.randint(PAD + 1, v, (n,), device=setting.device),
        teacher_features,
        teacher_weight / d**0.5,
        stored,
    )


def label_smoothed(lprobs: Tensor, target: Tensor) -> Tensor:
    """Sum of stock fairseq's label-smoothed loss over (N, V) log-probabilities."""
    eps_i = LABEL_SMOOTHING / (lprobs.size(1) - 1)
    nll = -lprobs.gather(1, target.unsqueeze(1)).sum()
    return (1 - LABEL_SMOOTHING - eps_i) * nll - eps_i * lprobs.sum()


def label_step(inputs: Inputs, setting: Setting) -> Tensor:
    logits = F.linear(inputs.features, inputs.weight)
    return label_smoothed(torch.log_softmax(logits.float(), dim=-1), inputs.target)


def dense_step(inputs: Inputs, setting: Setting) -> Tensor:
    temperature = setting.temperature
    logits = F.linear(inputs.features, inputs.weight).float()
    with torch.no_grad():
        teacher_logits = F.linear(inputs.teacher_features, inputs.teacher_weight).float()
    label_loss = label_smoothed(torch.log_softmax(logits, dim=-1), inputs.target)
    log_q = torch.log_softmax(logits / temperature, dim=-1)
    p = torch.softmax(teacher_logits / temperature, dim=-1)
    kd_loss = temperature**2 * F.kl_div(log_q, p, reduction="sum")
    return KD_WEIGHT * kd_loss + (1 - KD_WEIGHT) * label_loss


def fused_step(inputs: Inputs, setting: Setting, teacher: ProjectedLogits | TopKLogits) -> Tensor:
    positions = torch.arange(setting.tokens, device=setting.device)
    return fused_distil(
        inputs.features,
        inputs.weight,
        None,
        inputs.target,
        [SoftLabels(torch.zeros_like(positions), positions, teacher)],
        sentences=1,
        ignore_index=PAD,
        label_smoothing=LABEL_SMOOTHING,
        kd_weight=KD_WEIGHT,
        temperature=setting.temperature,
    ).loss


def liger_step(compiled: bool) -> Callable[[Inputs, Setting], Tensor]:
    losses = importlib.import_module("liger_kernel.chunked_loss")

    def step(inputs: Inputs, setting: Setting) -> Tensor:
        loss = losses.LigerFusedLinearJSDLoss(
            weight_hard_loss=1 - KD_WEIGHT,
            weight_soft_loss=KD_WEIGHT * setting.temperature**2,
            beta=0.0,
            ignore_index=PAD,
            temperature=setting.temperature,
            compiled=compiled,
        )
        teacher = inputs.teacher_features, inputs.teacher_weight
        # it takes the mean over tokens, the others the sum
        return setting.tokens * loss(inputs.features, inputs.weight, *teacher, inputs.target)

    return step


def step_of(way: str) -> Callable[[Inputs, Setting], Tensor]:
    """The loss of a way, as a function of inputs and setting.

    Raises:
        ImportError: it needs a package that is not installed.
    """
    if way in ("liger", "compiled"):
        return liger_step(way == "compiled")
    return {
        "labels": label_step,
        "dense": dense_step,
        "fused": lambda inputs, setting: fused_step(
            inputs, setting, ProjectedLogits(inputs.teacher_features, inputs.teacher_weight)
        ),
        "top-k": lambda inputs, setting: fused_step(inputs, setting, inputs.stored),
    }[way]


def available(ways: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """The ways that can be gone here, and for each other one why not."""
    can, cannot = [], {}
    for way in ways:
        try:
            step_of(way)
            can.append(way)
        except Exception as problem:  # a package may fail to import for any reason, and the others are still measured
            reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            cannot[way] = f"not measured: pip install liger-kernel ({reason})"
    return can, cannot


def take(way: str, inputs: Inputs, setting: Setting) -> float:
    """One step; seconds, a GPU's work included. The gradients stay with the inputs."""
    step = step_of(way)
    inputs.features.grad = inputs.weight.grad = None
    begin = time.perf_counter()
    step(inputs, setting).backward()
    if setting.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def resident(field: str) -> int:
    """Bytes in /proc/self/status: VmRSS now, or VmHWM at its highest since the mark was set back."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def extra_memory(way: str, setting: Setting) -> int:
    """Bytes that one step takes beyond its inputs, at its peak. To be called in a process of its own."""
    # a small step first: libraries load what they need, threads start
    small = replace(setting, tokens=8, width=8, vocabulary=64, k=8)
    take(way, make_inputs(small), small)
    inputs = make_inputs(setting)
    if setting.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        take(way, inputs, setting)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back
    before = resident("VmRSS")
    take(way, inputs, setting)
    return resident("VmHWM") - before


def in_own_process(way: str, setting: Setting) -> int:
    # Forks of a server that has imported torch and computed nothing: as fresh as new processes, without their seconds.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([extra_memory.__module__, "fairseq_plugins.losses.fused"])
    with ProcessPoolExecutor(1, mp_context=server) as pool:
        return pool.submit(extra_memory, way, setting).result()


def measure_time(setting: Setting, ways: list[str], rounds: int, bar: tqdm) -> dict[str, list[float]]:
    """Seconds per step of each way, one entry per round. A first step of each is not counted."""
    inputs = make_inputs(setting)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(1 + rounds):
        first = number % len(ways)
        for way in ways[first:] + ways[:first]:
            bar.set_description(f"V = {setting.vocabulary:,}, {'warming up' if number == 0 else f'round {number}'}")
            spent = take(way, inputs, setting)
            if number > 0:
                seconds[way].append(spent)
            bar.update()
    return seconds


def check_same(setting: Setting) -> float:
    """How far the fused loss is from the dense one, relative, on a part of the tokens."""
    part = replace(setting, tokens=min(setting.tokens, 256))
    inputs = make_inputs(part)
    with torch.no_grad():
        dense, fused = (float(step_of(way)(inputs, part)) for way in (BASELINE, "fused"))
    return abs(fused / dense - 1)


def summarize(seconds: dict[str, list[float]], memory: dict[str, int]) -> dict[str, dict]:
    """For each way its time and memory, and both against the baseline's; time ratios are formed within a round."""
    return {
        way: {
            "seconds": spread(values),
            "time_ratio": spread([a / b for a, b in zip(values, seconds[BASELINE], strict=True)]),
            "memory": memory[way],
            "memory_ratio": memory[way] / max(1, memory[BASELINE]),
        }
        for way, values in seconds.items()
    }


def report(setting: Setting, summary: dict[str, dict], missing: dict[str, str]) -> str:
    """One table for one vocabulary."""
    against = f"/ {BASELINE}"
    lines = [
        f"V = {setting.vocabulary:,}, N = {setting.tokens:,}, D = {setting.width}, T = {setting.temperature:g}, "
        f"{setting.dtype}, k = {setting.k}",
        f"{'way':<10}{'s/step':>9}   {'fastest to slowest':<20}{against:>8}{'extra MB':>11}{against:>9}",
    ]
    for way in WAYS:
        if way in summary:
            row = summary[way]
            times = row["seconds"]
            lines.append(
                f"{way:<10}{times['median']:>9.3f}   {times['min']:>7.3f} to {times['max']:<9.3f}"
                f"{row['time_ratio']['median']:>8.2f}{row['memory'] / MEGABYTE:>11,.0f}{row['memory_ratio']:>9.3f}"
            )
        elif way in missing:
            lines.append(f"{way:<10}{missing[way]}")
    return "\n".join(lines)


def report_growth(vocabulary: int, growth: dict[str, dict[int, int]]) -> str:
    """Extra memory of each way for several N."""
    sizes = list(next(iter(growth.values())))
    lines = [f"extra MB at V = {vocabulary:,} as N grows", f"{'way':<10}" + "".join(f"{n:>10,}" for n in sizes)]
    for way, by_size in growth.items():
        lines.append(f"{way:<10}" + "".join(f"{by_size[n] / MEGABYTE:>10,.0f}" for n in sizes))
    return "\n".join(lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="256 tokens, width 64, vocabulary 4,000, 3 rounds")
    parser.add_argument("--tokens", type=count, metavar="N", help="tokens in a batch (default: 4096; --quick: 256)")
    parser.add_argument("--width", type=count, metavar="D", help="of decoder features (default: 512; --quick: 64)")
    parser.add_argument(
        "--vocabulary",
        type=int,
        nargs="+",
        metavar="V",
        help="one table for each (default: 8000 32000 64000; --quick: 4000)",
    )
    parser.add_argument("--temperature", type=temperature, default=2.0, metavar="T", help="(default: 2)")
    parser.add_argument("--k", type=count, default=64, help="entries that the stored teacher keeps (default: 64)")
    parser.add_argument("--rounds", type=count, metavar="R", help="rounds of one step each (default: 5; --quick: 3)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="(default: float32)"
    )
    parser.add_argument("--compile-liger", action="store_true", help="also measure Liger-Kernel's with compiled=True")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write settings, measurements and summary here")
    args = parser.parse_args(argv)
    tokens, width, vocabulary, rounds = (256, 64, [4000], 3) if args.quick else (4096, 512, [8000, 32000, 64000], 5)
    args.tokens, args.width = args.tokens or tokens, args.width or width
    args.vocabulary, args.rounds = args.vocabulary or vocabulary, args.rounds or rounds
    if min(args.vocabulary) < 3:
        parser.error("--vocabulary must be 3 or more")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    return args


def main() -> None:
    """Parse the command line, measure, report."""
    args = parse_args()
    wanted = tuple(way for way in WAYS if way != "compiled" or args.compile_liger)
    ways, missing = available(wanted)
    grown = [way for way in ways if way != "compiled"]
    sizes = [max(1, args.tokens // 2), args.tokens, 2 * args.tokens]
    middle = args.vocabulary[(len(args.vocabulary) - 1) // 2]
    turns = len(args.vocabulary) * len(ways) * (2 + args.rounds) + 2 * len(grown)
    begin, cpu_begin = time.perf_counter(), time.process_time()
    waited = 0.0
    tables, records = [], []
    with tqdm(total=turns, unit="step") as bar:

        def memory_of(way: str, setting: Setting) -> int:
            nonlocal waited
            bar.set_description(f"V = {setting.vocabulary:,}, memory of {way}")
            start = time.perf_counter()
            found = in_own_process(way, setting)
            waited += time.perf_counter() - start
            bar.update()
            return found

        for vocabulary in args.vocabulary:
            setting = Setting(
                args.tokens, args.width, vocabulary, args.temperature, min(args.k, vocabulary), args.dtype, args.device
            )
            difference = check_same(setting)
            seconds = measure_time(setting, ways, args.rounds, bar)
            memory = {way: memory_of(way, setting) for way in ways}
            summary = summarize(seconds, memory)
            tables.append(report(setting, summary, missing))
            tables.append(f"fused and dense loss differ by {difference:.1e} of it")
            records.append(
                {"setting": asdict(setting), "seconds": seconds, "summary": summary, "difference": difference}
            )
            if vocabulary == middle:
                growth = {
                    way: {
                        n: memory[way] if n == args.tokens else memory_of(way, replace(setting, tokens=n))
                        for n in sizes
                    }
                    for way in grown
                }
        tables.append(report_growth(middle, growth))
    busy = (time.process_time() - cpu_begin) / (time.perf_counter() - begin - waited) / torch.get_num_threads()
    print("\n\n".join(tables))
    print(f"\n{torch.get_num_threads()} threads, torch {torch.__version__}, {args.rounds} rounds")
    if args.device == "cpu" and busy < 0.85:
        print(f"note: other processes were busy, this one got {100 * busy:.0f} % of its cores; repeat when it is quiet")
    if args.json:
        machine = {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        machine["share_of_cores"] = busy
        record = {"machine": machine, "missing": missing, "tables": records}
        record["growth"] = {"vocabulary": middle, "memory": growth}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    run_command("kd_loss.py", main)

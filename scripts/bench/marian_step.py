"""What a training step of a Hugging Face Marian model takes: the fused word-level loss against the model's own.

    python scripts/bench/marian_step.py             3 + 3 layers of width 256, 32,000 entries: minutes on two cores
    python scripts/bench/marian_step.py --quick     a small model: does it run

One step is forward and backward pass of a model made from a configuration, nothing downloaded. The ways:

  own loss        `model(..., labels=...).loss`, cross entropy on labels alone: training without a teacher
  own loss + KL   the same and, from the logits of both, KL(teacher || student) at T = 1: distillation the obvious way
  fused           `fused_step` as it stands in docs/parts.md, the teacher running along
  fused, top 8    the same from the 8 largest stored logits of each word: no teacher runs

Time is taken in turns, every way in every round and in changing order; ratios are taken within a round. CPU seconds are
those of all threads: on a machine that others use as well, the ratio to trust (OMP_NUM_THREADS=1). Peak memory is that
of a process of its own for each way: resident memory at the peak of a step less that before it, gradients included.
"""

import argparse
import json
import multiprocessing
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_plugins.losses.fused import fused_distil
from fairseq_plugins.losses.soft_labels import SoftLabels, TopKLogits
from scripts.bench.timing import spread, this_machine, timed
from vision_reference.analysis.flags import new_file
from vision_reference.soft_labels.codec import encode

ROOT = Path(__file__).resolve().parents[2]
KD_WEIGHT, LABEL_SMOOTHING, PAD, TOP_K = 0.9, 0.1, 0, 8
BASELINE = "own loss"


@dataclass(frozen=True)
class Size:
    """Of model and batch; a sentence has `words` words on both sides."""

    width: int
    layers: int
    vocabulary: int
    sentences: int
    words: int


FULL = Size(width=256, layers=3, vocabulary=32_000, sentences=32, words=32)
QUICK = Size(width=32, layers=1, vocabulary=500, sentences=4, words=8)


def documented_step() -> Callable[..., Tensor]:
    """`fused_step` of docs/parts.md."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "parts.md").read_text(), re.M | re.S)
    names: dict[str, Any] = {"torch": torch}
    exec(next(block for block in blocks if "def fused_step" in block), names)
    return names["fused_step"]


def make_models(size: Size):
    """Student and teacher of one size."""
    from transformers import MarianConfig, MarianMTModel

    parts = {f"{side}_layers": size.layers for side in ("encoder", "decoder")}
    parts |= {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
    parts |= {f"{side}_ffn_dim": 4 * size.width for side in ("encoder", "decoder")}
    config = MarianConfig(
        d_model=size.width,
        vocab_size=size.vocabulary,
        pad_token_id=PAD,
        decoder_start_token_id=PAD,
        max_position_embeddings=2 * size.words,
        dropout=0.0,
        **parts,
    )
    torch.manual_seed(1)
    return MarianMTModel(config).train(), MarianMTModel(config).eval().requires_grad_(False)


def make_batch(size: Size) -> dict[str, Tensor]:
    shape = size.sentences, size.words
    source, labels = (torch.randint(3, size.vocabulary, shape) for _ in range(2))
    start = torch.full((size.sentences, 1), PAD)
    return {
        "input_ids": source,
        "attention_mask": torch.ones_like(source),
        "decoder_input_ids": torch.cat([start, labels[:, :-1]], dim=1),
        "labels": labels,
    }


def make_steps(size: Size) -> tuple[Any, dict[str, Callable[[], Tensor]]]:
    """The student, and for each way a function that works out its loss."""
    student, teacher = make_models(size)
    batch = make_batch(size)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    fused_step = documented_step()
    with torch.no_grad():
        logits = teacher(**inputs).logits.flatten(0, 1)
        stored = encode(logits, TOP_K, [1.0])
        del logits
    answers = TopKLogits(stored["indices"], stored["logits"], stored["rest"][:, 0], size.vocabulary, "uniform")

    def with_divergence() -> Tensor:
        found = student(**batch)
        with torch.no_grad():
            theirs = teacher(**inputs).logits.flatten(0, 1).log_softmax(dim=1)
        ours = found.logits.flatten(0, 1).log_softmax(dim=1)
        divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return (1 - KD_WEIGHT) * found.loss + KD_WEIGHT * divergence

    def from_store() -> Tensor:
        features = student.model(**inputs).last_hidden_state
        sentences, positions = batch["labels"].ne(PAD).nonzero(as_tuple=True)
        found = fused_distil(
            features.flatten(0, 1),
            student.lm_head.weight,
            student.final_logits_bias[0],
            batch["labels"].flatten(),
            [SoftLabels(sentences, positions, answers)],
            sentences=size.sentences,
            ignore_index=PAD,
            label_smoothing=LABEL_SMOOTHING,
            kd_weight=KD_WEIGHT,
            temperature=1.0,
        )
        return found.loss / len(sentences)

    return student, {
        BASELINE: lambda: student(**batch).loss,
        "own loss + KL": with_divergence,
        "fused": lambda: fused_step(student, teacher, batch),
        f"fused, top {TOP_K}": from_store,
    }


def extra_memory(way: str, size: Size) -> int:
    """Bytes that one step takes at its peak beyond models and batch. To be called in a process of its own."""
    from scripts.bench.kd_loss import resident

    make_steps(QUICK)[1][way]().backward()  # libraries load what they need, threads start
    _, steps = make_steps(size)
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back
    before = resident("VmRSS")
    steps[way]().backward()
    return resident("VmHWM") - before


def measure(size: Size, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds and CPU seconds per step of each way, one entry per round. A first step of each is not counted."""
    student, steps = make_steps(size)
    seconds: dict[str, list[float]] = {way: [] for way in steps}
    cpu: dict[str, list[float]] = {way: [] for way in steps}
    ways = list(steps)
    for number in range(1 + rounds):
        first = number % len(ways)
        for way in ways[first:] + ways[:first]:
            student.zero_grad()
            before = time.process_time()
            spent = timed(lambda way=way: steps[way]().backward())
            if number:
                seconds[way].append(spent)
                cpu[way].append(time.process_time() - before)
        print(f"round {number} of {rounds}" if number else "warmed up", file=sys.stderr, flush=True)
    return seconds, cpu


def _ratio(seconds: dict[str, list[float]], way: str) -> float:
    return spread([a / b for a, b in zip(seconds[way], seconds[BASELINE], strict=True)])["median"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a model of one layer and 500 entries, 3 rounds")
    parser.add_argument("--rounds", type=int, metavar="N", help="(default: 7; --quick: 3)")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write setting and every single measurement here")
    args = parser.parse_args()
    size, rounds = (QUICK, args.rounds or 3) if args.quick else (FULL, args.rounds or 7)
    if rounds < 1:
        parser.error("--rounds must be 1 or more")
    try:
        import transformers  # noqa: F401
    except ImportError:
        parser.error("transformers is not installed: pip install transformers")
    seconds, cpu = measure(size, rounds)
    memory = {}
    for way in seconds:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            memory[way] = pool.submit(extra_memory, way, size).result()
    print(
        f"Marian, {size.layers} + {size.layers} layers of {size.width}, {size.vocabulary:,} entries, "
        f"{size.sentences * size.words:,} words; {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{rounds} rounds\n\n| way | s/step | fastest to slowest | / own loss | CPU s/step | / own loss | extra MB "
        "| / own loss |\n|---|---|---|---|---|---|---|---|"
    )
    for way, values in seconds.items():
        wall, busy = spread(values), spread(cpu[way])
        print(
            f"| {way} | {wall['median']:.3f} | {wall['min']:.3f} to {wall['max']:.3f} | {_ratio(seconds, way):.2f} | "
            f"{busy['median']:.3f} | {_ratio(cpu, way):.2f} | "
            f"{memory[way] / 1e6:,.0f} | {memory[way] / memory[BASELINE]:.2f} |"
        )
    if args.json:
        record = {"machine": this_machine(), "size": asdict(size), "seconds": seconds, "cpu_seconds": cpu}
        record["bytes"] = memory
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

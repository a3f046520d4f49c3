"""What it costs to ask a grid of temperatures: teachers that answer once, or run along with every student.

    python scripts/bench/study.py                      ResNet-50 to ResNet-18 on digits at 64x64; 2 teachers x 4 T
    python scripts/bench/study.py --rounds 1 --quick   ResNet-18 to ShuffleNetV2 x0.5, one epoch: does it run
    python scripts/bench/study.py --json figures.json  also write every single measurement

Real studies are run, one job at a time (scripts/study.py run), and what their jobs took is read from their folders. A
round is a seed: the two teachers (for two epochs; their own training is in no figure, as every way needs it), then

  running   eight students, the teacher running along with each (the baseline)
  stored    eight students in turns with those, and the two stores that they read: as many views as a student has epochs
  quarter   the same from stores of a quarter as many views

A job's time is all that its process took, start and evaluation included, so that at this small size the ratios are a
little worse than in a real study. Aims: stored at most 0.70 of running's time, quarter at most 0.62.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.bench.timing import spread, this_machine
from vision_reference.errors import UserError, run_command

ROOT = Path(__file__).resolve().parents[2]
TEMPERATURES, ALPHAS = (1, 2, 3, 4), (0.0, 0.1)
AIMS = {"stored": 0.70, "quarter": 0.62}
EPOCHS = 4


def configuration(quick: bool, rounds: int, views: int, answers: list[str]) -> dict:
    """A study of ``rounds`` seeds whose students are taught in each of the ways ``answers``, in turns."""
    side = 32 if quick else 64
    teacher, student = ("resnet18", "shufflenet_v2_x0_5") if quick else ("resnet50", "resnet18")
    sizes = {f"{split}-crop-size": side for split in ("train", "val")} | {"val-resize-size": side}
    return {
        "title": f"What a study costs: {teacher} to {student} at {side}x{side}, {views} views stored",
        "kind": "images",
        "data": "builtin",
        "seeds": list(range(rounds)),
        "teachers": "per-seed",
        "views": views,
        "settings": {"preset": "digits", "workers": 0, "batch-size": 32, "lr": 0.05, "wd": 5e-4} | sizes,
        "teacher": {"network": teacher, "epochs": 1 if quick else 2},
        "student": {"network": student, "epochs": 1 if quick else EPOCHS},
        "cells": [
            {"teacher": {"alpha": list(ALPHAS)}, "student": {"temperature": list(TEMPERATURES), "answers": answers}}
        ],
    }


def seconds_of(study: Path) -> dict[str, dict[int, float]]:
    """What the jobs of a finished study took, by way and seed: ``running`` and ``stored`` students, and ``store``.

    Args:
        study: the study's folder.
    """
    spent: dict[str, dict[int, float]] = {"running": {}, "stored": {}, "store": {}}
    for file in sorted((study / "runs").glob("*/run.json")):
        name, job = file.parent.name, json.loads(file.read_text())
        if not name.startswith(("store_", "student_")):
            continue
        seed = int(name.rpartition("seed")[2])
        way = "store" if name.startswith("store_") else "stored" if "--soft-labels" in job["command"] else "running"
        spent[way][seed] = spent[way].get(seed, 0.0) + job["seconds"]
    return spent


def summarize(whole: dict[str, dict[int, float]], quarter: dict[str, dict[int, float]]) -> dict:
    """Seconds of each way and their ratios to ``running``, formed within a round (a seed).

    Args:
        whole: ``seconds_of`` the study with as many views as epochs, which has both kinds of student.
        quarter: ``seconds_of`` the one with a quarter as many.
    """
    seconds = {
        "running": [whole["running"][seed] for seed in sorted(whole["running"])],
        "stored": [whole["store"][seed] + whole["stored"][seed] for seed in sorted(whole["running"])],
        "quarter": [quarter["store"][seed] + quarter["stored"][seed] for seed in sorted(whole["running"])],
    }
    ratios = {
        way: spread([one / base for one, base in zip(seconds[way], seconds["running"], strict=True)]) for way in AIMS
    }
    return {"seconds": seconds, "ratios": ratios}


def report(summary: dict) -> str:
    """The summary as a table."""
    lines = [f"{'way':<10}{'seconds':>10}{'of running':>12}   rounds"]
    lines.append(f"{'running':<10}{spread(summary['seconds']['running'])['median']:>10.1f}{1:>12.3f}   the baseline")
    for way, aim in AIMS.items():
        ratio, seconds = summary["ratios"][way], spread(summary["seconds"][way])["median"]
        spans = f"{ratio['min']:.3f} to {ratio['max']:.3f}, aim: at most {aim:.2f}"
        lines.append(f"{way:<10}{seconds:>10.1f}{ratio['median']:>12.3f}   {spans}")
    return "\n".join(lines)


def run_study(config: dict, folder: Path) -> dict[str, dict[int, float]]:
    """Run one in ``folder``, one job at a time, its progress on standard error."""
    file = folder.with_suffix(".yaml")
    file.write_text(json.dumps(config))  # JSON is YAML
    words = [sys.executable, str(ROOT / "scripts" / "study.py"), "run", str(file), "--output", str(folder)]
    if subprocess.run([*words, "--jobs", "1"], stdout=sys.stderr).returncode:
        raise UserError("a study did not finish (see above): nothing was measured")
    return seconds_of(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="32x32 images, one epoch, small networks")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="rounds, a seed each (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write measurements and summary here")
    args = parser.parse_args()
    if not 1 <= args.rounds <= 100:
        parser.error(f"--rounds must lie between 1 and 100, not {args.rounds}")
    epochs = 1 if args.quick else EPOCHS
    with tempfile.TemporaryDirectory() as temporary:
        whole = configuration(args.quick, args.rounds, epochs, ["running", "stored"])
        quarter = configuration(args.quick, args.rounds, max(1, epochs // 4), ["stored"])
        summary = summarize(run_study(whole, Path(temporary, "whole")), run_study(quarter, Path(temporary, "quarter")))
    print(f"{whole['title'].split(',')[0]}, {args.rounds} rounds\n{report(summary)}")
    if args.json:
        record = {"machine": this_machine(), "configuration": whole, **summary}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    run_command("study.py", main)

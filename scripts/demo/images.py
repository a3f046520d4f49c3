"""The image part of the demo: does a smoothed teacher teach better, and at which temperature? On real digits, on a CPU.

    python scripts/demo/images.py

The study scripts/studies/configs/digits.yaml: a ResNet-18 teacher with label smoothing 0.0 and one with 0.1; from each
a ShuffleNetV2 x0.5 (a thirtieth of the parameters) at T = 1 and T = 4, and the same student on labels alone, three
seeds each. Interrupt it and run it again: finished runs are not repeated, an unfinished one goes on.
Writes DIR/summary.{json,md} and the page DIR/report.html.
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts import study as studies
from scripts.lib.alpha_t_table import cells_by_student, format_table, spreads_by_student
from scripts.studies import plan as planning
from scripts.studies.schema import CONFIGS, read_study
from vision_reference.analysis.flags import count, path
from vision_reference.errors import Parser, run_command

ROOT = Path(__file__).resolve().parents[2]
CONFIG = CONFIGS / "digits.yaml"


def summarize(line: dict, output: Path) -> dict:
    """The entry of ``summary.json`` for a line of results; accuracies are those of the last epoch, in percent."""
    return {
        "role": line["role"],
        "model": line["network"],
        "alpha": line["alpha"],
        "temperature": line["temperature"],
        "seed": line["seed"],
        "acc1": line["metrics"]["acc1"],
        "acc5": line["metrics"]["acc5"],
        "epochs": len(line["curve"]),
        "seconds": line["seconds"],
        "checkpoint": os.path.relpath(output / line["folder"] / "checkpoint.pth", ROOT),
    }


def table(summary: list[dict]) -> str:
    """The paper's alpha x T table, and below it the student that had no teacher."""
    teacher, student = (next(one["model"] for one in summary if one["role"] == role) for role in ("teacher", "student"))
    text = f"# Digits: {teacher} to {student}, top-1 / top-5 (%)\n\n"
    taught = [one for one in summary if one["role"] != "baseline"]
    spreads = spreads_by_student(taught, digits=1)[student]
    text += format_table(cells_by_student(taught)[student], digits=2, spreads=spreads)
    seeds = len({one["seed"] for one in summary if one["role"] == "student"})
    text += "\n\nThe same student on labels alone: "
    parts = []
    for alpha in sorted({one["alpha"] for one in summary if one["role"] == "baseline"}):
        runs = [one for one in summary if one["role"] == "baseline" and one["alpha"] == alpha]
        acc1, acc5 = (sum(one[name] for one in runs) / len(runs) for name in ("acc1", "acc5"))
        parts.append(f"{acc1:.2f} / {acc5:.2f} ({'smoothed, ' if alpha else ''}alpha = {alpha:g})")
    text += "; ".join(parts) + ".\n"
    text += (
        f"Means of {seeds} seed{'s' * (seeds > 1)}; one teacher of each kind, so the answer is about these two. "
        "360 validation images: differences below about two points may be chance. The last epoch counts.\n"
    )
    return text


def main() -> None:
    """Run the study, write summary and page."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=path, default=ROOT / "results" / "demo" / "vision", metavar="DIR")
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs")
    parser.add_argument("--teacher-epochs", type=count, metavar="N", help="(default: as in digits.yaml)")
    parser.add_argument("--student-epochs", type=count, metavar="N", help="(default: as in digits.yaml)")
    args = parser.parse_args()
    study = read_study(CONFIG)
    if args.teacher_epochs:
        study = replace(study, teacher=study.teacher | {"epochs": args.teacher_epochs})
    if args.student_epochs:
        study = replace(study, student=study.student | {"epochs": args.student_epochs})
    output = args.output.absolute()
    plan = studies.run(study, CONFIG.read_text(), output, name="demo", fresh=args.fresh)
    summary = [summarize(line, output) for line in planning.results(plan, output)]
    text = table(summary)
    studies.write(output / "summary.json", json.dumps(summary, indent=2) + "\n")
    studies.write(output / "summary.md", text)
    print("\n" + text)
    print(f"written to {args.output}/summary.md and summary.json; checkpoints, metrics and logs in {args.output}/runs")
    studies.look_into(study, output)
    print(f"the page: {studies.write_report(output)}")


if __name__ == "__main__":
    run_command("demo", main)

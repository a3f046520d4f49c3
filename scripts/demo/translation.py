"""The translation part of the demo, on built-in data, on a CPU; about 4 minutes on two cores.

    python scripts/demo/translation.py

The study scripts/studies/configs/phrases.yaml: two experts (English to German, English to Russian), one multilingual
student distilled from them, one on labels alone, and their BLEU. Every step is a command of scripts/nmt/ with small
hyper-parameters: what is done here at toy size is done with real data in the same way. Writes DIR/summary.{json,md} and
the page DIR/report.html.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts import study as studies
from scripts.studies import plan as planning
from scripts.studies.schema import CONFIGS, read_study
from vision_reference.analysis.flags import path
from vision_reference.errors import Parser, run_command

ROOT = Path(__file__).resolve().parents[2]
CONFIG = CONFIGS / "phrases.yaml"
_ROLES = {"teacher": "expert", "baseline": "student, labels alone", "student": "student, distilled"}


def summarize(line: dict, output: Path) -> dict:
    """An entry of the summary: `alpha` is the label smoothing of the teachers, or of the model itself."""
    bleu = line["metrics"]["bleu"]
    return {
        "role": _ROLES[line["role"]],
        "pairs": list(bleu),
        "alpha": line["alpha"] if line["role"] != "baseline" else None,
        "temperature": line["temperature"],
        "bleu": {pair: round(value, 2) for pair, value in bleu.items()},
        "bleu_average": round(sum(bleu.values()) / len(bleu), 2),
        "seconds": round(line["seconds"], 1),
        "cpu_seconds": round(line["cpu_seconds"], 1),
        "checkpoint": os.path.relpath(output / line["folder"] / "checkpoint_best.pt", ROOT),
        "signature": line["metrics"]["signature"],
    }


def as_markdown(records: list[dict], pairs: tuple[str, ...]) -> str:
    lines = [f"| model | alpha | T | {' | '.join(f'BLEU {name}' for name in pairs)} | training, s |"]
    lines.append("|" + "---|" * (len(pairs) + 4))
    for entry in records:
        scores = [f"{entry['bleu'][name]:.2f}" if name in entry["bleu"] else "" for name in pairs]
        alpha, temperature = ("" if value is None else f"{value:g}" for value in (entry["alpha"], entry["temperature"]))
        lines.append(f"| {' | '.join([entry['role'], alpha, temperature, *scores, format(entry['seconds'], '.0f')])} |")
    return "\n".join([*lines, "", f"- BLEU: `{records[0]['signature']}`, beam 5, built-in test set, one seed"]) + "\n"


def main() -> None:
    """Run the study, write summary and page."""
    started = time.monotonic()
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=path, default=ROOT / "results" / "demo" / "translation", metavar="DIR")
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs")
    args = parser.parse_args()
    study, output = read_study(CONFIG), args.output.absolute()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the demo is about CPUs, where its settings are right
    plan = studies.run(study, CONFIG.read_text(), output, name="demo", fresh=args.fresh)
    order = list(_ROLES.values())
    records = [summarize(line, output) for line in planning.results(plan, output)]
    records.sort(key=lambda record: order.index(record["role"]))
    table = as_markdown(records, study.pairs)
    studies.write(output / "summary.md", table)
    studies.write(output / "summary.json", json.dumps(records, indent=2) + "\n")
    print(f"\n{table}\nresults: {args.output}/summary.md and summary.json ({time.monotonic() - started:.0f} s)")
    studies.look_into(study, output)
    print(f"the page: {studies.write_report(output)}")


if __name__ == "__main__":
    run_command("demo", main)

"""The steps of the translation demo; started by demo.sh, which sets the stage.

Every step is one of this folder's own commands, with small hyper-parameters: what is done here at toy size is done with
real data in the same way.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.user_error import UserError, run_cli

SCRIPTS = Path(__file__).resolve().parents[1]
RESULTS = Path("results/demo/translation")
PAIRS = (LangPair("en", "de"), LangPair("en", "ru"))
TEACHER_ALPHA, TEMPERATURE = 0.1, 1  # the combination that the paper recommends

# Small enough for four minutes. Two trainings run side by side with a thread each: a second thread would gain little.
SETTINGS = {
    "CPU": "1",
    "OMP_NUM_THREADS": "1",
    "ENCODER_LAYERS": "2",
    "DECODER_LAYERS": "1",
    "EMBED_DIM": "128",
    "FFN_DIM": "512",
    "DROPOUT": "0.0",
    "LR": "2e-3",
    "WARMUP_UPDATES": "400",
    "ADAM_BETAS": "(0.9, 0.95)",
    "MAX_TOKENS": "256",
    "MAX_EPOCH": "10",  # the number of updates ends a training before
}
EXPERT_UPDATES, STUDENT_UPDATES = "1900", "2300"
# In so few updates it matters most that the learning rate comes down to zero at their end.
SCHEDULE = ("--lr-scheduler", "cosine", "--max-update")


def script(name: str, *arguments: str, **variables: object) -> list[list[str]]:
    """The commands that a training script would run with these arguments and variables (DRY_RUN=1)."""
    environment = {**os.environ, **SETTINGS, **{key: str(value) for key, value in variables.items()}, "DRY_RUN": "1"}
    command = ["bash", str(SCRIPTS / "nmt" / name), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{name} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return [shlex.split(line) for line in done.stdout.splitlines()]


def train(commands: list[list[str]]) -> None:
    """Run trainings side by side; finished ones are skipped, interrupted ones go on."""
    words: list[str] = []
    for command in commands:
        words += ["---", command[command.index("--save-dir") + 1], *command]
    run(["lib/jobs.py", "--jobs", "2", "--", *words[1:]], SETTINGS)


def run(command: list[str], variables: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, str(SCRIPTS / command[0]), *command[1:]], env={**os.environ, **variables})
    if done.returncode:
        sys.exit(done.returncode)  # the command has said why


def evaluate(folder: Path, pairs: tuple[LangPair, ...], data_bin: Path, baseline: Path | None = None) -> dict:
    """BLEU of the checkpoint in `folder`, from its bleu.json if that is newer than the checkpoint."""
    checkpoint, output = folder / "checkpoint_best.pt", folder / "bleu.json"
    if output.is_file() and output.stat().st_mtime >= checkpoint.stat().st_mtime:
        return json.loads(output.read_text(encoding="utf-8"))
    # fairseq takes seconds to import: only if needed
    from scripts.nmt.evaluate_bleu import evaluate as evaluate_checkpoint

    return evaluate_checkpoint(data_bin, checkpoint, list(pairs), output, baseline=baseline)


def record(role: str, folder: Path, result: dict, alpha: float | None, temperature: float | None) -> dict:
    """One line of the summary: `alpha` is the label smoothing of the teachers, or of the expert itself."""
    times = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return {
        "role": role,
        "pairs": list(result["pairs"]),
        "alpha": alpha,
        "temperature": temperature,
        "bleu": {pair: round(scores["bleu"], 2) for pair, scores in result["pairs"].items()},
        "bleu_average": round(result["average"]["bleu"], 2),
        "seconds": round(times["seconds"], 1),
        "cpu_seconds": round(times["cpu_seconds"], 1),
        "checkpoint": result["checkpoint"],
        "signature": result["signatures"]["bleu"],
    }


def as_markdown(records: list[dict]) -> str:
    names = [str(pair) for pair in PAIRS]
    lines = [f"| model | alpha | T | {' | '.join(f'BLEU {name}' for name in names)} | training, s |"]
    lines.append("|" + "---|" * (len(names) + 4))
    for entry in records:
        scores = [f"{entry['bleu'][name]:.2f}" if name in entry["bleu"] else "" for name in names]
        alpha, temperature = ("" if value is None else str(value) for value in (entry["alpha"], entry["temperature"]))
        lines.append(f"| {' | '.join([entry['role'], alpha, temperature, *scores, format(entry['seconds'], '.0f')])} |")
    return "\n".join([*lines, "", f"- BLEU: `{records[0]['signature']}`, beam 5, built-in test set"]) + "\n"


def main() -> None:
    started = time.monotonic()
    if "--fresh" in sys.argv[1:]:
        shutil.rmtree(RESULTS, ignore_errors=True)
    data, experts = RESULTS / "data", RESULTS / "experts"
    distilled, labels = RESULTS / "student-distilled", RESULTS / "student-labels"

    print("[1/4] data: phrases of the Unicode CLDR", flush=True)
    run(["prepare.py", "builtin", "--output", str(data)], {})
    print("[2/4] experts: one for each language pair", flush=True)
    common = {"DATA": data, "PAIRS": ",".join(map(str, PAIRS))}
    expert = ("train_experts.sh", *SCHEDULE, EXPERT_UPDATES)
    train(script(*expert, **common, OUT=experts, LABEL_SMOOTHING=TEACHER_ALPHA))
    print("[3/4] students: distilled from the experts, and on labels alone", flush=True)
    student = ("train_student.sh", *SCHEDULE, STUDENT_UPDATES)
    train(
        script(*student, **common, OUT=distilled, EXPERTS=experts, TEMPERATURE=TEMPERATURE)
        + script(*student, **common, OUT=labels)
    )

    print("[4/4] BLEU on the test set", flush=True)
    data_bin = data / "data-bin"
    records = [
        record("expert", experts / str(pair), evaluate(experts / str(pair), (pair,), data_bin), TEACHER_ALPHA, None)
        for pair in PAIRS
    ]
    records.append(record("student, labels alone", labels, evaluate(labels, PAIRS, data_bin), None, None))
    result = evaluate(distilled, PAIRS, data_bin, baseline=labels / "bleu.json")
    records.append(record("student, distilled", distilled, result, TEACHER_ALPHA, TEMPERATURE))

    table = as_markdown(records)
    (RESULTS / "summary.md").write_text(table, encoding="utf-8")
    (RESULTS / "summary.json").write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table}\nresults: {RESULTS}/summary.md and summary.json ({time.monotonic() - started:.0f} s)")


if __name__ == "__main__":
    run_cli("translation.py", main)

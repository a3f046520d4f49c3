"""Translates a prepared test set with stock fairseq and scores it with sacrebleu.

    python scripts/nmt/evaluate_bleu.py --data-bin data/iwslt/data-bin --lang-pairs en-de,en-ru \\
        --checkpoint results/student/checkpoint_best.pt --output results/student/bleu.json \\
        --baseline results/student-labels/bleu.json

Serves bilingual experts and multilingual students. Uses all GPUs, or all cores where there is none. Writes FILE (JSON),
FILE with the ending .md (a table) and, for every pair, the translations as plain text beside it:
`<stem>.<src>-<tgt>.<tgt>`. References are the text that prepare.py kept next to data-bin.
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import sentencepiece

from scripts.nmt.lib import score as bleu
from scripts.nmt.lib.generate import decode, translate
from scripts.nmt.lib.lang_pair import LangPair, parse_pairs
from scripts.nmt.lib.user_error import UserError, run_cli


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-bin", type=Path, required=True, metavar="D", help="the data-bin that prepare.py made")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="C", help="of an expert or a student")
    parser.add_argument("--lang-pairs", required=True, help="such as en-de,en-ru")
    parser.add_argument("--subset", choices=("test", "valid", "train"), default="test")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON file to write")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="an earlier output to compare with")
    parser.add_argument("--beam", type=int, default=5, help="beam size (default: %(default)s)")
    return parser


def read_references(prepared: Path, subset: str, pair: LangPair) -> list[str]:
    """The cleaned target text of one split. Raises UserError if `prepared` has none."""
    path = prepared / "text" / f"{subset}.{pair}.{pair.target}"
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except OSError:
        raise UserError(
            f"{path} is missing: --data-bin must lie in a folder made by prepare.py that has {pair}"
        ) from None


def digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def hypotheses_file(output: Path, pair: LangPair) -> Path:
    return output.with_name(f"{output.stem}.{pair}.{pair.target}")


def read_baseline(path: Path, references: dict[LangPair, list[str]]) -> dict[LangPair, list[str]]:
    """The translations of an earlier evaluation. Raises UserError if they are missing or of other references."""
    try:
        pairs = json.loads(path.read_text(encoding="utf-8"))["pairs"]
        found = {}
        for pair, lines in references.items():
            if pairs.get(str(pair), {}).get("references_sha256") != digest(lines):
                raise UserError(f"--baseline {path} does not score {pair} on the same references; evaluate it on them")
            found[pair] = hypotheses_file(path, pair).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--baseline {path} cannot be used ({error}); give a file written by evaluate_bleu.py"
        ) from None
    return found


def as_markdown(result: dict) -> str:
    """The table: a row for every pair and, where there are several, one for the average."""
    compared = any("baseline" in scores for scores in result["pairs"].values())
    head = ["pair", "BLEU", "chrF"] + (["baseline BLEU", "difference", "p"] if compared else [])
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for pair, scores in result["pairs"].items():
        cells = [pair, f"{scores['bleu']:.2f}", f"{scores['chrf']:.2f}"]
        if compared:
            against = scores["baseline"]["bleu"]
            cells += [f"{against['baseline']:.2f}", f"{against['difference']:+.2f}", f"{against['p_value']:.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    if len(result["pairs"]) > 1:
        average = [f"{result['average'][metric]:.2f}" for metric in bleu.METRICS]
        lines.append(f"| {' | '.join(['average', *average] + [''] * (len(head) - 3))} |")
    notes = [f"{name}: `{text}`" for name, text in result["signatures"].items()]
    if compared:
        notes.append(f"p: paired bootstrap, {bleu.BOOTSTRAP_SAMPLES:,} resamples")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


def write(path: Path, text: str) -> None:
    """Replace the file in one step, so that a reader never sees half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    temporary.replace(path)


def evaluate(
    data_bin: Path,
    checkpoint: Path,
    pairs: list[LangPair],
    output: Path,
    *,
    subset: str = "test",
    beam: int = 5,
    baseline: Path | None = None,
) -> dict:
    """Translate and score one checkpoint, write the files the module's text names, and return what the JSON holds.

    Raises UserError for missing or unfitting files and options.
    """
    if output.suffix != ".json":
        raise UserError(f"--output {output} must end in .json; the table and translations are written beside it")
    prepared = data_bin.resolve().parent
    references = {pair: read_references(prepared, subset, pair) for pair in pairs}
    before = read_baseline(baseline, references) if baseline else {}

    started = time.monotonic()
    pieces = translate(data_bin, checkpoint, pairs, subset, beam)
    model = sentencepiece.SentencePieceProcessor(model_file=str(prepared / "spm.model"))
    result = {"checkpoint": str(checkpoint), "subset": subset, "beam": beam, "pairs": {}}
    output.parent.mkdir(parents=True, exist_ok=True)
    for pair, lines in references.items():
        hypotheses = decode(pieces[pair], model, len(lines))
        write(hypotheses_file(output, pair), "\n".join(hypotheses) + "\n")
        scores = {**bleu.score(hypotheses, lines), "sentences": len(lines), "references_sha256": digest(lines)}
        if baseline:
            scores["baseline"] = bleu.paired_bootstrap(hypotheses, before[pair], lines)
        result["pairs"][str(pair)] = scores
    result["average"] = {
        metric: sum(scores[metric] for scores in result["pairs"].values()) / len(pairs) for metric in bleu.METRICS
    }
    result["signatures"] = bleu.signatures()
    result["seconds"] = round(time.monotonic() - started, 1)
    write(output, json.dumps(result, indent=2) + "\n")
    write(output.with_suffix(".md"), as_markdown(result))
    return result


def main() -> None:
    args = get_args_parser().parse_args()
    if args.beam < 1:
        raise UserError(f"--beam {args.beam} is below 1")
    result = evaluate(
        args.data_bin,
        args.checkpoint,
        parse_pairs(args.lang_pairs),
        args.output,
        subset=args.subset,
        beam=args.beam,
        baseline=args.baseline,
    )
    print(as_markdown(result), end="")


if __name__ == "__main__":
    run_cli("evaluate_bleu.py", main)

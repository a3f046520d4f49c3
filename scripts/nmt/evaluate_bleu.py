"""Translates test sets with a trained student or expert and scores them with sacrebleu: BLEU and chrF.

    python scripts/nmt/evaluate_bleu.py --data-bin data/iwslt/data-bin --lang-pairs en-de,en-ru \\
        --checkpoint results/student/checkpoint_best.pt --output results/student/bleu.json \\
        --baseline results/student-labels/bleu.json
    python scripts/nmt/evaluate_bleu.py --checkpoint results/student/checkpoint_best.pt --lang-pairs en-de \\
        --test-set news=news.en,news.de --output results/student/news.json
    python scripts/nmt/evaluate_bleu.py --compare results/student-labels/bleu.json results/student/bleu.json

Serves bilingual experts and multilingual students; translations are those of `fairseq-generate`. Uses all GPUs, or all
cores where there is none. Writes FILE (JSON), FILE with the ending .md (a table) and beside it, as plain text, the
translations of every pair, `<stem>.<src>-<tgt>.<tgt>`, and their references, `<stem>.<src>-<tgt>.reference.<tgt>` (with
the name of a --test-set before the pair): `--compare A B` asks by paired bootstrap whether B differs from A on them.
The prepared test set is the text that prepare.py kept next to data-bin.
"""

import argparse
import hashlib
import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.nmt.lib import score as bleu
from scripts.nmt.lib.lang_pair import LangPair, parse_pairs
from scripts.nmt.lib.parallel_text import read_pair
from scripts.nmt.lib.progress import Progress
from scripts.nmt.lib.user_error import UserError, run_cli
from vision_reference.analysis import flags
from vision_reference.errors import Parser

COMET_MODEL = "Unbabel/wmt22-comet-da"


def get_args_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=flags.path, metavar="C", help="of an expert or a student")
    parser.add_argument("--lang-pairs", type=flags.filled_text, help="such as en-de,en-ru")
    parser.add_argument("--output", type=flags.path, metavar="FILE", help="JSON file to write")
    parser.add_argument(
        "--data-bin", type=flags.path, metavar="D", help="the data-bin that prepare.py made: score its --subset"
    )
    parser.add_argument("--subset", choices=("test", "valid", "train"), default="test", help="default: %(default)s")
    parser.add_argument(
        "--test-set",
        action="append",
        default=[],
        metavar="NAME=SRC,REF",
        help="score two aligned files of plain text; several may be given. With several --lang-pairs the files' "
        "endings say which pair they are of",
    )
    parser.add_argument("--baseline", type=flags.path, metavar="FILE", help="an earlier output to compare with")
    parser.add_argument("--beam", type=int, default=5, help="beam size (default: %(default)s)")
    parser.add_argument(
        "--average",
        type=int,
        metavar="N",
        help="score the mean of the last N epoch checkpoints in the folder of --checkpoint; it is written there as "
        "checkpoint_mean_<first>-<last>.pt, for translate.py and export.py as well",
    )
    parser.add_argument(
        "--comet",
        nargs="?",
        const=COMET_MODEL,
        metavar="MODEL",
        help="score with COMET, too (package unbabel-comet): a model's file or its name (default: %(const)s)",
    )
    parser.add_argument("--cpu", action="store_true", help="leave GPUs alone")
    parser.add_argument(
        "--compare",
        nargs=2,
        type=flags.path,
        metavar=("A", "B"),
        help="compare two earlier outputs on the sets that both have scored; nothing is translated. With --output the "
        "table is written as JSON, too",
    )
    return parser


@dataclass(frozen=True)
class ScoredSet:
    """Sentences to translate and their references; `name` is empty for the prepared data's own split."""

    name: str
    pair: LangPair
    sources: list[str]
    references: list[str]

    @property
    def label(self) -> str:
        return f"{self.name}.{self.pair}" if self.name else str(self.pair)


def read_prepared(data_bin: Path, subset: str, pair: LangPair) -> ScoredSet:
    """The cleaned text of one split. Raises UserError if the folder around `data_bin` has none."""
    files = [data_bin.resolve().parent / "text" / f"{subset}.{pair}.{language}" for language in pair]
    for path in files:
        if not path.is_file():
            raise UserError(f"{path} is missing: --data-bin must lie in a folder made by prepare.py that has {pair}")
    return ScoredSet("", pair, *read_pair(*files))


def read_test_set(text: str, pairs: list[LangPair]) -> ScoredSet:
    """`NAME=SRC,REF`. Raises UserError for anything else, and where the pair cannot be told from the files' names."""
    name, _, files = text.partition("=")
    paths = [Path(path) for path in files.split(",")]
    if not re.fullmatch(r"\w[\w.-]*", name) or len(paths) != 2:
        raise UserError(f"--test-set {text}: give NAME=SRC,REF, such as news=news.en,news.de")
    endings = tuple(path.name.removesuffix(".gz").rpartition(".")[2] for path in paths)
    found = [pair for pair in pairs if pair == endings] or (pairs if len(pairs) == 1 else [])
    if not found:
        raise UserError(
            f"--test-set {text}: of which pair? Let the files end in the languages of one of --lang-pairs "
            f"({', '.join(map(str, pairs))}), or name one pair alone"
        )
    return ScoredSet(name, found[0], *read_pair(*paths))


def digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def hypotheses_file(output: Path, label: str, language: str) -> Path:
    return output.with_name(f"{output.stem}.{label}.{language}")


def references_file(output: Path, label: str, language: str) -> Path:
    return output.with_name(f"{output.stem}.{label}.reference.{language}")


def read_scores(path: Path) -> dict[str, dict]:
    """{label: scores} of an earlier output. Raises UserError if it is no file of evaluate_bleu.py."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        found = dict(held["pairs"])
        found |= {
            f"{name}.{pair}": scores
            for name, pairs in held.get("test_sets", {}).items()
            for pair, scores in pairs.items()
        }
        if not all("references_sha256" in scores for scores in found.values()):
            raise KeyError("references_sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be used ({error}); give a file written by evaluate_bleu.py") from None
    return found


def read_lines(path: Path) -> list[str]:
    """Raises UserError if the file is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); evaluate_bleu.py leaves it beside its output") from None


def read_baseline(path: Path, sets: list[ScoredSet]) -> dict[str, list[str]]:
    """The translations of an earlier evaluation. Raises UserError if they are missing or of other references."""
    scores = read_scores(path)
    found = {}
    for one in sets:
        if scores.get(one.label, {}).get("references_sha256") != digest(one.references):
            raise UserError(f"--baseline {path} does not score {one.label} on the same references; evaluate it on them")
        found[one.label] = read_lines(hypotheses_file(path, one.label, one.pair.target))
    return found


def as_markdown(result: dict) -> str:
    """The table: a row for every pair and test set and, where there are several pairs, one for their average."""
    rows = dict(result["pairs"])
    rows |= {f"{name}, {pair}": scores for name, pairs in result["test_sets"].items() for pair, scores in pairs.items()}
    compared = any("baseline" in scores for scores in rows.values())
    with_comet = any("comet" in scores for scores in rows.values())
    head = ["pair", "BLEU", "chrF"] + (["COMET"] if with_comet else [])
    head += ["baseline BLEU", "difference", "p"] if compared else []
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, scores in rows.items():
        cells = [name, f"{scores['bleu']:.2f}", f"{scores['chrf']:.2f}"]
        cells += [f"{scores['comet']:.4f}"] if with_comet else []
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


def compare(first: Path, second: Path) -> dict[str, dict[str, dict[str, float]]]:
    """{label: {metric: what `score.paired_bootstrap` finds}} of `second` against `first`, for the sets that both
    outputs have scored on the same references.

    Raises UserError if there is none, or a file beside the outputs is missing.
    """
    before, after = read_scores(first), read_scores(second)
    shared = [
        label
        for label, scores in after.items()
        if label in before and before[label]["references_sha256"] == scores["references_sha256"]
    ]
    if not shared:
        raise UserError(f"{first} and {second} have no set in common that was scored on the same references")
    found = {}
    for label in shared:
        language = label.rpartition("-")[2]
        references = read_lines(references_file(second, label, language))
        hypotheses = [read_lines(hypotheses_file(path, label, language)) for path in (first, second)]
        if digest(references) != after[label]["references_sha256"] or {len(references)} != set(map(len, hypotheses)):
            raise UserError(f"the texts of {label} beside {first} and {second} were changed since; evaluate again")
        found[label] = bleu.paired_bootstrap(hypotheses[1], hypotheses[0], references)
    return found


def comparison_table(first: Path, second: Path, found: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = ["| pair | metric | A | B | B - A | p |", "|---|---|---|---|---|---|"]
    for label, metrics in found.items():
        for metric, one in metrics.items():
            total = one["baseline"] + one["difference"]
            cells = [label, metric, f"{one['baseline']:.2f}", f"{total:.2f}", f"{one['difference']:+.2f}"]
            lines.append(f"| {' | '.join(cells)} | {one['p_value']:.4f} |")
    notes = [f"- A: {first}", f"- B: {second}", f"- p: paired bootstrap, {bleu.BOOTSTRAP_SAMPLES:,} resamples"]
    return "\n".join([*lines, "", *notes]) + "\n"


def write(path: Path, text: str) -> None:
    """Replace the file in one step, so that a reader never sees half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    temporary.replace(path)


def evaluate(
    data_bin: Path | None,
    checkpoint: Path,
    pairs: list[LangPair],
    output: Path,
    *,
    subset: str = "test",
    beam: int = 5,
    baseline: Path | None = None,
    test_sets: tuple[str, ...] = (),
    average_of: int | None = None,
    comet: str | None = None,
    cpu: bool = False,
) -> dict:
    """Translate and score one checkpoint, write the files the module's text names, and return what the JSON holds.

    Raises UserError for missing or unfitting files and options.
    """
    if output.suffix != ".json":
        raise UserError(f"--output {output} must end in .json; the table and translations are written beside it")
    sets = [read_prepared(data_bin, subset, pair) for pair in pairs] if data_bin else []
    sets += [read_test_set(text, pairs) for text in test_sets]
    if len({one.label for one in sets}) < len(sets):
        raise UserError("two of the --test-set have one name and one pair; give each its own name")
    before = read_baseline(baseline, sets) if baseline else {}
    judge = bleu.load_comet(comet) if comet else None

    from scripts.nmt.lib.averaged_checkpoint import average, last_checkpoints
    from scripts.nmt.lib.recorded_model import read_recorded

    started = time.monotonic()
    if average_of:
        folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
        checkpoint = average(last_checkpoints(folder, average_of))
    recorded = read_recorded(checkpoint)
    recorded.require(pairs)
    result: dict = {"checkpoint": str(checkpoint), "subset": subset, "beam": beam, "pairs": {}, "test_sets": {}}
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for one, hypotheses in zip(sets, _translations(recorded, sets, data_bin, beam, cpu), strict=True):
            write(hypotheses_file(output, one.label, one.pair.target), "\n".join(hypotheses) + "\n")
            write(references_file(output, one.label, one.pair.target), "\n".join(one.references) + "\n")
            scores = bleu.score(hypotheses, one.references)
            if judge:
                scores["comet"] = judge(one.sources, hypotheses, one.references)
            scores |= {"sentences": len(hypotheses), "references_sha256": digest(one.references)}
            if baseline:
                scores["baseline"] = bleu.paired_bootstrap(hypotheses, before[one.label], one.references)
            place = result["test_sets"].setdefault(one.name, {}) if one.name else result["pairs"]
            place[str(one.pair)] = scores
        result["average"] = {
            metric: sum(scores[metric] for scores in result["pairs"].values()) / len(result["pairs"])
            for metric in bleu.METRICS
            if result["pairs"]
        }
        result["signatures"] = bleu.signatures()
        result["seconds"] = round(time.monotonic() - started, 1)
        write(output, json.dumps(result, indent=2) + "\n")
        write(output.with_suffix(".md"), as_markdown(result))
    except OSError as error:
        raise UserError(f"{error.filename or output}: cannot be written ({error.strerror}); check --output") from None
    return result


def _translations(recorded, sets: list[ScoredSet], data_bin: Path | None, beam: int, cpu: bool):
    """The translations of one set after the other, with a progress bar over all of them."""
    from scripts.nmt.lib.recorded_model import Vocabulary, find_vocabulary
    from scripts.nmt.lib.translator import Translator, devices, in_blocks, translate_blocks

    places = devices(cpu)
    total = sum(len(one.sources) for one in sets)
    with Progress("translating", total, "sentence") as progress:
        for one in sets:
            vocabulary = (
                Vocabulary(data_bin, data_bin.resolve().parent / "spm.model")
                if data_bin
                else find_vocabulary(recorded, one.pair)
            )
            translator = Translator(recorded, one.pair, vocabulary, beam)
            # sentences of similar length together, in blocks small enough to keep every process busy
            order = sorted(range(len(one.sources)), key=lambda number: len(one.sources[number]))
            size = max(1, min(512, -(-len(order) // (4 * len(places)))))
            found: dict[int, str] = {}
            blocks = list(in_blocks([one.sources[number] for number in order], size))
            for block in translate_blocks(translator, blocks, places):
                for translation in block:
                    number = order[len(found)]
                    if translation.problem:
                        raise UserError(f"{one.label}, sentence {number + 1}: {translation.problem}; take it out")
                    found[number] = translation.text
                progress.add(len(block))
            yield [found[number] for number in range(len(order))]


def main() -> None:
    parser = get_args_parser()
    args = parser.parse_args()
    if args.compare:
        found = compare(*args.compare)
        if args.output:
            held = {"first": str(args.compare[0]), "second": str(args.compare[1]), "sets": found}
            try:
                args.output.parent.mkdir(parents=True, exist_ok=True)
                write(args.output, json.dumps(held, indent=2) + "\n")
            except OSError as error:
                raise UserError(f"--output {args.output}: cannot be written ({error.strerror})") from None
        print(comparison_table(*args.compare, found), end="")
        return
    for name in ("checkpoint", "lang_pairs", "output"):
        if getattr(args, name) is None:
            parser.error(f"--{name.replace('_', '-')} is needed (or --compare A B)")
    if not (args.data_bin or args.test_set):
        parser.error("give --data-bin, --test-set NAME=SRC,REF, or both: what is to be scored?")
    for name in ("beam", "average"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} is below 1")
    result = evaluate(
        args.data_bin,
        args.checkpoint,
        parse_pairs(args.lang_pairs),
        args.output,
        subset=args.subset,
        beam=args.beam,
        baseline=args.baseline,
        test_sets=tuple(args.test_set),
        average_of=args.average,
        comet=args.comet,
        cpu=args.cpu,
    )
    print(as_markdown(result), end="")


if __name__ == "__main__":
    run_cli("evaluate_bleu.py", main)

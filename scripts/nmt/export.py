"""Writes a trained translation model as a folder that needs neither this project nor fairseq to translate.

    python scripts/nmt/export.py results/student/checkpoint_best.pt --format ctranslate2 --output results/student-ct2
    python scripts/nmt/export.py results/student/checkpoint_best.pt --format ctranslate2 --int8 --output small \\
        --test-set en-de=news.en,news.de

    DIR/model.bin, config.json, shared_vocabulary.json    the model, as `ctranslate2.Translator(DIR)` opens it
    DIR/spm.model                                         turns text into pieces and pieces into text (sentencepiece)
    DIR/translation.json                                  language pairs and their language tokens
    DIR/README.md                                         model card, with a short Python example and what was measured

Right away BLEU and sentences per second are compared with the checkpoint's own in fairseq: on the sentences of
--test-set, else on the test set of the data it was trained on, where that is still in its place. The folder appears
when it is whole.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.user_error import UserError, run_cli
from vision_reference.analysis import flags
from vision_reference.errors import Parser

FORMATS = ("ctranslate2",)


def get_args_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=flags.path, metavar="CHECKPOINT", help="of a student or an expert")
    parser.add_argument("--format", choices=FORMATS, required=True, help="what to write")
    parser.add_argument("--output", type=flags.path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--int8", action="store_true", help="weights as 8-bit integers: a quarter of the size")
    parser.add_argument(
        "--test-set",
        action="append",
        default=[],
        metavar="PAIR=SRC,REF",
        help="text to compare on, such as en-de=news.en,news.de; once for each pair",
    )
    parser.add_argument(
        "--sentences",
        type=int,
        default=500,
        metavar="N",
        help="first sentences of each set that are compared; 0: compare nothing (default: %(default)s)",
    )
    parser.add_argument("--beam", type=int, default=5, help="beam size of the comparison (default: %(default)s)")
    parser.add_argument("--licence", metavar="NAME", help="of the weights, such as cc-by-4.0; goes into the card")
    return parser


@dataclass(frozen=True)
class Comparison:
    """One pair's: BLEU and sentences per second of fairseq and of the exported folder, and equal translations."""

    sentences: int
    fairseq_bleu: float
    exported_bleu: float
    fairseq_rate: float
    exported_rate: float
    equal: int


def main() -> None:
    args = get_args_parser().parse_args()
    for name in ("beam", "sentences"):
        if getattr(args, name) < (name == "beam"):
            raise UserError(f"--{name} {getattr(args, name)} is too small")
    from scripts.nmt.lib.ctranslate2_model import convert, import_ctranslate2
    from scripts.nmt.lib.data_bin import partial_folder
    from scripts.nmt.lib.recorded_model import find_vocabulary, read_recorded

    import_ctranslate2()
    if args.output.exists() and not (args.output.is_dir() and not any(args.output.iterdir())):
        raise UserError(f"--output {args.output} exists already; choose a new folder or remove it")
    recorded = read_recorded(args.checkpoint)
    vocabulary = find_vocabulary(recorded, recorded.pairs[0])
    sets = read_test_sets(args.test_set, recorded.pairs) or own_test_sets(recorded)
    with partial_folder(args.output) as folder:
        settings = convert(recorded, vocabulary, folder, int8=args.int8)
        (folder / "spm.model").write_bytes(vocabulary.sentencepiece.read_bytes())
        compared = {}
        for pair, (source, reference) in sets.items() if args.sentences else ():
            lines = source[: args.sentences], reference[: args.sentences]
            compared[pair] = compare(recorded, vocabulary, settings, folder, pair, *lines, args.beam)
        size = sum(path.stat().st_size for path in folder.iterdir())
        card = model_card(args, recorded, settings, compared, size)
        (folder / "README.md").write_text(card, encoding="utf-8")
    print(comparison_table(compared) if compared else NOT_COMPARED)
    print(f"{args.output}: {size / 1e6:,.1f} MB, {args.checkpoint.stat().st_size / 1e6:,.1f} MB as a checkpoint")


NOT_COMPARED = "not compared with fairseq: no test set beside the training data; give one with --test-set"


def read_test_sets(given: list[str], pairs: tuple[LangPair, ...]) -> dict[LangPair, tuple[list[str], list[str]]]:
    """`en-de=SRC,REF` -> the lines of both files. Raises UserError for other pairs, and files that do not fit."""
    from scripts.nmt.lib.parallel_text import read_pair

    known = {str(pair): pair for pair in pairs}
    found = {}
    for text in given:
        name, _, files = text.partition("=")
        paths = files.split(",")
        if name not in known or len(paths) != 2 or not all(paths):
            raise UserError(f"--test-set {text}: give PAIR=SRC,REF with PAIR one of {', '.join(known)}")
        if known[name] in found:
            raise UserError(f"--test-set {name} is given twice; give each pair once")
        found[known[name]] = read_pair(Path(paths[0]), Path(paths[1]))
    return found


def own_test_sets(recorded) -> dict[LangPair, tuple[list[str], list[str]]]:
    """The test sets of the folder that prepare.py made and the model was trained on, as far as they are in place."""
    from scripts.nmt.lib.parallel_text import read_pair

    folder = recorded.data_bin.parent / "text"
    found = {}
    for pair in recorded.pairs:
        files = [folder / f"test.{pair}.{language}" for language in pair]
        if all(path.is_file() for path in files):
            found[pair] = read_pair(*files)
    return found


def compare(recorded, vocabulary, settings, folder, pair, sources, references, beam) -> Comparison:
    """Translate `sources` with the checkpoint in fairseq and with the exported folder, each on all cores."""
    from scripts.nmt.lib.ctranslate2_model import ConvertedTranslator
    from scripts.nmt.lib.score import score
    from scripts.nmt.lib.translator import Translator, devices, in_blocks, translate_blocks

    translator = Translator(recorded, pair, vocabulary, beam)
    started = time.monotonic()
    blocks = translate_blocks(translator, in_blocks(sources, 64), devices(cpu=True))
    ours = [translation.text for block in blocks for translation in block]
    fairseq_seconds = time.monotonic() - started
    exported = ConvertedTranslator(folder, folder / "spm.model", settings, pair, beam, cpu=True)
    started = time.monotonic()
    theirs = [translation.text for translation in exported.translate(sources)]
    exported_seconds = time.monotonic() - started
    return Comparison(
        sentences=len(sources),
        fairseq_bleu=score(ours, references)["bleu"],
        exported_bleu=score(theirs, references)["bleu"],
        fairseq_rate=len(sources) / fairseq_seconds,
        exported_rate=len(sources) / exported_seconds,
        equal=sum(one == other for one, other in zip(ours, theirs, strict=True)),
    )


def comparison_table(compared: dict[LangPair, Comparison]) -> str:
    lines = [
        "| pair | sentences | BLEU, fairseq | BLEU, exported | equal translations | sentences/s, fairseq | exported |",
        "|---|---|---|---|---|---|---|",
    ]
    for pair, one in compared.items():
        lines.append(
            f"| {pair} | {one.sentences:,} | {one.fairseq_bleu:.2f} | {one.exported_bleu:.2f} | "
            f"{one.equal / one.sentences:.1%} | {one.fairseq_rate:.1f} | {one.exported_rate:.1f} |"
        )
    return "\n".join(lines)


def model_card(args, recorded, settings, compared: dict[LangPair, Comparison], size: int) -> str:
    """README.md as the Hugging Face Hub expects it: what the model is, how to use it, what was measured."""
    import ctranslate2

    from scripts.nmt.lib.recorded_model import as_dict

    pair = recorded.pairs[0]
    languages = dict.fromkeys(language for one in recorded.pairs for language in one)
    source, target = settings.prefixes[str(pair)]
    options = as_dict(recorded.options) | as_dict(recorded.state["cfg"].model)
    front = ["---", *([f"license: {args.licence}"] if args.licence else [])]
    front += ["library_name: ctranslate2", "pipeline_tag: translation", "language:"]
    front += [*(f"- {language}" for language in languages), "---"]
    made = [
        f"- architecture: `{options.get('arch')}`, {options.get('encoder_layers')} + {options.get('decoder_layers')} "
        "layers"
    ]
    made += [f"- weights: {'8-bit integers' if args.int8 else '32-bit floats'}, {size / 1e6:,.1f} MB in all"]
    taught = options.get("teachers") or options.get("teacher") or options.get("teacher_outputs")
    if taught:
        made += [
            f"- distilled at T = {options.get('kd_temperature')}, kd_weight {options.get('kd_weight')}, "
            f"label smoothing {options.get('label_smoothing')}"
        ]
    tokens = [
        f"| {name} | {' '.join(before) or '-'} | {' '.join(forced) or '-'} |"
        for name, (before, forced) in settings.prefixes.items()
    ]
    return "\n".join(
        [
            *front,
            f"# Translation, {', '.join(map(str, recorded.pairs))}",
            "",
            "A fairseq model in CTranslate2's format. `pip install ctranslate2 sentencepiece` is all that it needs.",
            "",
            "```python",
            EXAMPLE.format(folder=args.output.name, source=source, target=target).strip(),
            "```",
            "",
            "| pair | before the source | before the translation |",
            "|---|---|---|",
            *tokens,
            "",
            "## How it was made",
            "",
            *made,
            f"- converted with CTranslate2 {ctranslate2.__version__}",
            "",
            "## Measured against fairseq",
            "",
            *(
                [
                    comparison_table(compared),
                    "",
                    f"Beam {args.beam}, all CPU cores, BLEU by sacrebleu. The example ranks hypotheses as fairseq "
                    "does; the few others are cut off at 200 pieces, or fairseq ended its search early because it "
                    "counts empty translations.",
                ]
                if compared
                else ["Not measured: no sentences were given."]
            ),
            "",
        ]
    )


EXAMPLE = """
import ctranslate2
import sentencepiece

folder = "{folder}"
model = ctranslate2.Translator(folder)  # device="cuda" on a GPU
pieces = sentencepiece.SentencePieceProcessor(model_file=folder + "/spm.model")
source_tokens, target_tokens = {source}, {target}  # of the language pair, see the table below


def translate(lines, beam=5):
    texts = [source_tokens + pieces.encode(line, out_type=str) for line in lines]
    targets = [target_tokens] * len(lines)
    found = model.translate_batch(
        texts, targets, beam_size=beam, num_hypotheses=beam, return_scores=True, max_decoding_length=200
    )
    # fairseq counts the score of a language token, too, before it divides by the length
    given = [sum(scored.log_probs[:-1]) for scored in model.score_batch(texts, targets)] if target_tokens else None
    translations = []
    for number, result in enumerate(found):
        ranks = [
            score + (given[number] / (len(hypothesis) + 1) if given else 0)
            for hypothesis, score in zip(result.hypotheses, result.scores)
        ]
        best = result.hypotheses[ranks.index(max(ranks))]
        translations.append(pieces.decode(best[len(target_tokens) :]))
    return translations


print(translate(["Good morning."]))
"""


if __name__ == "__main__":
    run_cli("export.py", main)

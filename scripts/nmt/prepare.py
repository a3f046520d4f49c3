"""Prepares parallel text for fairseq: one sentencepiece model and one dictionary for all languages.

    python scripts/nmt/prepare.py builtin --output data/builtin
    python scripts/nmt/prepare.py parallel --input data/multi30k --pairs en-de,en-fr --output data/multi30k-prepared \\
        --valid val --test test_2016_flickr
    python scripts/nmt/prepare.py iwslt data/iwslt14/de-en.tgz data/iwslt14/ru-en.tgz --output data/iwslt

The output folder appears when it is whole; a second run finds it and does nothing. What it holds: see data_bin.py. On
the way it says whether the corpus carries a vocabulary of that size, or which size it would. `--max-length 175
--max-ratio 1.5` clean the training text as Moses does (Tan et al.).
"""

import argparse
import math
import sys
from itertools import chain
from pathlib import Path

import babel

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from fairseq_plugins.files import sha256_of_file
from scripts.nmt.lib import cldr_phrases, data_bin, iwslt_archive, parallel_text
from scripts.nmt.lib.lang_pair import LangPair, parse_pairs
from scripts.nmt.lib.user_error import UserError, run_cli
from vision_reference.analysis import flags
from vision_reference.errors import Parser


def get_args_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    builtin = commands.add_parser(
        "builtin", help="English-German and English-Russian phrases from the CLDR, no network"
    )
    builtin.set_defaults(prepare=prepare_builtin)
    _add_common(builtin, vocab_size=2_000, model_type="unigram")

    parallel = commands.add_parser("parallel", help="aligned text files, plain or gzip")
    parallel.set_defaults(prepare=prepare_parallel)
    parallel.add_argument(
        "--input",
        type=flags.path,
        required=True,
        help="folder of <prefix>.<src>-<tgt>.<lang> or <prefix>.<lang>, each as it is or with .gz",
    )
    parallel.add_argument("--pairs", type=flags.filled_text, required=True, help="such as en-de,en-fr")
    for split in parallel_text.SPLITS:
        parallel.add_argument(
            f"--{split}", type=flags.filled_text, default=split, metavar="PREFIX", help="default: %(default)s"
        )
    _add_cleaning(parallel)
    _add_common(parallel, vocab_size=30_000, model_type="bpe")

    iwslt = commands.add_parser("iwslt", help="original IWSLT 2014 archives, read without unpacking them")
    iwslt.set_defaults(prepare=prepare_iwslt)
    iwslt.add_argument("archives", type=flags.path, nargs="+", metavar="<lang>-en.tgz")
    iwslt.add_argument(
        "--pairs", type=flags.filled_text, help="such as en-de,ru-en (default: English into each archive's language)"
    )
    _add_cleaning(iwslt)
    _add_common(iwslt, vocab_size=30_000, model_type="bpe")
    return parser


def _add_common(parser: argparse.ArgumentParser, *, vocab_size: int, model_type: str) -> None:
    parser.add_argument("--output", type=flags.path, required=True, help="folder to make")
    parser.add_argument(
        "--vocab-size", type=int, default=vocab_size, help="number of sentencepiece pieces (default: %(default)s)"
    )
    parser.add_argument(
        "--model-type",
        choices=("unigram", "bpe", "char"),
        default=model_type,
        help="how sentencepiece makes pieces (default: %(default)s)",
    )
    parser.add_argument(
        "--character-coverage",
        type=float,
        default=1.0,
        help="share of the characters that get pieces (default: %(default)s)",
    )


def _add_cleaning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="WORDS",
        help="leave out training pairs with a longer side, such as 175 (Tan et al.; default: none)",
    )
    parser.add_argument(
        "--max-ratio",
        type=float,
        metavar="RATIO",
        help="leave out training pairs with a side that many times as long as the other, in words, such as 1.5 "
        "(default: none)",
    )


def cleaning(args: argparse.Namespace) -> parallel_text.Limits:
    """What was asked for. Raises UserError out of range."""
    if args.max_length is not None and args.max_length < 1:
        raise UserError(f"--max-length {args.max_length} leaves no sentence; give at least 1 word, such as 175")
    if args.max_ratio is not None and not 1 <= args.max_ratio < math.inf:
        raise UserError(f"--max-ratio {args.max_ratio} must be a number of at least 1, such as 1.5")
    return parallel_text.Limits(args.max_length or math.inf, args.max_ratio or math.inf)


def as_details(limits: parallel_text.Limits) -> dict[str, float]:
    """What the manifest records: nothing where nothing was asked for."""
    return {name: value for name, value in limits._asdict().items() if value < math.inf}


def prepare_builtin(args: argparse.Namespace, vocab: data_bin.VocabSettings) -> None:
    details = {"phrases": cldr_phrases.PHRASES, "seed": cldr_phrases.SEED, "babel": babel.__version__}
    recipe = data_bin.Recipe("builtin", cldr_phrases.PAIRS, vocab, details, inputs={})
    if already_there(args.output, recipe):
        return
    texts = cldr_phrases.phrases()
    data_bin.build(recipe, {pair: cldr_phrases.rows(pair, texts) for pair in recipe.pairs}, args.output)


def prepare_parallel(args: argparse.Namespace, vocab: data_bin.VocabSettings) -> None:
    pairs = tuple(parse_pairs(args.pairs))
    if not args.input.is_dir():
        raise UserError(f"--input {args.input} is not a folder; give the one that holds the text files")
    prefixes = {split: getattr(args, split) for split in parallel_text.SPLITS}
    files = {
        pair: {split: parallel_text.find_files(args.input, prefix, pair) for split, prefix in prefixes.items()}
        for pair in pairs
    }
    read = {path for splits in files.values() for both in splits.values() for path in both}
    inputs = {path.name: sha256_of_file(path) for path in sorted(read)}
    limits = cleaning(args)
    recipe = data_bin.Recipe("parallel", pairs, vocab, prefixes | as_details(limits), inputs)
    if already_there(args.output, recipe):
        return
    rows = {
        pair: chain.from_iterable(parallel_text.read_split(split, both) for split, both in splits.items())
        for pair, splits in files.items()
    }
    data_bin.build(recipe, rows, args.output, limits)


def prepare_iwslt(args: argparse.Namespace, vocab: data_bin.VocabSettings) -> None:
    archives = {archive.language: archive for archive in map(iwslt_archive.Archive, args.archives)}
    if len(archives) < len(args.archives):
        raise UserError("two of the archives are of the same language; give one for each")
    pairs = tuple(parse_pairs(args.pairs) if args.pairs else [LangPair("en", language) for language in archives])
    of_pair = {}
    for pair in pairs:
        other = pair.target if pair.source == "en" else pair.source
        if "en" not in pair or other not in archives:
            held = ", ".join(str(archive.path) for archive in archives.values())
            raise UserError(
                f"--pairs {pair}: not in the archives given ({held}); allowed: English and an archive's language"
            )
        of_pair[pair] = archives[other]
    inputs = {archive.path.name: sha256_of_file(archive.path) for archive in archives.values()}
    limits = cleaning(args)
    details = {"test_sets": {archive.path.name: archive.test_sets() for archive in archives.values()}}
    details |= as_details(limits)
    recipe = data_bin.Recipe("iwslt", pairs, vocab, details, inputs)
    if already_there(args.output, recipe):
        return
    for archive in archives.values():
        lacking = [name for name in iwslt_archive.TEST_SETS if name not in archive.test_sets()]
        if lacking:
            print(f"{archive.path}: holds no {', '.join(lacking)}; the test set is made of the others")
    rows = {pair: archive.rows(pair) for pair, archive in of_pair.items()}
    data_bin.build(recipe, rows, args.output, limits)


def already_there(output: Path, recipe: data_bin.Recipe) -> bool:
    found = data_bin.is_prepared(output, recipe)
    if found:
        print(f"{output} is already prepared with these settings")
    return found


def main() -> None:
    args = get_args_parser().parse_args()
    if not 0.9 <= args.character_coverage <= 1:
        raise UserError(f"--character-coverage {args.character_coverage} is outside 0.9 to 1.0; choose one inside")
    args.prepare(args, data_bin.VocabSettings(args.vocab_size, args.model_type, args.character_coverage))


if __name__ == "__main__":
    run_cli("prepare.py", main)

"""Sequence-level distillation (Kim and Rush 2016): training data whose targets are the experts' translations.

    python scripts/nmt/distil_sequences.py --data data/mine --experts results/experts --output data/mine-distilled
    DATA=data/mine-distilled OUT=results/student bash scripts/nmt/train_student.sh           # alone
    DATA=data/mine-distilled EXPERTS=results/experts OUT=... bash scripts/nmt/train_student.sh   # and word by word

Each pair's expert, EXPERTS/<src>-<tgt>/checkpoint_best.pt, translates the training sources. The result is a folder as
prepare.py makes it, with the same dictionaries, sentencepiece model, validation and test sets. Lines stay aligned.
Where a translation is empty or runs away (it does not end, or has more than 2.5 times the source's pieces and 20), or
the source is too long for the expert, the original target is kept; such lines are counted.

--keep-original    the original sentence pairs stay beside the translated ones
--monolingual      further source text, a line a sentence: its translations are added (unusable ones are left out)
--ctranslate2      the experts run in CTranslate2, with --int8 in 8 bits: several times as fast, on CPUs above all

A run that was killed goes on where it stopped when the same command is run again; the output folder appears when it is
whole. Uses all GPUs, or all cores where there is none.
"""

import argparse
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from fairseq_plugins.files import sha256_of_file
from scripts.nmt.lib import data_bin
from scripts.nmt.lib.lang_pair import LangPair, parse_pairs
from scripts.nmt.lib.parallel_text import read_file
from scripts.nmt.lib.progress import Progress
from scripts.nmt.lib.user_error import UserError, run_cli
from vision_reference.analysis import flags
from vision_reference.errors import Parser


def get_args_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=flags.path, required=True, metavar="DIR", help="folder made by prepare.py")
    parser.add_argument(
        "--experts",
        type=flags.filled_text,
        required=True,
        metavar="DIR",
        help="folder made by train_experts.sh; or each pair's checkpoint, en-de=PATH,en-ru=PATH",
    )
    parser.add_argument("--output", type=flags.path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--pairs", type=flags.filled_text, help="such as en-de,en-ru (default: all of --data)")
    parser.add_argument("--beam", type=int, default=5, help="beam size (default: %(default)s)")
    parser.add_argument("--keep-original", action="store_true", help="keep the original sentence pairs, too")
    parser.add_argument(
        "--monolingual", action="append", default=[], metavar="PAIR=FILE", help="further source text, plain or gzip"
    )
    parser.add_argument("--ctranslate2", action="store_true", help="translate with CTranslate2")
    parser.add_argument("--int8", action="store_true", help="with --ctranslate2: weights as 8-bit integers")
    parser.add_argument("--cpu", action="store_true", help="leave GPUs alone")
    return parser


def read_manifest(data: Path) -> dict:
    """Raises UserError if `data` is no folder that prepare.py made."""
    try:
        manifest = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
        if not all(isinstance(manifest[key], kind) for key, kind in (("pairs", list), ("settings", dict))):
            raise TypeError("of another kind")
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"--data {data} is no prepared folder (no readable manifest.json in it); make one with prepare.py"
        ) from None
    return manifest


def choose_pairs(manifest: dict, wanted: str | None, data: Path) -> tuple[LangPair, ...]:
    held = parse_pairs(",".join(map(str, manifest["pairs"])))
    pairs = parse_pairs(wanted) if wanted else held
    for pair in pairs:
        if pair not in held:
            raise UserError(f"--pairs: {pair} is not in {data}; it holds {', '.join(map(str, held))}")
    return tuple(pairs)


def parse_monolingual(given: list[str], pairs: tuple[LangPair, ...]) -> dict[LangPair, Path]:
    """`en-de=FILE` -> file of the pair. Raises UserError for anything else, and for pairs given twice."""
    known = {str(pair): pair for pair in pairs}
    files: dict[LangPair, Path] = {}
    for text in given:
        name, _, path = text.partition("=")
        if name not in known or not path:
            raise UserError(f"--monolingual {text}: give PAIR=FILE with PAIR one of {', '.join(known)}")
        if known[name] in files:
            raise UserError(f"--monolingual {name} is given twice; join the files into one")
        files[known[name]] = Path(path)
    return files


def expert_files(given: str, pairs: tuple[LangPair, ...]) -> dict[LangPair, Path]:
    """`DIR` or `en-de=PATH,en-ru=PATH` -> checkpoint of each pair. Raises UserError where one is missing."""
    pairwise = "=" in given and not Path(given).is_dir()
    named = dict(item.partition("=")[::2] for item in given.split(",")) if pairwise else {}
    if unknown := sorted(named.keys() - set(map(str, pairs))):
        raise UserError(f"--experts {given}: {unknown[0]} is none of {', '.join(map(str, pairs))}")
    files = {}
    for pair in pairs:
        path = Path(named.get(str(pair), "")) if named else Path(given, str(pair), "checkpoint_best.pt")
        if not path.is_file():
            where = "" if path == Path() else f" at {path}"
            raise UserError(f"no expert of {pair}{where}; train it with train_experts.sh, or name other --pairs")
        files[pair] = path
    return files


def make_recipe(args: argparse.Namespace, manifest: dict, pairs: tuple[LangPair, ...], files: dict[LangPair, Path]):
    """All that decides what the result holds. Raises UserError for files that are missing."""
    checkpoints = expert_files(args.experts, pairs)
    inputs = {"manifest.json of the data": sha256_of_file(args.data / "manifest.json")}
    inputs |= {f"expert {pair}": sha256_of_file(path) for pair, path in checkpoints.items()}
    inputs |= {f"monolingual {pair}": sha256_of_file(path) for pair, path in files.items()}
    settings = manifest["settings"]
    vocab = data_bin.VocabSettings(*(settings.get(key) for key in ("vocab_size", "model_type", "character_coverage")))
    search = "ctranslate2" + (" int8" if args.int8 else "") if args.ctranslate2 else "fairseq"
    details = {"beam": args.beam, "search": search, "keep_original": args.keep_original}
    return data_bin.Recipe("distilled", pairs, vocab, details, inputs), checkpoints


def distil(args: argparse.Namespace) -> None:
    """Raises UserError for whatever does not fit."""
    manifest = read_manifest(args.data)
    pairs = choose_pairs(manifest, args.pairs, args.data)
    files = parse_monolingual(args.monolingual, pairs)
    recipe, checkpoints = make_recipe(args, manifest, pairs, files)
    if data_bin.is_prepared(args.output, recipe):
        print(f"{args.output} is already distilled with these settings")
        return
    monolingual = {pair: [line for line in read_file(path) if line] for pair, path in files.items()}
    texts = {pair: read_training_text(args.data, pair) for pair in pairs}
    with data_bin.partial_folder(args.output, keep=True) as folder:
        keep_plan(folder, recipe)
        total = sum(len(sources) + len(monolingual.get(pair, ())) for pair, (sources, _) in texts.items())
        counts = {}
        for path in (folder / "text", folder / "pieces", folder / "data-bin"):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
        with Progress("translating", total, "sentence") as progress:
            for pair, (sources, targets) in texts.items():
                further = monolingual.get(pair, [])
                translations = translate(args, pair, checkpoints[pair], folder, sources + further, progress)
                counts[str(pair)] = write_training_text(args, folder, pair, sources, targets, further, translations)
                for split in ("valid", "test"):
                    held = manifest.get("counts", {}).get(str(pair), {}).get(split)
                    counts[str(pair)] |= {split: held} if held else {}
        finish(args, folder, recipe, counts)
    for pair, kinds in counts.items():
        print(f"{pair}: {describe(kinds['train'])}")
    print(f"distilled {args.output}")


def read_training_text(data: Path, pair: LangPair) -> tuple[list[str], list[str]]:
    """Sources and targets. Raises UserError if they are missing or of unequal length."""
    sources, targets = (list(read_file(data / "text" / f"train.{pair}.{language}")) for language in pair)
    if len(sources) != len(targets):
        raise UserError(f"{data}: the two sides of train.{pair} have {len(sources):,} and {len(targets):,} lines")
    return sources, targets


def keep_plan(folder: Path, recipe) -> None:
    """Say in the folder what is being made. Raises UserError if it holds the blocks of something else."""
    from scripts.nmt.lib.distilled_text import BLOCK_LINES, write_json

    plan = {**recipe.as_json(), "block_lines": BLOCK_LINES}
    path = folder / "plan.json"
    if not any(folder.glob("blocks/*/*")):  # such as after an expert that could not be read
        write_json(path, plan)
        return
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        held = None
    if held != plan:
        raise UserError(f"{folder} holds translations made with other settings; remove it, or choose another --output")


def translate(args, pair: LangPair, checkpoint: Path, folder: Path, lines: list[str], progress: Progress) -> list:
    """The expert's translation of each line; those of an earlier run are not made again."""
    from scripts.nmt.lib.distilled_text import Blocks
    from scripts.nmt.lib.recorded_model import Vocabulary, read_recorded
    from scripts.nmt.lib.translator import Translator, devices, translate_blocks

    blocks = Blocks(folder / "blocks" / str(pair), lines)
    missing = blocks.missing()
    progress.skip(len(lines) - sum(min(len(lines), begin + blocks.begins.step) - begin for begin in missing))
    if missing:
        recorded = read_recorded(checkpoint)
        recorded.require([pair])
        vocabulary = Vocabulary(args.data / "data-bin", args.data / "spm.model")
        if args.ctranslate2:
            from scripts.nmt.lib.ctranslate2_model import ConvertedTranslator, convert

            converted = folder / "converted"
            shutil.rmtree(converted, ignore_errors=True)
            converted.mkdir()
            settings = convert(recorded, vocabulary, converted, int8=args.int8)
            fast = ConvertedTranslator(converted, vocabulary.sentencepiece, settings, pair, args.beam, args.cpu)

            def work(todo: Iterator[list[str]]):
                return map(fast.translate, todo)
        else:
            slow = Translator(recorded, pair, vocabulary, args.beam)

            def work(todo: Iterator[list[str]]):
                return translate_blocks(slow, todo, devices(args.cpu))

        for count in blocks.make(work):
            progress.add(count)
    return blocks.read()


def write_training_text(args, folder: Path, pair: LangPair, sources, targets, further, translations) -> dict:
    """Write `text/train.*` of a pair; returns its counts for the manifest."""
    from scripts.nmt.lib.distilled_text import usable
    from scripts.nmt.lib.translator import load_sentencepiece

    model = load_sentencepiece(args.data / "spm.model")
    lengths = [len(pieces) for pieces in model.encode(sources + further, out_type=int)]
    outputs, of_sources = usable(translations[: len(sources)], lengths[: len(sources)])
    added, of_further = usable(translations[len(sources) :], lengths[len(sources) :])
    rows = [(source, output or target) for source, output, target in zip(sources, outputs, targets, strict=True)]
    if args.keep_original:
        # a pair whose target was kept is not repeated
        rows += [(s, t) for s, output, t in zip(sources, outputs, targets, strict=True) if output not in (None, t)]
    rows += [(source, output) for source, output in zip(further, added, strict=True) if output]
    for side, language in enumerate(pair):
        with (folder / "text" / f"train.{pair}.{language}").open("w", encoding="utf-8", newline="\n") as out:
            out.writelines(f"{row[side]}\n" for row in rows)
    counts = {"pairs": len(rows), "skipped_empty": 0, "translated": of_sources.translated}
    counts["kept_original"] = {kind: number for kind, number in vars(of_sources).items() if kind != "translated"}
    if further:
        counts["monolingual"] = vars(of_further)
    return {"train": counts}


def finish(args, folder: Path, recipe, counts: dict) -> None:
    """Binarize the training text, take the rest from the original folder, and write the manifest."""
    text, pieces, binarized = (folder / name for name in ("text", "pieces", "data-bin"))
    from scripts.nmt.lib.translator import load_sentencepiece

    model = load_sentencepiece(args.data / "spm.model")
    shutil.copyfile(args.data / "spm.model", folder / "spm.model")
    for pair in recipe.pairs:
        for language in pair:
            name = f"train.{pair}.{language}"
            data_bin.encode_file(model, text / name, pieces / name, Counter())
            shutil.copyfile(args.data / "data-bin" / f"dict.{language}.txt", binarized / f"dict.{language}.txt")
        for source, target in ((args.data / "text", text), (args.data / "data-bin", binarized)):
            for split in ("valid", "test"):
                copied = sorted(source.glob(f"{split}.{pair}.*"))
                if not copied:
                    raise UserError(f"{source} holds no {split}.{pair}.*: is the folder whole?")
                for path in copied:
                    shutil.copyfile(path, target / path.name)
    dictionary = args.data / "data-bin" / f"dict.{recipe.pairs[0].source}.txt"  # one for all languages
    data_bin.binarize_all(recipe.pairs, ("train",), pieces, dictionary, binarized)
    for name in ("pieces", "blocks", "converted"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "plan.json").unlink()
    data_bin.write_manifest(folder, recipe, counts)


def describe(counts: dict) -> str:
    kept = {kind.replace("_", " "): number for kind, number in counts["kept_original"].items() if number}
    text = f"{counts['pairs']:,} sentence pairs, {counts['translated']:,} translated by the expert"
    if kept:
        text += f", {sum(kept.values()):,} kept as they were ({', '.join(f'{n:,} {kind}' for kind, n in kept.items())})"
    if further := counts.get("monolingual"):
        left_out = sum(further.values()) - further["translated"]
        text += f", {further['translated']:,} of further text" + (f" ({left_out:,} left out)" if left_out else "")
    return text


def main() -> None:
    args = get_args_parser().parse_args()
    if args.beam < 1:
        raise UserError(f"--beam {args.beam} is below 1")
    if args.int8 and not args.ctranslate2:
        raise UserError("--int8 is of --ctranslate2; give both")
    if args.ctranslate2:
        from scripts.nmt.lib.ctranslate2_model import import_ctranslate2

        import_ctranslate2()
    distil(args)


if __name__ == "__main__":
    run_cli("distil_sequences.py", main)

"""Turns rows of aligned text into a folder that fairseq can train and be evaluated on.

    DIR/manifest.json   pairs, counts, settings, SHA-256 of what was read and written
    DIR/spm.model       sentencepiece model, one for all languages
    DIR/text/           `<split>.<src>-<tgt>.<lang>`: the cleaned text, which is also BLEU's reference
    DIR/data-bin/       `fairseq-preprocess` of all pairs with one dictionary for all languages

The folder is built as `DIR.partial` and renamed when everything is there, so DIR is either absent or whole.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import sentencepiece

from fairseq_plugins.files import sha256_of_file
from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.parallel_text import NO_LIMITS, SPLITS, Limits, Row
from scripts.nmt.lib.user_error import UserError

# Sentences the vocabulary is learned from, drawn at random where there are more.
MAX_VOCAB_SENTENCES = 5_000_000
_ENCODE_CHUNK = 10_000


@dataclass(frozen=True)
class VocabSettings:
    vocab_size: int
    model_type: str
    character_coverage: float


@dataclass(frozen=True)
class Recipe:
    """All that decides what the prepared folder holds; `inputs` maps file names to their SHA-256."""

    source: str
    pairs: tuple[LangPair, ...]
    vocab: VocabSettings
    details: dict
    inputs: dict[str, str]

    def as_json(self) -> dict:
        return {
            "source": self.source,
            "pairs": [str(pair) for pair in self.pairs],
            "settings": {**asdict(self.vocab), **self.details},
            "inputs": self.inputs,
        }


def is_prepared(output: Path, recipe: Recipe) -> bool:
    """Whether `output` already holds exactly this. Raises UserError if it holds something else."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    manifest = output / "manifest.json"
    try:
        held = json.loads(manifest.read_text(encoding="utf-8"))
        if not isinstance(held, dict):
            raise ValueError("not an object")
    except (OSError, ValueError):
        raise UserError(
            f"{output} exists and holds no readable manifest.json; choose a new folder for --output or remove this one"
        ) from None
    for key, wanted in recipe.as_json().items():
        if held.get(key) != wanted:
            raise UserError(
                f"{output} was prepared with other {key} ({_difference(held.get(key), wanted)}); "
                "choose another --output or remove it"
            )
    return True


def _difference(held, wanted) -> str:
    if isinstance(held, dict) and isinstance(wanted, dict):
        name = next(k for k in sorted({*held, *wanted}) if held.get(k) != wanted.get(k))
        held, wanted = f"{name} {held.get(name)}", wanted.get(name)
    return f"{held}, now {wanted}"


@contextlib.contextmanager
def partial_folder(output: Path, *, keep: bool = False) -> Iterator[Path]:
    """`<output>.partial`, which becomes `output` if the block ends well; locked against a second run.

    It is emptied of what an interrupted run left, unless `keep`.
    """
    if output.name in ("", ".."):  # the folder one is in, or one above it
        raise UserError(f"--output {output} cannot be made; name a folder that is to be")
    partial = output.with_name(output.name + ".partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        handle = os.open(partial, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{partial}: cannot be made ({error.strerror}); check --output") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{output} is being prepared by another process; wait for it or end it") from None
        for leftover in () if keep else partial.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield partial
        partial.rename(output)
    finally:
        os.close(handle)


def write_text(
    rows: Iterable[Row], pair: LangPair, folder: Path, limits: Limits = NO_LIMITS
) -> dict[str, dict[str, int]]:
    """Write one pair's splits to `folder`; returns {split: {"pairs": kept, "skipped_empty": left out}}.

    With `limits`, the training split also has "skipped_length". Raises UserError if a split ends up empty.
    """
    counts = {split: {"pairs": 0, "skipped_empty": 0} for split in SPLITS}
    if limits != NO_LIMITS:
        counts["train"]["skipped_length"] = 0
    with contextlib.ExitStack() as stack:
        files = {
            (split, side): stack.enter_context(
                (folder / f"{split}.{pair}.{language}").open("w", encoding="utf-8", newline="\n")
            )
            for split in SPLITS
            for side, language in enumerate(pair)
        }
        for split, source, target in rows:
            if not (source and target):
                counts[split]["skipped_empty"] += 1
                continue
            if split == "train" and not limits.allow(source, target):
                counts[split]["skipped_length"] += 1
                continue
            counts[split]["pairs"] += 1
            files[split, 0].write(source + "\n")
            files[split, 1].write(target + "\n")
    for split in SPLITS:
        if not counts[split]["pairs"]:
            limited = " within the limits" if counts[split].get("skipped_length") else ""
            raise UserError(f"pair {pair}: the {split} set holds no sentence pair{limited}; it needs at least one")
    return counts


def train_sentencepiece(files: list[Path], prefix: Path, settings: VocabSettings) -> None:
    """Learn one model from all `files`. Raises UserError, with sentencepiece's reason, where that cannot be done."""
    try:
        sentencepiece.SentencePieceTrainer.train(
            input=[str(path) for path in files],
            model_prefix=str(prefix),
            vocab_size=settings.vocab_size,
            model_type=settings.model_type,
            character_coverage=settings.character_coverage,
            input_sentence_size=MAX_VOCAB_SENTENCES,
            shuffle_input_sentence=True,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        if most := re.search(r"too high.* <= (\d+)", reason):
            # With as many pieces as there can be, most occur once; a tenth is a start from which the advice is sound.
            start = max(round(int(most[1]) / 10, -2), 100)
            raise UserError(
                f"this text has {int(most[1]):,} {settings.model_type} pieces at most, not {settings.vocab_size:,}; "
                f"try --vocab-size {min(start, int(most[1])):.0f}: then it is said which size would fit better"
            ) from None
        raise UserError(
            f"sentencepiece cannot learn {settings.vocab_size} {settings.model_type} pieces from this text: {reason}"
        ) from None


def encode_file(model: sentencepiece.SentencePieceProcessor, source: Path, target: Path, counts: Counter) -> None:
    """Write `source` as space-separated pieces to `target` and add the pieces to `counts`."""
    with source.open(encoding="utf-8", newline="\n") as lines, target.open("w", encoding="utf-8", newline="\n") as out:
        while chunk := [line.rstrip("\n") for line in islice(lines, _ENCODE_CHUNK)]:
            for pieces in model.encode(chunk, out_type=str):
                counts.update(pieces)
                out.write(" ".join(pieces) + "\n")


def write_dictionary(model: sentencepiece.SentencePieceProcessor, counts: Counter, path: Path) -> None:
    """A fairseq dictionary of all pieces, in the model's order, with their counts in the training text.

    The model's own unknown and sentence-boundary symbols are left out: fairseq adds its own.
    """
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for index in range(model.get_piece_size()):
            if not (model.is_unknown(index) or model.is_control(index)):
                piece = model.id_to_piece(index)
                out.write(f"{piece} {counts[piece]}\n")


# A piece is learned where the training text has it this often, and a vocabulary should have few others: 100 times, 95 %
# of the pieces. Gowda and May (2020), "Finding the Optimal Vocabulary Size for Neural Machine Translation", section 5.
_OFTEN_ENOUGH, _SHARE = 100, 0.95
_LARGEST_ADVICE = 32_000


def vocabulary_advice(counts: list[int]) -> str:
    """One line on whether the corpus carries its vocabulary, and which size it would.

    Args:
        counts: how often each piece is in the training text.

    The size is an estimate: rarer pieces follow the law of Zipf, and what is not a piece is made of more frequent ones.
    """
    size = len(counts)
    often = sum(count >= _OFTEN_ENOUGH for count in counts)
    rare = sorted(counts)[min(size - 1, int(size * (1 - _SHARE)))]  # 95 % are at least as frequent
    fitting = size * rare / _OFTEN_ENOUGH if rare >= _OFTEN_ENOUGH else often / _SHARE
    fitting = max(round(min(fitting, _LARGEST_ADVICE), -2), 100)
    found = f"vocabulary: {often / size:.0%} of {size:,} pieces are in the training text at least {_OFTEN_ENOUGH} times"
    if 0.5 <= fitting / size <= 2:
        return f"{found}; the size fits this corpus"
    return f"{found}; about {fitting:,.0f} would fit this corpus better: --vocab-size {fitting:.0f}"


def _counts_of_all(model: sentencepiece.SentencePieceProcessor, counts: Counter) -> list[int]:
    pieces = (
        index for index in range(model.get_piece_size()) if not (model.is_unknown(index) or model.is_control(index))
    )
    return [counts[model.id_to_piece(index)] for index in pieces]


def binarize(pair: LangPair, splits: Sequence[str], pieces: Path, dictionary: Path, folder: Path) -> None:
    """Run `fairseq-preprocess` for one pair's splits into `folder`.

    Raises UserError with the end of its output if it fails.
    """
    command = [sys.executable, "-m", "fairseq_cli.preprocess"]
    command += ["--source-lang", pair.source, "--target-lang", pair.target]
    command += [f"--{split}pref={pieces / f'{split}.{pair}'}" for split in splits]
    command += ["--joined-dictionary", "--srcdict", str(dictionary), "--destdir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise UserError(f"fairseq-preprocess failed for {pair}: {last}")


def build(recipe: Recipe, rows_of: dict[LangPair, Iterable[Row]], output: Path, limits: Limits = NO_LIMITS) -> None:
    """Make `output` (see the module's text) from the rows of every pair, and say what was kept and left out."""
    with partial_folder(output) as folder:
        text, pieces, data_bin = (folder / name for name in ("text", "pieces", "data-bin"))
        for path in (text, pieces, data_bin):
            path.mkdir()
        counts = {}
        for pair, rows in rows_of.items():
            counts[str(pair)] = write_text(rows, pair, text, limits)
            print(f"{pair}: " + ", ".join(_describe(split, n) for split, n in counts[str(pair)].items()), flush=True)

        print(f"learning {recipe.vocab.vocab_size:,} {recipe.vocab.model_type} pieces", flush=True)
        train_sentencepiece(sorted(text.glob("train.*")), folder / "spm", recipe.vocab)
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
        piece_counts: Counter = Counter()
        for path in sorted(text.iterdir()):
            seen = piece_counts if path.name.startswith("train.") else Counter()
            encode_file(model, path, pieces / path.name, seen)
        dictionary = pieces / "dict.txt"
        write_dictionary(model, piece_counts, dictionary)
        print(vocabulary_advice(_counts_of_all(model, piece_counts)), flush=True)

        print("running fairseq-preprocess", flush=True)
        binarize_all(recipe.pairs, SPLITS, pieces, dictionary, data_bin)
        shutil.rmtree(pieces)

        write_manifest(folder, recipe, counts)
    print(f"prepared {output}")


def write_manifest(folder: Path, recipe: Recipe, counts: dict) -> None:
    manifest = {**recipe.as_json(), "counts": counts, "files": _hashes(folder)}
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8")


def binarize_all(
    pairs: Sequence[LangPair], splits: Sequence[str], pieces: Path, dictionary: Path, data_bin: Path
) -> None:
    """`binarize` for all pairs side by side, with one dictionary, into one folder."""
    # fairseq-preprocess refuses a folder that already has a dictionary, so each pair gets its own and they are merged.
    folders = {pair: pieces / f"bin.{pair}" for pair in pairs}
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda item: binarize(item[0], splits, pieces, dictionary, item[1]), folders.items()))
    for folder in folders.values():
        for path in folder.iterdir():
            if path.name != "preprocess.log":
                path.replace(data_bin / path.name)


def _describe(split: str, count: dict[str, int]) -> str:
    reasons = {"skipped_empty": "one side empty", "skipped_length": "too long or too unequal"}
    skipped = "; ".join(f"{count[key]:,} left out: {reason}" for key, reason in reasons.items() if count.get(key))
    return f"{split} {count['pairs']:,} pairs" + (f" ({skipped})" if skipped else "")


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files}

"""A trained translation model in CTranslate2's format: made from a checkpoint, and run as fairseq would run it.

What CTranslate2 does by itself and fairseq does not (both rank hypotheses by log-probability divided by length):

- The score of a forced language token is left out. fairseq counts it, the same for all hypotheses of a sentence, before
  it divides by the length: short hypotheses lose more by it. `ConvertedTranslator` adds it again, from `score_batch`.
- Sources are cut at 1,024 pieces without a word; here they are left out and named, as by `translator.py`.
- Translations end after 256 pieces, fairseq's after 200, language token included.

Two differences are left: a translation cut off there has no end of sentence, whose score fairseq adds; and fairseq
counts an empty translation, if it is among the best, towards as many as the beam after which it ends a search.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.parallel_text import clean
from scripts.nmt.lib.quiet_fairseq import quiet
from scripts.nmt.lib.recorded_model import Recorded, Vocabulary, as_dict, build_task, task_name
from scripts.nmt.lib.translator import MAX_PIECES, Translation, load_sentencepiece, too_long
from scripts.nmt.lib.user_error import UserError

SETTINGS_NAME = "translation.json"


@dataclass(frozen=True)
class Settings:
    """What a converted model needs beside its weights: a file `translation.json` in its folder.

    Attributes:
        prefixes: for each pair the tokens before the source and before the target, at most one each.
        max_source: most tokens that it reads, end of sentence included.
    """

    prefixes: dict[str, tuple[list[str], list[str]]]
    max_source: int

    def write(self, folder: Path) -> None:
        text = json.dumps({"pairs": self.prefixes, "max_source": self.max_source}, indent=2, ensure_ascii=False)
        (folder / SETTINGS_NAME).write_text(text + "\n", encoding="utf-8")


def import_ctranslate2():
    """Raises UserError where the package is not installed."""
    try:
        import ctranslate2
    except ImportError:
        raise UserError(
            "ctranslate2 is not installed: pip install ctranslate2 (scripts/setup.sh installs it)"
        ) from None
    return ctranslate2


def convert(recorded: Recorded, vocabulary: Vocabulary, folder: Path, *, int8: bool = False) -> Settings:
    """Write the model to `folder`, which exists: `model.bin`, `config.json`, vocabulary and `translation.json`.

    CTranslate2's own converter is handed a file that holds nothing but what the safe reader found: weights and options.

    Raises:
        UserError: the architecture or the language tokens are of a kind that CTranslate2 does not know.
    """
    import_ctranslate2()
    import torch
    from ctranslate2.converters.fairseq import FairseqConverter

    from fairseq_plugins.multilingual.routes import tokens_of_pair

    prefixes, max_source = {}, 0
    for pair in recorded.pairs:
        task = build_task(recorded, pair, vocabulary.dictionaries)
        max_source = task.max_positions()[0]
        source, target = [], []
        if recorded.is_multilingual:
            tokens = tokens_of_pair(task.data_manager, "main", *pair)
            if tokens.source_end is not None or tokens.target_start is not None:
                raise UserError(
                    f"{recorded.path} was trained with --lang-tok-replacing-bos-eos, which CTranslate2 does not know"
                )
            source = [] if tokens.source_prefix is None else [task.source_dictionary[tokens.source_prefix]]
            target = [] if tokens.target_prefix is None else [task.target_dictionary[tokens.target_prefix]]
        prefixes[str(pair)] = (source, target)
    options = _stock_options(recorded, vocabulary.dictionaries)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        checkpoint = Path(scratch) / "checkpoint.pt"
        torch.save({"args": options, "model": recorded.state["model"]}, checkpoint)
        try:
            with torch.serialization.safe_globals([argparse.Namespace]), quiet():
                converter = FairseqConverter(
                    str(checkpoint), str(vocabulary.dictionaries), options.source_lang, options.target_lang
                )
                converter.convert(f"{scratch}/model", quantization="int8" if int8 else None)
        except Exception as problem:  # the converter's own word about what it does not know, or fairseq's stumbling
            reason = " ".join(str(problem).split()) or type(problem).__name__
            raise UserError(f"{recorded.path} cannot be converted to CTranslate2's format: {reason}") from None
        for path in (Path(scratch) / "model").iterdir():
            path.replace(folder / path.name)
    settings = Settings(prefixes, max_source)
    settings.write(folder)
    return settings


def _stock_options(recorded: Recorded, dictionaries: Path) -> argparse.Namespace:
    """The options of model and task as fairseq's command line would leave them, for the stock task of the same kind."""
    model, task = recorded.state["cfg"].model, recorded.options
    options = argparse.Namespace(**as_dict(model) | as_dict(task))
    options._name = options.arch = getattr(model, "arch", None) or model._name
    options.task = {
        "translation_kd": "translation",
        "multilingual_translation_kd": "translation_multi_simple_epoch",
    }.get(task_name(task), task_name(task))
    options.data = str(dictionaries)
    options.source_lang, options.target_lang = recorded.pairs[0]
    options.encoder_embed_path = options.decoder_embed_path = None
    if recorded.is_multilingual:
        options.left_pad_source, options.left_pad_target = "True", "False"
    return options


class ConvertedTranslator:
    """A converted model that translates one pair: the contract of `translator.Translator`, on all cores or one GPU."""

    def __init__(
        self, folder: Path, sentencepiece_model: Path, settings: Settings, pair: LangPair, beam: int, cpu: bool = False
    ) -> None:
        import os

        ctranslate2 = import_ctranslate2()
        self.sentencepiece = load_sentencepiece(sentencepiece_model)
        self.source_prefix, self.target_prefix = settings.prefixes[str(pair)]
        self.max_source = settings.max_source
        self.beam = beam
        gpu = not cpu and ctranslate2.get_cuda_device_count() > 0
        self.model = ctranslate2.Translator(
            str(folder),
            device="cuda" if gpu else "cpu",
            inter_threads=1 if gpu else len(os.sched_getaffinity(0)),
            intra_threads=1,
        )

    def translate(self, lines: Sequence[str]) -> list[Translation]:
        """One translation for each line: empty for an empty one, with `problem` for one that is too long."""
        encoded = [self.sentencepiece.encode(clean(line), out_type=str) for line in lines]
        found = {}
        for number, pieces in enumerate(encoded):
            if not pieces:
                found[number] = Translation("")
            elif len(pieces) + 1 >= self.max_source:
                found[number] = too_long(len(pieces), self.max_source)
        wanted = [number for number in range(len(lines)) if number not in found]
        best = self._search([self.source_prefix + encoded[number] for number in wanted])
        for number, words in zip(wanted, best, strict=True):
            found[number] = Translation(clean(self.sentencepiece.decode(words)), len(words))
        return [found[number] for number in range(len(lines))]

    def _search(self, sources: list[list[str]]) -> list[list[str]]:
        """The pieces of each source's best hypothesis, ranked as fairseq ranks them."""
        prefix, batch = self.target_prefix, {"max_batch_size": 2048, "batch_type": "tokens"}
        results = self.model.translate_batch(
            sources,
            target_prefix=[prefix] * len(sources) if prefix else None,
            beam_size=self.beam,
            num_hypotheses=self.beam if prefix else 1,
            return_scores=True,
            max_decoding_length=MAX_PIECES,
            max_input_length=0,
            **batch,
        )
        if not prefix:
            return [result.hypotheses[0] for result in results]
        scores = self.model.score_batch(sources, [prefix] * len(sources), max_input_length=0, **batch)
        best = []
        for result, scored in zip(results, scores, strict=True):
            of_prefix = scored.log_probs[0]
            ranks = [
                score + of_prefix / (len(pieces) + 1)  # + 1: the end of the sentence
                for pieces, score in zip(result.hypotheses, result.scores, strict=True)
            ]
            best.append(result.hypotheses[ranks.index(max(ranks))][len(prefix) :])
        return best

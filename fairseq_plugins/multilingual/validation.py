"""Translates validation batches to plain text, as `--eval-bleu` of stock `translation` does for one pair."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

import torch
from fairseq import utils
from fairseq.data import Dictionary, encoders
from fairseq.sequence_generator import SequenceGenerator
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from torch import nn

from ..errors import UserError
from .language_tokens import Batch, LanguageTokens, Layout

# Unknown words must match neither each other nor anything else, and stay one word for sacrebleu's tokenizer.
_UNKNOWN_IN_REFERENCE, _UNKNOWN_IN_HYPOTHESIS = "UNKNOWNREFERENCE", "UNKNOWNHYPOTHESIS"


def _json_option(flag: str, text: str | None) -> dict[str, Any]:
    try:
        options = json.loads(text or "{}")
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise UserError(f"""{flag} {text}: not a JSON object; write for example {flag} '{{"beam": 4}}'""")
    return options


class Translator:
    """Beam search, sentencepiece or BPE removal and detokenization as set by the `--eval-bleu-*` options."""

    def __init__(self, options: Any) -> None:
        self._search = Namespace(**_json_option("--eval-bleu-args", options.eval_bleu_args))
        detokenizer = _json_option("--eval-bleu-detok-args", options.eval_bleu_detok_args)
        self._detokenizer = encoders.build_tokenizer(Namespace(tokenizer=options.eval_bleu_detok, **detokenizer))
        self._remove_bpe = options.eval_bleu_remove_bpe

    def generator(self, models: list[nn.Module], dictionary: Dictionary) -> SequenceGenerator:
        """Beam search of one model or an ensemble over its dictionary of the target side."""
        return TranslationTask(TranslationConfig(), dictionary, dictionary).build_generator(models, self._search)

    def translate(
        self, generator: SequenceGenerator, batch: Batch, layout: Layout, tokens: LanguageTokens
    ) -> list[str]:
        """One detokenized line per sentence; `tokens` are those that the batch wears and the model expects."""
        lengths = batch.source.ne(layout.pad).sum(dim=1)
        prefix = None
        if tokens.target_prefix is not None:
            prefix = batch.source.new_full((len(batch), 1), tokens.target_prefix)
        found = generator.generate(
            generator.model.models,
            {"net_input": {"src_tokens": batch.source, "src_lengths": lengths}},
            prefix_tokens=prefix,
            bos_token=tokens.target_start,
        )
        skip = 0 if prefix is None else 1
        return [self._text(beams[0]["tokens"][skip:], generator.tgt_dict, _UNKNOWN_IN_HYPOTHESIS) for beams in found]

    def references(self, batch: Batch, dictionary: Dictionary) -> list[str]:
        """The targets of a batch without language tokens, as detokenized lines."""
        targets = [utils.strip_pad(target, dictionary.pad()) for target in batch.target]
        return [self._text(target, dictionary, _UNKNOWN_IN_REFERENCE) for target in targets]

    def _text(self, tokens: torch.Tensor, dictionary: Dictionary, unknown: str) -> str:
        text = dictionary.string(tokens.int().cpu(), self._remove_bpe, unk_string=unknown)
        return text if self._detokenizer is None else self._detokenizer.decode(text)

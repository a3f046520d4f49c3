"""Validation by translation: BLEU of student and teachers for each language pair, as `--eval-bleu` of stock
`translation` measures it for one pair.

Batches are translated to detokenized text. What a score is made of are counts, which add up over batches and workers.
"""

from __future__ import annotations

import difflib
import functools
import json
from argparse import Namespace
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from fairseq import metrics, utils
from fairseq.data import Dictionary, encoders
from fairseq.dataclass.configs import GenerationConfig
from fairseq.sequence_generator import SequenceGenerator
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from sacrebleu.metrics import BLEU
from torch import nn

from ..errors import UserError
from .language_tokens import Batch, LanguageTokens, Layout, realign
from .routes import Route
from .selective import Selection

# Unknown words must match neither each other nor anything else, and stay one word for sacrebleu's tokenizer.
_UNKNOWN_IN_REFERENCE, _UNKNOWN_IN_HYPOTHESIS = "UNKNOWNREFERENCE", "UNKNOWNHYPOTHESIS"
_ORDER = 4  # of BLEU's longest n-grams


def count_names(name: str) -> list[str]:
    """Names of the counts of one BLEU score in a logging output; fairseq hides names that begin with `_`."""
    counts = [f"{kind}{n}" for kind in ("correct", "total") for n in range(1, _ORDER + 1)]
    return [f"_{name}_{count}" for count in [*counts, "sys_len", "ref_len"]]


def bleu_counts(name: str, hypotheses: list[str], references: list[str]) -> dict[str, int]:
    """Counts of one batch as entries of a logging output; zeros for an empty one, as workers must agree on the keys."""
    if not hypotheses:
        return dict.fromkeys(count_names(name), 0)
    score = BLEU().corpus_score(hypotheses, [references])
    return dict(zip(count_names(name), [*score.counts, *score.totals, score.sys_len, score.ref_len], strict=True))


def bleu(counts: list[float]) -> float:
    """BLEU, 0 to 100, from summed counts in the order of `count_names`."""
    counts = [int(n) for n in counts]
    if not counts[-2]:
        return 0.0
    return BLEU.compute_bleu(
        correct=counts[:_ORDER],
        total=counts[_ORDER : 2 * _ORDER],
        sys_len=counts[-2],
        ref_len=counts[-1],
        smooth_method="exp",
    ).score


def json_option(flag: str, text: str | None) -> dict[str, Any]:
    try:
        options = json.loads(text or "{}")
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise UserError(f"""{flag} {text}: not a JSON object; write for example {flag} '{{"beam": 4}}'""")
    return options


def search_options(text: str | None) -> dict[str, Any]:
    """`--eval-bleu-args`: options of beam search by their names in fairseq-generate.

    Raises:
        UserError: not a JSON object, an unknown option, or a value of another kind than the option's.
    """
    options = json_option("--eval-bleu-args", text)
    known = GenerationConfig.__dataclass_fields__
    for name, value in options.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "use the names of fairseq-generate's options, as in beam"
            raise UserError(f"--eval-bleu-args: {name} is no option of fairseq-generate; {hint}")
        default = known[name].default
        kinds = {bool: (bool,), int: (int,), float: (int, float)}.get(type(default))
        if kinds and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            raise UserError(f"--eval-bleu-args: {name} is {value!r}; give a value such as {default!r}")
    if options.get("beam", 1) < 1:
        raise UserError(f"--eval-bleu-args: beam is {options['beam']}; give 1 or more")
    return options


class Translator:
    """Beam search, sentencepiece or BPE removal and detokenization as set by the `--eval-bleu-*` options."""

    def __init__(self, options: Any) -> None:
        self._search = Namespace(**search_options(options.eval_bleu_args))
        detokenizer = json_option("--eval-bleu-detok-args", options.eval_bleu_detok_args)
        self._detokenizer = encoders.build_tokenizer(Namespace(tokenizer=options.eval_bleu_detok, **detokenizer))
        self._remove_bpe = options.eval_bleu_remove_bpe

    def generator(self, models: list[nn.Module], dictionary: Dictionary) -> SequenceGenerator:
        """Beam search of one model or an ensemble over its dictionary of the target side."""
        return TranslationTask(TranslationConfig(), dictionary, dictionary).build_generator(models, self._search)

    def translate(
        self, generator: SequenceGenerator, batch: Batch, layout: Layout, tokens: LanguageTokens
    ) -> list[str]:
        """One detokenized line per sentence; `tokens` are those that the batch has and the model expects."""
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


class Translating(Protocol):
    """What is asked of a teacher here."""

    members: nn.ModuleList
    dictionary: Dictionary
    language_tokens: LanguageTokens


class Validation:
    """Translates validation batches with the student and with every teacher, and tells the selection the scores.

    A teacher does not change, so it translates the validation data once. The first of several --valid-subset decides
    about the weights of pairs, as it does about checkpoints elsewhere in fairseq.

    Args:
        translator: turns batches into text.
        selection: is told the scores.
        lang_pairs: of the student.
        dictionary: the student's, of the target side.
        layout: of the student's batches.
    """

    def __init__(
        self,
        translator: Translator,
        selection: Selection,
        lang_pairs: list[str],
        dictionary: Dictionary,
        layout: Layout,
    ) -> None:
        self._translator = translator
        self._selection = selection
        self._lang_pairs = lang_pairs
        self._dictionary = dictionary
        self._layout = layout
        self._student: SequenceGenerator | None = None
        self._teachers: Mapping[str, Translating] = {}
        self._decides = False

    def watch(self, student: nn.Module) -> None:
        """This model is the student."""
        self._student = self._translator.generator([student], self._dictionary)

    def begin(self, teachers: Mapping[str, Translating]) -> None:
        """A validation begins, the teachers are those of these pairs."""
        self._teachers = teachers
        self._decides = True

    def _unscored(self) -> list[str]:
        return [pair for pair in self._teachers if pair not in self._selection.teacher_bleu]

    def _names(self) -> tuple[list[str], list[str]]:
        """Scores of the student and of those teachers that have none yet."""
        return [f"bleu_{pair}" for pair in self._lang_pairs], [f"teacher_bleu_{pair}" for pair in self._unscored()]

    def counts(self, batch: Batch, sentences: Mapping[Route, list[int]]) -> dict[str, int]:
        """What a batch adds to the scores, as entries of a logging output.

        Args:
            batch: as the student sees it.
            sentences: its rows by route.
        """
        student_names, teacher_names = self._names()
        counts: dict[str, int] = {}
        for name in student_names + teacher_names:
            counts.update(bleu_counts(name, [], []))
        for route, rows in sentences.items():
            part = batch.pick(torch.tensor(rows, device=batch.target.device))
            plain, _, _ = realign(part, self._layout, route.tokens, LanguageTokens())
            references = self._translator.references(plain, self._dictionary)
            hypotheses = self._translator.translate(self._student, part, self._layout, route.tokens)
            counts.update(bleu_counts(f"bleu_{route.pair}", hypotheses, references))
            if f"teacher_bleu_{route.pair}" in teacher_names:
                teacher = self._teachers[route.pair]
                own, _, _ = realign(part, self._layout, route.tokens, teacher.language_tokens)
                generator = self._translator.generator(list(teacher.members), teacher.dictionary)
                hypotheses = self._translator.translate(generator, own, self._layout, teacher.language_tokens)
                counts.update(bleu_counts(f"teacher_bleu_{route.pair}", hypotheses, references))
        return counts

    def log(self, logging_outputs: Iterable[dict[str, Any]]) -> None:
        """Logs BLEU of the student, `bleu_PAIR` and their mean `bleu`, and the counts they follow from."""
        student_names, teacher_names = self._names()
        for name in student_names + teacher_names:
            for key in count_names(name):
                metrics.log_scalar(key, utils.item(sum(log.get(key, 0) for log in logging_outputs)))
        for name in student_names:
            metrics.log_derived(name, functools.partial(_score, name))
        metrics.log_derived("bleu", functools.partial(_mean_score, student_names))

    def decide(self, stats: dict[str, Any], meters: Mapping[str, Any], kd_weight: float | None) -> None:
        """The scores of all workers are in: the selection learns them, and the weights of pairs follow.

        Args:
            stats: what fairseq-train prints about the validation; scores and weights of teachers are added.
            meters: the sums over all batches and workers.
            kd_weight: of the criterion.
        """
        if not self._decides:
            return
        self._decides = False
        unscored = self._unscored()
        self._selection.teacher_bleu.update({pair: _score(f"teacher_bleu_{pair}", meters) for pair in unscored})
        self._selection.student_bleu.update({pair: stats[f"bleu_{pair}"] for pair in self._lang_pairs})
        for pair in self._teachers:
            stats[f"teacher_bleu_{pair}"] = self._selection.teacher_bleu[pair]
            stats[f"kd_weight_{pair}"] = round((kd_weight or 0.0) * self._selection.strength(pair), 4)


def _score(name: str, meters: Mapping[str, Any]) -> float:
    return round(bleu([meters[key].sum for key in count_names(name)]), 2)


def _mean_score(names: list[str], meters: Mapping[str, Any]) -> float:
    return round(sum(_score(name, meters) for name in names) / len(names), 2)

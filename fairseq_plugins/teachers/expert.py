"""Frozen teachers: loaded safely, run in evaluation and inference mode on their own sentences only."""

from __future__ import annotations

import copy
import logging
import math
from argparse import Namespace
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.data.multilingual.multilingual_data_manager import MultilingualDatasetManager
from fairseq.dataclass.utils import omegaconf_no_object_check
from fairseq.models import ARCH_MODEL_NAME_REGISTRY
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from omegaconf import OmegaConf, open_dict
from torch import Tensor, nn

from ..errors import UserError
from ..inference_only.checkpoints import read_checkpoint
from ..losses.soft_labels import ProjectedLogits, SoftLabels
from ..multilingual.language_tokens import Batch, LanguageTokens, Layout, realign
from ..multilingual.routes import tokens_of_pair
from ..multilingual.stock_options import as_namespace
from .output_layer import plain_output_layer
from .vocabularies import Vocabulary, check_identical, load_dictionary

logger = logging.getLogger(__name__)

BILINGUAL_TASKS = ("translation", "translation_kd")
MULTILINGUAL_TASKS = ("translation_multi_simple_epoch", "multilingual_translation_kd")
# models that open no other file and run no option as a program while they are built
MODELS = ("transformer", "transformer_align", "lightconv", "lstm")


@dataclass(frozen=True)
class Question:
    """What a teacher is asked about a batch: its sentences as the teacher reads them, and which words of them.

    Attributes:
        source: (B', S) of the teacher's sentences.
        lengths: (B',) of their sources.
        decoder_input: (B', T)
        places: (R,) the words asked about, among the B' * T positions that the decoder reads.
        sentences: (R,) row of each of these words in the student's batch, ascending.
        positions: (R,) column of each in the student's target, ascending within a sentence.
    """

    source: Tensor
    lengths: Tensor
    decoder_input: Tensor
    places: Tensor
    sentences: Tensor
    positions: Tensor

    def after_prefix(self, size: int) -> Question:
        """The same for targets whose first `size` columns are left out of the loss."""
        if size == 0:
            return self
        kept = (self.positions >= size).nonzero(as_tuple=True)[0]
        words = {"places": self.places[kept], "sentences": self.sentences[kept]}
        return replace(self, **words, positions=self.positions[kept] - size)


class Teacher:
    """One expert, or an ensemble of them, for one language pair.

    It is no `nn.Module` and hangs on the task, so that its weights are never in the student's optimizer, checkpoint or
    gradient buckets.
    """

    def __init__(
        self,
        members: list[nn.Module],
        dictionary: Dictionary,
        shared_entries: int,
        language_tokens: LanguageTokens,
        label_smoothing: float = 0.0,
    ) -> None:
        """
        Args:
            members: models; the probabilities of several are averaged.
            dictionary: of the target language, with the teacher's own language tokens.
            shared_entries: its first so many entries are the student's, too.
            language_tokens: those that the teacher expects for this pair.
            label_smoothing: that it was trained with, as far as its checkpoint says.
        """
        self.members = nn.ModuleList(members).eval().requires_grad_(False)
        self.dictionary = dictionary
        self.shared_entries = shared_entries
        self.language_tokens = language_tokens
        self.label_smoothing = label_smoothing
        limits = [model.max_positions() for model in members]
        self.max_source = min(limit[0] for limit in limits)
        self.max_target = min(limit[1] for limit in limits)

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        self.members.to(device=device, dtype=dtype)

    def question(self, batch: Batch, sentences: Tensor, layout: Layout, student_tokens: LanguageTokens) -> Question:
        """What to ask about every word of some sentences; a loader's worker prepares it, without the model.

        Sentences longer than the teacher can read are left out, and so are trained on labels alone.

        Args:
            batch: all B sentences as the student sees them.
            sentences: ascending rows of those that this teacher teaches.
            layout: of the student's batches.
            student_tokens: language tokens that the student's sentences of this pair have.
        """
        if batch.source.size(1) >= self.max_source or batch.target.size(1) >= self.max_target:
            # one position is kept free for a language token of the teacher's own
            fits = batch.source.ne(layout.pad).sum(1).lt(self.max_source)
            fits &= batch.target.ne(layout.pad).sum(1).lt(self.max_target)
            sentences = sentences[fits[sentences]]
        own, words, shift = realign(batch.pick(sentences), layout, student_tokens, self.language_tokens)
        rows, columns = words.nonzero(as_tuple=True)
        return Question(
            source=own.source,
            lengths=own.source.ne(layout.pad).sum(dim=1),
            decoder_input=own.decoder_input,
            places=rows * words.size(1) + columns,
            sentences=sentences[rows],
            positions=columns + shift,
        )

    def answer(self, question: Question, strength: float = 1.0) -> SoftLabels:
        """The teacher's predictions, where its model is; `strength` is passed on."""
        return SoftLabels(question.sentences, question.positions, self._logits(question), strength)

    def soft_labels(
        self, batch: Batch, sentences: Tensor, layout: Layout, student_tokens: LanguageTokens, strength: float = 1.0
    ) -> SoftLabels:
        """`question` and `answer` in one."""
        return self.answer(self.question(batch, sentences, layout, student_tokens), strength)

    @torch.inference_mode()
    def _logits(self, question: Question) -> Tensor | ProjectedLogits:
        """(R, shared entries): logits of one model, or log of the averaged probabilities of several.

        The logits of one model with a plain output layer are left to be projected, chunk by chunk, by the loss.
        """
        inputs = {
            "src_tokens": question.source,
            "src_lengths": question.lengths,
            "prev_output_tokens": question.decoder_input,
        }

        def of_words(output: Tensor) -> Tensor:
            """(R, ...) of (B', T, ...)"""
            flat = output.flatten(0, 1)
            return flat[question.places] if len(question.places) < len(flat) else flat

        # entries that the student lacks are language tokens of the teacher's: never a word's prediction
        shared = slice(self.shared_entries)
        if len(self.members) == 1:
            (model,) = self.members
            layer, _ = plain_output_layer(model)
            if layer is None:
                return of_words(model(**inputs)[0][:, :, shared])
            features = of_words(model(**inputs, features_only=True)[0])
            return ProjectedLogits(features, layer.weight[shared], None if layer.bias is None else layer.bias[shared])

        def lprobs_of(model: nn.Module) -> Tensor:
            """Less so much that those of all members, each a share of the average, add up."""
            logits = of_words(model(**inputs)[0][:, :, shared])
            return torch.log_softmax(logits.float(), dim=-1) - math.log(len(self.members))

        first, *others = self.members
        averaged = lprobs_of(first)
        for model in others:
            torch.logaddexp(averaged, lprobs_of(model), out=averaged)
        return averaged


def load_teacher(
    paths: str, vocabulary: Vocabulary, left_pad_source: bool = True, *, other_pairs: bool = False
) -> Teacher:
    """Loads the checkpoints `PATH` or `PATH:PATH:...` (an ensemble) on the CPU.

    Args:
        paths: fairseq checkpoints of the tasks in `BILINGUAL_TASKS` or `MULTILINGUAL_TASKS`.
        vocabulary: the student's, for the pair to teach.
        left_pad_source: side on which the student's batches pad the source (recurrent encoders need to know).
        other_pairs: a bilingual model may be of another language pair or direction, as a warning says then.

    Raises:
        UserError: a file is missing, damaged, unsafe or no translation model, or of another language pair, or its
            vocabulary is not the student's.
    """
    members, experts = [], []
    # an expert's random initial weights are overwritten, but must not shift the student's random numbers
    with torch.random.fork_rng(devices=[]):
        for path in paths.split(":"):
            model, *expert = _load_expert(path, vocabulary, left_pad_source, other_pairs)
            members.append(model)
            experts.append(expert)
    (dictionary, shared_entries, tokens, _), *others = experts
    for other_dictionary, _, other_tokens, _ in others:
        if other_tokens != tokens or other_dictionary != dictionary:
            raise UserError(f"the models of the ensemble {paths} expect different language tokens: use one kind only")
    return Teacher(members, dictionary, shared_entries, tokens, max(smoothing for *_, smoothing in experts))


def _load_expert(
    path: str, vocabulary: Vocabulary, left_pad_source: bool, other_pairs: bool
) -> tuple[nn.Module, Dictionary, int, LanguageTokens, float]:
    state = read_checkpoint(path)
    # by far the largest part, and of no use here
    state.pop("last_optimizer_state", None)
    try:
        state = _upgraded(state)
        return *_rebuilt_expert(path, state, vocabulary, left_pad_source, other_pairs), _label_smoothing(state["cfg"])
    except Exception as problem:  # weights or options that fairseq cannot make a model of: it stumbles in many ways
        first_line = str(problem).splitlines()[0] if str(problem) else ""
        raise UserError(
            f"cannot rebuild teacher {path} from its options and weights with the student's dictionary: "
            f"{type(problem).__name__}: {first_line}"
        ) from None


def _label_smoothing(cfg: Any) -> float:
    """That of the training which a checkpoint's options tell of; 0 where they do not."""
    smoothing = getattr(getattr(cfg, "criterion", None), "label_smoothing", None)
    return float(smoothing) if isinstance(smoothing, (int, float)) else 0.0


def _rebuilt_expert(
    path: str, state: dict[str, Any], vocabulary: Vocabulary, left_pad_source: bool, other_pairs: bool
) -> tuple[nn.Module, Dictionary, int, LanguageTokens]:
    options, model_options = state["cfg"].task, state["cfg"].model
    task_name = getattr(options, "_name", None) or getattr(options, "task", None)
    if task_name not in BILINGUAL_TASKS + MULTILINGUAL_TASKS:
        raise UserError(
            f"teacher {path} was trained with --task {task_name}; a teacher can be of one of the tasks "
            f"{', '.join(BILINGUAL_TASKS + MULTILINGUAL_TASKS)}"
        )
    arch = getattr(model_options, "_name", None) or getattr(model_options, "arch", None)
    if ARCH_MODEL_NAME_REGISTRY.get(arch) not in MODELS:
        raise UserError(f"teacher {path} has --arch {arch}; a teacher can be any architecture of {', '.join(MODELS)}")
    with open_dict(model_options) if OmegaConf.is_config(model_options) else nullcontext():
        # pretrained embeddings are in the checkpoint by now, and their files need not be here
        model_options.encoder_embed_path = model_options.decoder_embed_path = None

    if task_name in BILINGUAL_TASKS:
        _check_pair(path, options, vocabulary, other_pairs)
    source = _same_dictionary(path, options, "source", vocabulary.source_lang, vocabulary.source_path)
    target = _same_dictionary(path, options, "target", vocabulary.target_lang, vocabulary.target_path)
    shared_entries = len(target)
    tokens = LanguageTokens()
    if task_name in MULTILINGUAL_TASKS:
        source, target, tokens = _own_language_tokens(path, options, vocabulary, source, target)

    # stands in for the teacher's own task, whose data need not be here: a model asks it for its dictionaries only
    task = TranslationTask(TranslationConfig(left_pad_source=left_pad_source), source, target)
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([path], task=task, state=state)
    if getattr(model.decoder, "adaptive_softmax", None) is not None:
        raise UserError(f"teacher {path} uses an adaptive softmax, which gives no logits; use a model without one")
    return model, target, shared_entries, tokens


def _upgraded(state: dict[str, Any]) -> dict[str, Any]:
    """Options as fairseq's own loader would hand them on, checkpoints of older versions included."""
    if state.get("cfg"):
        with omegaconf_no_object_check():
            state["cfg"] = OmegaConf.create(state["cfg"])
    return checkpoint_utils._upgrade_state_dict(state)


def _check_pair(path: str, options: Any, vocabulary: Vocabulary, other_pairs: bool) -> None:
    """Raises UserError for a bilingual model of another pair or direction, unless they are wanted."""
    own = getattr(options, "source_lang", None), getattr(options, "target_lang", None)
    asked = vocabulary.source_lang, vocabulary.target_lang
    if all(lang in (None, wanted) for lang, wanted in zip(own, asked, strict=True)):
        return
    what = f"teacher {path} was trained on {own[0]}-{own[1]}"
    if not other_pairs:
        raise UserError(
            f"{what} and is to teach {asked[0]}-{asked[1]}: name the expert of that pair and direction, or add "
            "--kd-allow-other-pair if this one is meant"
        )
    logger.warning(f"{what} and now teaches {asked[0]}-{asked[1]}")


def _same_dictionary(path: str, options: Any, side: str, lang: str, student_path: str) -> Dictionary:
    """The teacher's dictionary for one side of the pair, known to list the same entries as the student's.

    It is looked for where the teacher's training found it: the file named in its options, else `dict.LANG.txt` in the
    data folder recorded there, else next to the checkpoint. A teacher that came without any is taken at its word.
    """
    named = getattr(options, "fixed_dictionary", None) or getattr(options, f"{side}_dict", None)
    own_lang = getattr(options, f"{side}_lang", None)
    folders = [Path(str(options.data).split(":")[0]), Path(path).parent]
    candidates = [Path(named)] if named else [folder / f"dict.{own_lang or lang}.txt" for folder in folders]
    student = load_dictionary(student_path)
    for candidate in candidates:
        if candidate.is_file():
            teacher = load_dictionary(str(candidate))
            check_identical(student, student_path, teacher, str(candidate))
            return teacher
    logger.warning(
        f"no dictionary of teacher {path} found ({', '.join(map(str, candidates))}): assuming that it is {student_path}"
    )
    return student


def _own_language_tokens(
    path: str, options: Any, vocabulary: Vocabulary, source: Dictionary, target: Dictionary
) -> tuple[Dictionary, Dictionary, LanguageTokens]:
    """A multilingual teacher's dictionaries with its language tokens appended, and those of this pair."""
    options = copy.deepcopy(options) if isinstance(options, Namespace) else as_namespace(options)

    target_path = str(Path(options.data.split(":")[0]) / f"dict.{vocabulary.target_lang}.txt")

    def load(dictionary_path: str) -> Dictionary:
        return copy.deepcopy(target if dictionary_path in (options.target_dict, target_path) else source)

    langs, dictionaries, _ = MultilingualDatasetManager.prepare(load, options)
    if f"{vocabulary.source_lang}-{vocabulary.target_lang}" not in options.lang_pairs:
        raise UserError(
            f"teacher {path} was trained on {','.join(options.lang_pairs)}: it cannot teach "
            f"{vocabulary.source_lang}-{vocabulary.target_lang}"
        )
    manager = MultilingualDatasetManager(options, options.lang_pairs, langs, dictionaries, sampling_method=None)
    source = manager.get_source_dictionary(vocabulary.source_lang)
    target = manager.get_target_dictionary(vocabulary.target_lang)
    return source, target, tokens_of_pair(manager, "main", vocabulary.source_lang, vocabulary.target_lang)

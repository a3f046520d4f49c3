"""One multilingual student on stock `translation_multi_simple_epoch`, taught by one expert per language pair."""

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional  # omegaconf 2.0 cannot read `str | None`

from fairseq import metrics, utils
from fairseq.dataclass import ChoiceEnum
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from omegaconf import II

from ..errors import UserError
from ..losses.soft_labels import TAILS
from ..multilingual.binarized import check_binarized, telling_what_is_wrong_with
from ..multilingual.language_tokens import batch_of, layout_of
from ..multilingual.pair_options import parse_by_pair
from ..multilingual.resume import carrying
from ..multilingual.routes import RoutedDatasetManager
from ..multilingual.selective import STRATEGIES, Selection
from ..multilingual.stock_options import MultilingualTranslationOptions, as_namespace
from ..multilingual.validation import Translator, Validation
from ..teachers.expert import load_teacher
from ..teachers.lookup import Share
from ..teachers.vocabularies import Vocabulary
from ._distillation import KD_TAIL_HELP, TEACHER_OUTPUTS_HELP, DistillationTask, refuse_altered_data, refuse_empty

logger = logging.getLogger(__name__)


def _like_translation(option: str):
    """The same field as in stock `translation`: its default, help and argparse details."""
    stock = TranslationConfig.__dataclass_fields__[option]
    return field(default=stock.default, metadata=stock.metadata)


@dataclass
class MultilingualTranslationKDConfig(MultilingualTranslationOptions):
    teachers: Optional[str] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "one teacher per language pair: en-de=PATH,en-ru=PATH:PATH2 with ordinary fairseq checkpoints of "
            "any size that share the student's dictionaries; several joined by ':' are an ensemble. Pairs that are not "
            "named learn from labels alone. Use with --criterion label_smoothed_kd_cross_entropy"
        },
    )
    kd_allow_other_pair: bool = field(
        default=False,
        metadata={
            "help": "take a teacher whose checkpoint says that it was trained on another language pair or direction "
            "than it is to teach; without this it is refused"
        },
    )
    teacher_outputs: Optional[str] = field(  # noqa: UP045
        default=None,
        metadata={"help": "one folder per language pair, en-de=DIR,en-ru=DIR, " + TEACHER_OUTPUTS_HELP.format(s="s")},
    )
    kd_tail: ChoiceEnum(TAILS) = field(default=TAILS[0], metadata={"help": KD_TAIL_HELP})
    kd_strategy: ChoiceEnum(STRATEGIES) = field(
        default="fixed",
        metadata={
            "help": "weight of the teacher per language pair, given validation BLEU of student and teacher on it: "
            "fixed (always --kd-weight), threshold (--kd-weight while student < teacher + margin, else 0), adaptive "
            "(--kd-weight while student < teacher - margin, halved for every BLEU point beyond)"
        },
    )
    kd_threshold: Optional[float] = field(  # noqa: UP045
        default=None,
        metadata={"help": "the margin of --kd-strategy, in BLEU points (default: 1 for threshold, 2 for adaptive)"},
    )
    eval_bleu: bool = field(
        default=False,
        metadata={
            "help": "translate the validation data with student and teachers and log BLEU per language pair; implied "
            "by --kd-strategy threshold and adaptive"
        },
    )
    eval_bleu_args: Optional[str] = _like_translation("eval_bleu_args")  # noqa: UP045
    eval_bleu_detok: str = _like_translation("eval_bleu_detok")
    eval_bleu_detok_args: Optional[str] = _like_translation("eval_bleu_detok_args")  # noqa: UP045
    eval_bleu_remove_bpe: Optional[str] = _like_translation("eval_bleu_remove_bpe")  # noqa: UP045
    save_dir: str = II("checkpoint.save_dir")


@register_task("multilingual_translation_kd", dataclass=MultilingualTranslationKDConfig)
class MultilingualTranslationKDTask(DistillationTask, TranslationMultiSimpleEpochTask):
    """`translation_multi_simple_epoch` plus `--teachers`; a batch may mix pairs, each sentence has its own expert.

    Some pairs may have an expert and others the stored outputs of one (`--teacher-outputs`).

    Validation translates for BLEU per pair where asked for, and then decides the weight of each pair's teacher.
    """

    def __init__(self, args, langs, dicts, training, cfg):
        super().__init__(args, langs, dicts, training)
        self.data_manager = RoutedDatasetManager(args, self.lang_pairs, langs, dicts, self.sampling_method)
        self.kd = cfg
        self.selection = Selection(str(cfg.kd_strategy), cfg.kd_threshold)
        if cfg.kd_threshold is not None and self.selection.strategy == "fixed":
            raise UserError(
                f"--kd-threshold {cfg.kd_threshold} is the margin of --kd-strategy threshold or adaptive: choose one "
                "of them, or leave it out"
            )
        if not math.isfinite(self.selection.margin):
            raise UserError(f"--kd-threshold {cfg.kd_threshold}: give a finite number of BLEU points")
        self.layout = layout_of(self.target_dictionary, args)
        self.validation = None
        if cfg.eval_bleu or self.selection.strategy != "fixed":
            translator = Translator(cfg)
            self.validation = Validation(
                translator, self.selection, self.lang_pairs, self.target_dictionary, self.layout
            )
        if self.selection.strategy != "fixed" and cfg.teacher_outputs:
            raise UserError(
                f"--kd-strategy {cfg.kd_strategy} compares the student with experts that translate; stored outputs "
                "cannot: use --teachers in place of --teacher-outputs, or --kd-strategy fixed"
            )
        if self.selection.strategy != "fixed" and not cfg.teachers:
            raise UserError(f"--kd-strategy {cfg.kd_strategy} weighs teachers: name them with --teachers en-de=PATH")

    @classmethod
    def add_args(cls, parser):
        gen_parser_from_dataclass(parser, MultilingualTranslationKDConfig())

    @classmethod
    def setup_task(cls, cfg, **kwargs):
        args = as_namespace(cfg)
        refuse_empty(args, "teachers", "teacher_outputs")
        pairs = (args.lang_pairs or "").split(",")
        for pair in pairs:
            if len(pair.split("-")) != 2:
                raise UserError(f"--lang-pairs {args.lang_pairs}: list SOURCE-TARGET pairs, as in en-de,en-ru")
            if pairs.count(pair) > 1:
                raise UserError(f"--lang-pairs {args.lang_pairs} names {pair} twice; name it once")
        with telling_what_is_wrong_with(args.data):
            langs, dicts, training = RoutedDatasetManager.prepare(cls.load_dictionary, args, **kwargs)
            return cls(args, langs, dicts, training, cfg)

    def build_model(self, cfg, from_checkpoint=False):
        model = super().build_model(cfg, from_checkpoint)
        if self.validation is not None:
            self.validation.watch(model)
        return model

    def load_teachers(self):
        if not (self.kd.teachers and self.training):
            return {}
        teachers = {}
        for pair, paths in parse_by_pair("--teachers", self.kd.teachers, self.lang_pairs).items():
            teachers[pair] = load_teacher(
                paths, self.vocabulary(pair), self.args.left_pad_source, other_pairs=self.kd.kd_allow_other_pair
            )
            logger.info(f"teacher of {pair}: {paths}; --kd-strategy {self.selection.strategy}")
        return teachers

    @property
    def kd_tail(self):
        return str(self.kd.kd_tail)

    def store_folders(self):
        if not (self.kd.teacher_outputs and self.training):
            return {}
        refuse_altered_data(self.args)
        named = parse_by_pair("--teacher-outputs", self.kd.teacher_outputs, self.lang_pairs)
        folders = {pair: Path(folder) for pair, folder in named.items()}
        extra = {pair for pairs in (self.args.extra_lang_pairs or {}).values() for pair in pairs.split(",")}
        for pair, folder in folders.items():
            if pair in self.teachers:
                raise UserError(f"{pair} is in both --teachers and --teacher-outputs: name it in one of them")
            if pair in extra:
                raise UserError(
                    f"--teacher-outputs {pair}: --extra-lang-pairs adds data to that pair that stored outputs are not "
                    "about; teach it with --teachers"
                )
            logger.info(f"stored teacher outputs of {pair}: {folder}; --kd-tail {self.kd_tail}")
        return folders

    @property
    def save_dir(self):
        return str(self.kd.save_dir)

    def trained_pairs(self):
        return list(self.lang_pairs)

    def data_folder(self):
        return Path(utils.split_paths(self.args.data)[0])

    def vocabulary(self, pair):
        source_lang, target_lang = pair.split("-")
        return Vocabulary(
            source_lang,
            target_lang,
            self._dictionary_path(source_lang, self.args.source_dict),
            self._dictionary_path(target_lang, self.args.target_dict),
        )

    def _dictionary_path(self, lang, named):
        in_data = self.data_folder() / f"dict.{lang}.txt"
        return self.args.fixed_dictionary or named or str(in_data)

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        check_binarized(utils.split_paths(self.args.data), split, self.lang_pairs)
        with telling_what_is_wrong_with(self.args.data):
            super().load_dataset(split, epoch, combine, **kwargs)
        self.refuse_left_out_sentences(split, self.data_manager.target_sizes(split))
        if split == self.args.train_subset:
            for pair, stored in self.stored_teachers.items():
                stored.check_data(self.data_folder(), split, self.data_manager.sentences_of_pair[pair])

    def shares(self, sample):
        indices = self.data_manager.indices(sample["id"])
        return [
            Share(route.pair, route.tokens, rows, indices[rows])
            for route, rows in self.data_manager.sentences_by_route(sample["id"]).items()
        ]

    def training_data(self):
        return self.datasets.get(self.args.train_subset)

    def strength(self, pair):
        return self.selection.strength(pair)

    def begin_valid_epoch(self, epoch, model):
        super().begin_valid_epoch(epoch, model)
        if self.validation is not None:
            self.validation.begin(self.teachers)

    def valid_step(self, sample, model, criterion):
        loss, sample_size, logged = super().valid_step(sample, model, criterion)
        if self.validation is not None:
            logged.update(self.validation.counts(batch_of(sample), self.data_manager.sentences_by_route(sample["id"])))
        return loss, sample_size, logged

    def reduce_metrics(self, logging_outputs, criterion):
        super().reduce_metrics(logging_outputs, criterion)
        if criterion.training:
            for pair in self.teachers if self.selection.strategy != "fixed" else ():
                weight = self.kd_weight * self.selection.strength(pair)
                metrics.log_scalar(f"kd_weight_{pair}", weight, weight=0, round=4)
        elif self.validation is not None:
            self.validation.log(logging_outputs)

    def post_validate(self, model, stats, agg):
        """Called by fairseq-train after each validation subset, with the sums over all workers."""
        if self.validation is not None:
            self.validation.decide(stats, agg, self.kd_weight)

    def get_batch_iterator(self, *args, **kwargs):
        return carrying(super().get_batch_iterator(*args, **kwargs), "selection", self.selection)

"""Stock `translation`, taught by an expert for the same pair."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional  # omegaconf 2.0 cannot read `str | None`

from fairseq import utils
from fairseq.dataclass import ChoiceEnum
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from omegaconf import II

from ..errors import UserError
from ..losses.soft_labels import TAILS
from ..multilingual.binarized import check_binarized, telling_what_is_wrong_with
from ..multilingual.language_tokens import LanguageTokens, layout_of
from ..multilingual.validation import json_option, search_options
from ..teachers.expert import load_teacher
from ..teachers.lookup import Share
from ..teachers.vocabularies import Vocabulary
from ._distillation import KD_TAIL_HELP, TEACHER_OUTPUTS_HELP, DistillationTask, refuse_altered_data, refuse_empty


@dataclass
class TranslationKDConfig(TranslationConfig):
    teacher: Optional[str] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "checkpoint of the teacher, an ordinary fairseq translation model of any size with the same "
            "dictionaries as the student; several, joined by ':', are an ensemble whose probabilities are averaged. "
            "Use with --criterion label_smoothed_kd_cross_entropy. Without it this is stock translation"
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
        default=None, metadata={"help": "folder " + TEACHER_OUTPUTS_HELP.format(s="")}
    )
    kd_tail: ChoiceEnum(TAILS) = field(default=TAILS[0], metadata={"help": KD_TAIL_HELP})
    save_dir: str = II("checkpoint.save_dir")


@register_task("translation_kd", dataclass=TranslationKDConfig)
class TranslationKDTask(DistillationTask, TranslationTask):
    """`translation` plus `--teacher`: every training batch also holds the teacher's prediction of each target word."""

    cfg: TranslationKDConfig

    @classmethod
    def setup_task(cls, cfg, **kwargs):
        refuse_empty(cfg, "teacher", "teacher_outputs")
        if cfg.eval_bleu:
            search_options(cfg.eval_bleu_args)
            json_option("--eval-bleu-detok-args", cfg.eval_bleu_detok_args)
        with telling_what_is_wrong_with(cfg.data):
            return super().setup_task(cfg, **kwargs)

    @property
    def pair(self):
        return f"{self.cfg.source_lang}-{self.cfg.target_lang}"

    @property
    def kd_tail(self):
        return str(self.cfg.kd_tail)

    @property
    def save_dir(self):
        return str(self.cfg.save_dir)

    def trained_pairs(self):
        return [self.pair]

    def load_teachers(self):
        if self.cfg.teacher is None:
            return {}
        teacher = load_teacher(
            self.cfg.teacher,
            self.vocabulary(self.pair),
            self.cfg.left_pad_source,
            other_pairs=self.cfg.kd_allow_other_pair,
        )
        return {self.pair: teacher}

    def store_folders(self):
        if self.cfg.teacher_outputs is None:
            return {}
        if self.cfg.teacher is not None:
            raise UserError("--teacher and --teacher-outputs are both given: name the expert or its stored outputs")
        refuse_altered_data(self.cfg)
        return {self.pair: Path(self.cfg.teacher_outputs)}

    def vocabulary(self, pair):
        source_lang, target_lang = self.cfg.source_lang, self.cfg.target_lang
        folder = self.data_folder()
        source_path, target_path = (str(folder / f"dict.{lang}.txt") for lang in (source_lang, target_lang))
        return Vocabulary(source_lang, target_lang, source_path, target_path)

    def data_folder(self):
        return Path(utils.split_paths(self.cfg.data)[0])

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        check_binarized(utils.split_paths(self.cfg.data), split, [self.pair])
        with telling_what_is_wrong_with(self.cfg.data):
            super().load_dataset(split, epoch, combine, **kwargs)
        self.refuse_left_out_sentences(split, [self.datasets[split].tgt_sizes])
        if split == self.cfg.train_subset:
            for stored in self.stored_teachers.values():
                stored.check_data(self.data_folder(), split, len(self.datasets[split]))

    @property
    def layout(self):
        return layout_of(self.target_dictionary, self.cfg)

    def shares(self, sample):
        return [Share(self.pair, LanguageTokens(), list(range(len(sample["id"]))), sample["id"].numpy())]

    def training_data(self):
        return self.datasets.get(self.cfg.train_subset)

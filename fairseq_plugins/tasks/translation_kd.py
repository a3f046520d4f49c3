"""Stock `translation`, taught by an expert for the same pair."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional  # omegaconf 2.0 cannot read `str | None`

import torch
from fairseq import utils
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from ..distillation_task import DistillationTask, batch_of, layout_of
from ..errors import UserError
from ..language_tokens import LanguageTokens
from ..teachers import Vocabulary, load_teacher


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


@register_task("translation_kd", dataclass=TranslationKDConfig)
class TranslationKDTask(DistillationTask, TranslationTask):
    """`translation` plus `--teacher`: every training batch also holds the teacher's prediction of each target word."""

    cfg: TranslationKDConfig

    @classmethod
    def setup_task(cls, cfg, **kwargs):
        try:
            return super().setup_task(cfg, **kwargs)
        except FileNotFoundError as problem:
            raise UserError(f"{problem}; give a folder written by fairseq-preprocess") from None

    def load_teachers(self):
        if self.cfg.teacher is None:
            return {}
        source_lang, target_lang = self.cfg.source_lang, self.cfg.target_lang
        folder = Path(utils.split_paths(self.cfg.data)[0])
        vocabulary = Vocabulary(
            source_lang,
            target_lang,
            str(folder / f"dict.{source_lang}.txt"),
            str(folder / f"dict.{target_lang}.txt"),
        )
        return {f"{source_lang}-{target_lang}": load_teacher(self.cfg.teacher, vocabulary, self.cfg.left_pad_source)}

    def soft_labels(self, sample):
        (teacher,) = self.teachers.values()
        batch = batch_of(sample)
        everyone = torch.arange(len(batch.target), device=batch.target.device)
        return [teacher.soft_labels(batch, everyone, layout_of(self.target_dictionary, self.cfg), LanguageTokens())]

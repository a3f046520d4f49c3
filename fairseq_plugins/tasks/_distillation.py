"""What both tasks share: when teachers are loaded, where they run, and how their word reaches the criterion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fairseq import utils
from fairseq.optim.amp_optimizer import AMPOptimizer

from ..errors import UserError
from ..losses.soft_labels import SoftLabels
from ..multilingual.language_tokens import batch_of  # noqa: F401  until scripts/nmt/lib/store_outputs.py is moved
from ..teachers.expert import Teacher, Vocabulary
from ..teachers.stored import StoredTeacher


class DistillationTask:
    """Mixin for a fairseq task, before the stock class in the list of bases.

    Attributes:
        teachers: for each language pair that has one; empty until training starts, and without `--teacher(s)`.
        stored_teachers: for each language pair whose teacher's outputs were stored, `--teacher-outputs`; likewise.
        kd_weight: the criterion's.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.teachers: dict[str, Teacher] = {}
        self.stored_teachers: dict[str, StoredTeacher] = {}
        self.kd_weight: float | None = None
        self._trains = False

    def load_teachers(self) -> dict[str, Teacher]:
        """One teacher per language pair, on the CPU."""
        raise NotImplementedError

    def store_folders(self) -> dict[str, Path]:
        """Folder of the stored teacher outputs for each language pair that has them."""
        raise NotImplementedError

    def vocabulary(self, pair: str) -> Vocabulary:
        """The student's dictionaries for a pair."""
        raise NotImplementedError

    def soft_labels(self, sample) -> list[SoftLabels]:
        """What the teachers say about a training batch."""
        raise NotImplementedError

    def build_model(self, cfg, from_checkpoint=False):
        # a student loaded for translation or evaluation needs no teacher: their files may be deleted by then
        self._trains = not from_checkpoint
        return super().build_model(cfg, from_checkpoint)

    def build_criterion(self, cfg):
        criterion = super().build_criterion(cfg)
        self.kd_weight = getattr(criterion, "kd_weight", None)
        # not in `build_model`: fairseq would wrap the teachers' layers under --ddp-backend fully_sharded
        if self._trains:
            self.teachers = self.load_teachers()
            folders = self.store_folders()
            if (self.teachers or folders) and self.kd_weight is None:
                raise UserError(
                    f"a teacher was given, but --criterion {type(criterion).__name__} does not learn from one: use "
                    "--criterion label_smoothed_kd_cross_entropy"
                )
            for pair, folder in folders.items():
                vocabulary = self.vocabulary(pair)
                self.stored_teachers[pair] = StoredTeacher(folder, vocabulary, criterion.kd_temperature, self.kd_tail)
        return criterion

    def begin_epoch(self, epoch, model):
        super().begin_epoch(epoch, model)
        # by now the student is where it trains, in the precision it trains in
        weight = next(model.parameters())
        for teacher in self.teachers.values():
            teacher.to(weight.device, weight.dtype)

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        if self.teachers or self.stored_teachers:
            # a worker that has run out of data repeats a batch and ignores the outcome
            labels = []
            if not ignore_grad:
                with torch.autocast("cuda", enabled=isinstance(optimizer, AMPOptimizer)):
                    labels = self.soft_labels(sample)
            sample = {**sample, "soft_labels": labels}
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)


def refuse_altered_data(options: Any) -> None:
    """Stored outputs are about whole sentences in one folder, found by their position there.

    Args:
        options: `data` and `truncate_source` of a task.

    Raises:
        UserError: the student would see other sentences, or the same ones in other places.
    """
    if options.truncate_source:
        raise UserError(
            "--truncate-source: stored teacher outputs are about whole sentences; leave it out (longer ones can be "
            "skipped, --skip-invalid-size-inputs-valid-test), or train with the expert itself"
        )
    if len(utils.split_paths(options.data)) > 1:
        raise UserError(
            f"{options.data}: stored teacher outputs are about the data of one folder; give one folder, or train with "
            "the expert itself"
        )

"""What both tasks share: when teachers are loaded, where they run, and how their soft labels reach the criterion."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.optim.amp_optimizer import AMPOptimizer
from torch import Tensor

from ..errors import UserError
from ..losses.soft_labels import SoftLabels
from ..multilingual.kept_vocabulary import keep_vocabulary
from ..multilingual.language_tokens import Layout
from ..teachers.expert import Question, Teacher
from ..teachers.lookup import Lookup, Share, Teaching
from ..teachers.stored import StoredTeacher
from ..teachers.vocabularies import Vocabulary

TEACHER_OUTPUTS_HELP = (
    "written by scripts/nmt/store_teacher_outputs.py from an expert's predictions of the training data: the student "
    "learns from them as from --teacher{s}, but without the expert in memory. Use with --criterion "
    "label_smoothed_kd_cross_entropy"
)
KD_TAIL_HELP = (
    "what becomes of the probability that stored outputs give to entries beyond the k stored: uniform (spread evenly "
    "over them, close to the teacher also where it was trained with label smoothing, or is softened by "
    "--kd-temperature), drop (the stored ones are scaled to a sum of 1, as Tan et al. 2019 do) or bucket (all others "
    "are one entry, whose probability the student learns)"
)

logger = logging.getLogger(__name__)


class DistillationTask:
    """Mixin for a fairseq task, before the stock class in the list of bases.

    Attributes:
        teachers: for each language pair that has one; empty until training starts, and without `--teacher(s)`.
        stored_teachers: for each language pair whose teacher's outputs were stored, `--teacher-outputs`; likewise.
        kd_weight: the criterion's.
        layout: of the student's batches.
        save_dir: where its checkpoints are written.
    """

    layout: Layout
    save_dir: str

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.teachers: dict[str, Teacher] = {}
        self.stored_teachers: dict[str, StoredTeacher] = {}
        self.kd_weight: float | None = None
        self._left_out = 0
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

    def shares(self, sample: dict[str, Any]) -> list[Share]:
        """The language pairs of a training batch on the CPU, and the sentences of each."""
        raise NotImplementedError

    def training_data(self) -> Any:
        """The data set that teachers teach, once it is loaded; else None."""
        raise NotImplementedError

    def strength(self, pair: str) -> float:
        """Share of the distillation weight in force for a pair, 0 to 1."""
        return 1.0

    def build_model(self, cfg, from_checkpoint=False):
        # a student loaded for translation or evaluation needs no teacher: their files may be deleted by then
        self._trains = not from_checkpoint
        return super().build_model(cfg, from_checkpoint)

    def build_criterion(self, cfg):
        criterion = super().build_criterion(cfg)
        self.kd_weight = getattr(criterion, "kd_weight", None)
        self._left_out = getattr(criterion, "ignore_prefix_size", 0)
        # not in `build_model`: fairseq would wrap the teachers' layers under --ddp-backend fully_sharded
        if self._trains:
            self.teachers = self.load_teachers()
            folders = self.store_folders()
            if (self.teachers or folders) and self.kd_weight is None:
                raise UserError(
                    f"a teacher was given, but --criterion {type(criterion).__name__} does not learn from one: use "
                    "--criterion label_smoothed_kd_cross_entropy"
                )
            if self.teachers or folders:
                criterion.prepare_to_learn()
            if folders:
                refuse_bucket(criterion.kd_loss_name, self.kd_tail)
            for pair, folder in folders.items():
                vocabulary = self.vocabulary(pair)
                stored = StoredTeacher(folder, vocabulary, criterion.kd_temperature, self.kd_tail)
                store, loss = stored.store, criterion.kd_loss_name
                takes_top_k = criterion.kd_loss.takes_top_k
                refuse_few_entries(loss, takes_top_k, store.folder, store.top_k, store.vocabulary_size)
                self.stored_teachers[pair] = stored
            self._tell_the_rule_of_thumb(criterion)
        return criterion

    def _tell_the_rule_of_thumb(self, criterion) -> None:
        for pair, teacher in [*self.teachers.items(), *self.stored_teachers.items()]:
            if teacher.label_smoothing > 0 and criterion.kd_temperature > 1:
                logger.warning(
                    f"the teacher of {pair} was trained with --label-smoothing {teacher.label_smoothing:g} and teaches "
                    f"at --kd-temperature {criterion.kd_temperature:g}: above 1 such a teacher's students lose "
                    "accuracy (Chandrasegaran et al. 2022, arXiv 2206.14532); 1 is the rule of thumb"
                )

    def trained_pairs(self) -> list[str]:
        """The language pairs that the student learns, as in en-de."""
        raise NotImplementedError

    def state_dict(self):
        # asked for whenever a checkpoint is written, which is to translate plain text from its folder alone
        if self._trains and Path(self.save_dir).is_dir():
            dictionaries: dict[str, Path] = {}
            for pair in self.trained_pairs():
                files = self.vocabulary(pair)
                dictionaries.setdefault(files.source_lang, Path(files.source_path))
                dictionaries.setdefault(files.target_lang, Path(files.target_path))
            keep_vocabulary(self.data_folder(), dictionaries, Path(self.save_dir))
        return super().state_dict()

    def data_folder(self) -> Path:
        """The first of the data folders, where the dictionaries are."""
        raise NotImplementedError

    def refuse_left_out_sentences(self, split: str, sizes: list[Any]) -> None:
        """Raises UserError where --ignore-prefix-size leaves nothing of any sentence; `sizes` of binarized targets."""
        longest = max((int(np.max(each)) for each in sizes if each is not None and len(each)), default=None)
        if longest is not None and self._left_out >= longest:
            raise UserError(
                f"--ignore-prefix-size {self._left_out} leaves nothing to learn of {split}, whose longest target "
                f"sentence has {longest} tokens; give a smaller number"
            )

    def begin_epoch(self, epoch, model):
        super().begin_epoch(epoch, model)
        # by now the student is where it trains, in the precision it trains in
        weight = next(model.parameters())
        for teacher in self.teachers.values():
            teacher.to(weight.device, weight.dtype)

    def lookup(self, collate: Callable[[list[Any]], dict[str, Any]]) -> Lookup:
        """A collate function that also looks up what the batch's teachers are asked, or have stored."""
        return Lookup(collate, self.shares, self.teachers, self.stored_teachers, self.layout, self._left_out)

    def get_batch_iterator(self, dataset, *args, **kwargs):
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        taught = (self.teachers or self.stored_teachers) and dataset is self.training_data()
        if taught and not isinstance(iterator.collate_fn, Lookup):  # fairseq may hand out one for all epochs
            iterator.collate_fn = self.lookup(iterator.collate_fn)
        return iterator

    def soft_labels(self, sample) -> list[SoftLabels]:
        """What the teachers say about a training batch, without the target columns that the loss leaves out."""
        return self._answers(self._teaching(sample))[0]

    def _teaching(self, sample) -> Teaching:
        """What a worker has looked up for the batch, or else is looked up now, where the batch is."""
        if "teaching" not in sample:
            here = utils.move_to_cpu({name: sample[name] for name in ("id", "target", "net_input")})
            sample = {**sample, "teaching": self.lookup(lambda sentences: {}).look_up(here)}
        teaching: Teaching = sample["teaching"]
        if teaching.refusal is not None:
            raise UserError(teaching.refusal)
        device = sample["target"].device
        return teaching.moved(lambda tensor: tensor.to(device, non_blocking=True))

    def _answers(self, teaching: Teaching) -> tuple[list[SoftLabels], list[Question]]:
        """The soft labels, and the questions that are not asked because a pair's teacher has no say any more."""
        labels, skipped = list(teaching.stored), []
        for pair, question in teaching.questions:
            strength = self.strength(pair)
            if strength > 0:
                labels.append(self.teachers[pair].answer(question, strength))
            else:
                skipped.append(question)
        return labels, skipped

    def _untaught(self, teaching: Teaching, skipped: list[Question], sample) -> Tensor:
        """(U,) tokens of the batch that are no padding and have no soft label."""
        length = sample["target"].size(1) - self._left_out
        return torch.cat([teaching.untaught, *(each.sentences * length + each.positions for each in skipped)])

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        if self.teachers or self.stored_teachers:
            # a worker that has run out of data repeats a batch and ignores the outcome
            taught: dict[str, Any] = {"soft_labels": []}
            if not ignore_grad:
                with torch.autocast("cuda", enabled=isinstance(optimizer, AMPOptimizer)):
                    teaching = self._teaching(sample)
                    taught["soft_labels"], skipped = self._answers(teaching)
                    taught["untaught"] = self._untaught(teaching, skipped, sample)
            sample = {**sample, **taught}
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)


def refuse_bucket(loss: str, tail: str) -> None:
    """Raises UserError where `--kd-tail bucket` changes the entries that `--kd-loss` is about."""
    if tail == "bucket" and loss != "kl":
        raise UserError("--kd-tail bucket changes the entries that are compared, which --kd-loss kl alone knows of")


def refuse_few_entries(loss: str, takes_top_k: bool, folder: object, top_k: int, vocabulary_size: int) -> None:
    """Raises UserError where `--kd-loss` needs all of a teacher's logits and the store in `folder` has fewer."""
    if top_k < vocabulary_size and not takes_top_k:
        raise UserError(
            f"--kd-loss {loss} needs all logits of the teacher, {folder} has the {top_k} largest; store "
            f"anew with --top-k {vocabulary_size}, or let the expert run along (--teacher, --teachers)"
        )


def refuse_empty(options: Any, *names: str) -> None:
    """Raises UserError for a teacher that is an empty text, as an unset variable of a script is: it taught nothing."""
    for name in names:
        if (value := getattr(options, name, None)) is not None and not value.strip():
            raise UserError(f"--{name.replace('_', '-')} is empty; is a variable unset? Give a teacher or drop it")


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

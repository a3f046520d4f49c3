"""A stored teacher: what an expert said once takes the expert's place in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..files import hash_split, sha256_of_file
from ..losses.soft_labels import SoftLabels, Tail, TopKLogits
from ..multilingual.language_tokens import Batch, LanguageTokens, Layout, realign
from .store import Store
from .vocabularies import Vocabulary, hash_vocabulary


class StoredTeacher:
    """What an expert said about the training data of one language pair, in place of the expert.

    Args:
        folder: made by scripts/nmt/store_teacher_outputs.py.
        vocabulary: the student's, for the pair to teach.
        temperature: of the distillation loss.
        tail: one of `word_level.TAILS`.

    Attributes:
        store: the folder, opened.
        label_smoothing: that the expert was trained with, as far as its checkpoint said.

    Raises:
        UserError: the store is damaged, or of another pair, vocabulary or expert, or lacks the temperature.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary, temperature: float, tail: Tail) -> None:
        self.store = store = Store(folder)
        self._vocabulary, self._tail = vocabulary, tail
        self.label_smoothing = store.label_smoothing
        what, pair = f"stored teacher outputs {folder}", f"{vocabulary.source_lang}-{vocabulary.target_lang}"
        if store.lang_pair != pair:
            raise UserError(f"{what} are of {store.lang_pair}, not {pair}: name those of {pair}")
        if store.vocabulary_sha256 != hash_vocabulary(vocabulary.source_path, vocabulary.target_path):
            raise UserError(
                f"{what} were made with another vocabulary than {vocabulary.source_path} and "
                f"{vocabulary.target_path}: store those of an expert with the student's dictionaries"
            )
        if temperature not in store.temperatures:
            raise UserError(
                f"--kd-temperature {temperature:g}: {what} hold temperatures "
                f"{', '.join(f'{one:g}' for one in store.temperatures)}; choose one of them, or store again with "
                "--temperatures"
            )
        self._temperature = store.temperatures.index(temperature)
        for path, digest in store.experts:
            # the expert need not be kept, but where it is, outputs of an earlier state of it are a mistake
            if path.is_file() and sha256_of_file(path) != digest:
                raise UserError(
                    f"{what} were made by another expert than {path} is now (SHA-256 {digest[:12]} then): remove the "
                    "folder and store again, or move that checkpoint elsewhere"
                )
        if damage := store.damage():
            raise UserError(damage)

    def check_data(self, folder: Path, split: str, sentences: int) -> None:
        """Raises UserError unless the outputs are about exactly these training data.

        Args:
            folder: written by fairseq-preprocess.
            split: such as "train".
            sentences: number of them that fairseq found, with those of further files (`train1`) that it adds.
        """
        store = self.store
        data = hash_split(folder, split, self._vocabulary.source_lang, self._vocabulary.target_lang)
        if data != store.sha256 or sentences != store.sentences:
            raise UserError(
                f"stored teacher outputs {store.folder} are about other data ({store.split}, {store.sentences:,} "
                f"sentence pairs) than {folder} ({split}, {sentences:,}): store for these"
            )

    def soft_labels(
        self, batch: Batch, sentences: Tensor, indices: np.ndarray, layout: Layout, student_tokens: LanguageTokens
    ) -> SoftLabels:
        """What the teacher said about every word of its sentences; all on the CPU, for a worker of the data loader.

        Sentences that were too long for it have none, and so are trained on labels alone.

        Args:
            batch: all B sentences as the student sees them.
            sentences: ascending rows of those that this teacher teaches.
            indices: positions of these sentences in the training data.
            student_tokens: language tokens that the student's sentences of this pair have.

        Raises:
            UserError: a sentence has another number of words than was stored.
        """
        _, words, shift = realign(batch.pick(sentences), layout, student_tokens, LanguageTokens())
        lengths, records = self.store.fetch(indices)
        counts = torch.from_numpy(lengths)
        if ((counts != words.sum(dim=1)) & (counts > 0)).any():
            raise UserError(
                f"stored teacher outputs {self.store.folder} do not fit the batch: the training data have changed"
            )
        sentences, words = sentences[counts > 0], words[counts > 0]
        rows, columns = words.nonzero(as_tuple=True)
        logits = TopKLogits(
            indices=torch.from_numpy(records["indices"].astype(np.int64)),
            logits=torch.from_numpy(np.ascontiguousarray(records["logits"])),
            rest=torch.from_numpy(records["rest"][:, self._temperature].copy()),
            vocabulary_size=self.store.vocabulary_size,
            tail=self._tail,
        )
        return SoftLabels(sentences[rows], columns + shift, logits)

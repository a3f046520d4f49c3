"""A teacher that is not there: its stored outputs take its place in the batch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..losses.soft_labels import SoftLabels, TopKLogits
from ..multilingual.language_tokens import Batch, LanguageTokens, Layout, realign
from .expert import Vocabulary
from .store import StoredOutputs, hash_data, sha256_of_file
from .vocabularies import load_dictionary

TAILS = ("uniform", "drop")
TEACHER_OUTPUTS_HELP = (
    "written by scripts/nmt/store_teacher_outputs.py from an expert's predictions of the training data: the student "
    "learns from them as from --teacher{s}, but without the expert in memory. Use with --criterion "
    "label_smoothed_kd_cross_entropy"
)
KD_TAIL_HELP = (
    "what becomes of the probability that stored outputs give to entries beyond the k stored: uniform (spread evenly "
    "over them, close to the teacher also where it was trained with label smoothing, or is softened by "
    "--kd-temperature) or drop (the stored ones are scaled to a sum of 1, as Tan et al. 2019 do)"
)


def hash_vocabulary(vocabulary: Vocabulary) -> dict[str, str]:
    """SHA-256 of the entries of both dictionaries in their order; their counts do not matter."""
    paths = {"source": vocabulary.source_path, "target": vocabulary.target_path}
    return {
        side: hashlib.sha256("\n".join(load_dictionary(path).symbols).encode()).hexdigest()
        for side, path in paths.items()
    }


class StoredTeacher:
    """What an expert said about the training data of one language pair, in place of the expert.

    Args:
        folder: made by scripts/nmt/store_teacher_outputs.py.
        vocabulary: the student's, for the pair to teach.
        temperature: of the distillation loss.
        tail: "uniform" or "drop", see `TopKLogits`.

    Raises:
        UserError: the store is damaged, or of another pair, vocabulary or expert, or lacks the temperature.
    """

    def __init__(
        self, folder: Path, vocabulary: Vocabulary, temperature: float, tail: Literal["uniform", "drop"]
    ) -> None:
        self._outputs = StoredOutputs(folder)
        self._vocabulary = vocabulary
        self._tail = tail
        source = self._outputs.source
        pair = f"{vocabulary.source_lang}-{vocabulary.target_lang}"
        if source.lang_pair != pair:
            raise UserError(
                f"stored teacher outputs {folder} are of {source.lang_pair}, not {pair}: name those of {pair}"
            )
        if source.vocabulary != hash_vocabulary(vocabulary):
            raise UserError(
                f"stored teacher outputs {folder} were made with another vocabulary than {vocabulary.source_path} and "
                f"{vocabulary.target_path}: store those of an expert with the student's dictionaries"
            )
        if temperature not in source.temperatures:
            stored = ", ".join(f"{one:g}" for one in source.temperatures)
            raise UserError(
                f"--kd-temperature {temperature:g}: stored teacher outputs {folder} hold temperatures {stored}; choose "
                "one of them, or store again with --temperatures"
            )
        for path, stored in zip(source.teacher_paths, source.teacher, strict=True):
            # the expert need not be kept, but where it is, outputs of an earlier state of it are a mistake
            if Path(path).is_file() and sha256_of_file(Path(path)) != stored:
                raise UserError(
                    f"stored teacher outputs {folder} were made by another expert than {path} is now (SHA-256 "
                    f"{stored[:12]} then): remove the folder and store again, or move that checkpoint elsewhere"
                )
        self._temperature = source.temperatures.index(temperature)

    def check_data(self, folder: Path, split: str, sentences: int) -> None:
        """Raises UserError unless the outputs are about exactly these training data.

        Args:
            folder: written by fairseq-preprocess.
            split: such as "train".
            sentences: number of them that fairseq found, with those of further files (`train1`) that it adds.
        """
        source = self._outputs.source
        data = hash_data(folder, split, self._vocabulary.source_lang, self._vocabulary.target_lang)
        if data != source.data or sentences != self._outputs.sentences:
            raise UserError(
                f"stored teacher outputs {self._outputs.folder} are about other data ({source.split}, "
                f"{self._outputs.sentences:,} sentence pairs) than {folder} ({split}, {sentences:,}): store for these"
            )

    def soft_labels(
        self, batch: Batch, sentences: Tensor, indices: np.ndarray, layout: Layout, student_tokens: LanguageTokens
    ) -> SoftLabels:
        """What the teacher said about every word of its sentences.

        Sentences that were too long for it have none, and so are trained on labels alone.

        Args:
            batch: all B sentences as the student sees them.
            sentences: ascending rows of those that this teacher teaches.
            indices: positions of these sentences in the training data.
            student_tokens: language tokens that the student's sentences of this pair wear.
        """
        _, spoken, shift = realign(batch.pick(sentences), layout, student_tokens, LanguageTokens())
        counts, records = self._outputs.fetch(indices)
        expected = spoken.sum(dim=1).cpu().numpy()
        if ((counts != expected) & (counts > 0)).any():
            raise UserError(
                f"stored teacher outputs {self._outputs.folder} do not fit the batch: the training data have changed"
            )
        if not counts.all():
            taught = torch.from_numpy(counts).nonzero().squeeze(1).to(sentences.device)
            sentences, spoken = sentences[taught], spoken[taught]
        rows, columns = spoken.nonzero(as_tuple=True)
        device = rows.device
        stored = TopKLogits(
            indices=torch.from_numpy(records["indices"].astype(np.int64)).to(device),
            logits=torch.from_numpy(np.ascontiguousarray(records["logits"])).to(device),
            log_sum_exp=torch.from_numpy(records["log_sum_exp"][:, self._temperature].copy()).to(device),
            vocabulary_size=self._outputs.source.vocabulary_size,
            tail=self._tail,
        )
        return SoftLabels(sentences[rows], columns + shift, stored)

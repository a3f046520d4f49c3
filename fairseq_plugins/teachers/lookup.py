"""What the loader's workers look up for a batch, so that the training process never waits for its GPU to tell indices.

A worker has the batch on the CPU: it finds each sentence's pair, turns the sentences into what that pair's teacher
reads, and fetches the rows of stored teachers. All that is left to the training process is to run the teachers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..losses.soft_labels import SoftLabels, with_tensors
from ..multilingual.language_tokens import LanguageTokens, Layout, batch_of

if TYPE_CHECKING:  # it works with whatever teachers it is given
    from .expert import Question, Teacher
    from .stored import StoredTeacher


@dataclass(frozen=True)
class Share:
    """The sentences of one language pair in a batch.

    Attributes:
        pair: such as "en-de".
        tokens: the language tokens that these sentences have.
        rows: ascending rows of the batch.
        indices: (len(rows),) positions of these sentences in the pair's data set.
    """

    pair: str
    tokens: LanguageTokens
    rows: list[int]
    indices: np.ndarray


@dataclass(frozen=True)
class Teaching:
    """What is to be asked, and what is known already, about a batch without the columns that the loss leaves out.

    fairseq passes it on as it is: neither its precision nor its device follows the batch by itself.

    Attributes:
        questions: for running teachers, each with its pair.
        stored: soft labels of stored teachers.
        untaught: (U,) tokens (row * length + column) that are no padding and that no teacher is asked about.
        refusal: why there is nothing of all this, a line for the user.
    """

    questions: list[tuple[str, Question]]
    stored: list[SoftLabels]
    untaught: Tensor
    refusal: str | None = None

    def moved(self, move: Callable[[Tensor], Tensor]) -> Teaching:
        """The same with every tensor moved, for instance to another device."""
        questions = [(pair, with_tensors(question, move)) for pair, question in self.questions]
        stored = [labels.moved(move) for labels in self.stored]
        return replace(self, questions=questions, stored=stored, untaught=move(self.untaught))

    def pin_memory(self) -> Teaching:
        """Called by PyTorch's loader, so that moving to a GPU need not wait."""
        return self.moved(lambda tensor: tensor.pin_memory())


class Lookup:
    """A collate function whose batches also have `teaching`, see `Teaching`.

    Args:
        collate: the stock function, from a list of sentences to a batch.
        shares: from a batch to the pairs of its sentences.
        teachers: running ones, by pair.
        stored: stored ones, by pair.
        layout: of the student's batches.
        left_out: first columns of the target that the loss leaves out (`--ignore-prefix-size`).
    """

    def __init__(
        self,
        collate: Callable[[list[Any]], dict[str, Any]],
        shares: Callable[[dict[str, Any]], list[Share]],
        teachers: Mapping[str, Teacher],
        stored: Mapping[str, StoredTeacher],
        layout: Layout,
        left_out: int,
    ) -> None:
        self._collate = collate
        self._shares = shares
        self._teachers = teachers
        self._stored = stored
        self._layout = layout
        self._left_out = left_out

    def __call__(self, sentences: list[Any]) -> dict[str, Any]:
        sample = self._collate(sentences)
        if sample:
            sample["teaching"] = self.look_up(sample)
        return sample

    def look_up(self, sample: dict[str, Any]) -> Teaching:
        """For a batch on the CPU. What it refuses is told in the training process, where the user can read it."""
        questions, stored = [], []
        try:
            batch = batch_of(sample)
            for share in self._shares(sample):
                rows = torch.tensor(share.rows)
                if share.pair in self._stored:
                    teacher = self._stored[share.pair]
                    labels = teacher.soft_labels(batch, rows, share.indices, self._layout, share.tokens)
                    stored.append(labels.after_prefix(self._left_out))
                elif share.pair in self._teachers:
                    question = self._teachers[share.pair].question(batch, rows, self._layout, share.tokens)
                    question = question.after_prefix(self._left_out)
                    if len(question.positions):
                        questions.append((share.pair, question))
        except UserError as problem:
            return Teaching([], [], torch.empty(0, dtype=torch.long), str(problem))
        target = batch.target[:, self._left_out :]
        counted = target.ne(self._layout.pad)
        for known in [question for _, question in questions] + stored:
            counted[known.sentences, known.positions] = False
        return Teaching(questions, stored, counted.flatten().nonzero(as_tuple=True)[0])

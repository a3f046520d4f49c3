"""What teachers say about the words of a batch, in the forms that the losses take.

Three forms for the logits of R tokens: the (R, V_teacher) tensor itself, `ProjectedLogits` (features that a teacher's
output layer makes them of, chunk by chunk), and `TopKLogits` (what a store keeps of them).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")

# What becomes of the probability of entries that a store left out: see `TopKLogits`.
Tail = Literal["uniform", "drop", "bucket"]
TAILS: tuple[Tail, ...] = ("uniform", "drop", "bucket")


def with_tensors(part: Part, change: Callable[[Tensor], Tensor]) -> Part:
    """A dataclass again, with `change` made to every tensor in it and in the dataclasses that it holds."""
    changed: dict[str, Any] = {}
    for field in fields(part):  # type: ignore[arg-type]
        value = getattr(part, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = change(value)
        elif is_dataclass(value):
            changed[field.name] = with_tensors(value, change)
    return replace(part, **changed)  # type: ignore[type-var]


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, float64 left as it is."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True)
class ProjectedLogits:
    """Logits of R tokens that are not worked out yet: features @ weight.T + bias. Without gradient.

    Attributes:
        features: (R, D) what goes into the teacher's output layer.
        weight: (V_teacher, D) of that layer, the entries that the student shares only.
        bias: (V_teacher,) or None.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None = None

    def __getitem__(self, rows: Tensor | slice) -> ProjectedLogits:
        return replace(self, features=self.features[rows])

    @property
    def vocabulary_size(self) -> int:
        return len(self.weight)

    @torch.no_grad()
    def dense(self) -> Tensor:
        """(R, V_teacher)"""
        return torch.nn.functional.linear(self.features, self.weight, self.bias)


@dataclass(frozen=True)
class TopKLogits:
    """The k largest logits of R tokens, as stored. Without gradient.

    The probability of the entries that were not stored is known from `rest`; `tail` says what becomes of it: "uniform"
    spreads it evenly over the V_teacher - k others, "drop" renormalizes over the stored entries (Tan et al. 2019,
    section 3.2), "bucket" takes the others for one entry, whose probability is the sum of theirs in teacher and student
    alike. With k = V_teacher there is no tail, and all three are the teacher itself.

    Attributes:
        indices: (R, k) integers, entries of the vocabulary, none twice in a row.
        logits: (R, k) their logits, in any floating-point precision; used as float32.
        rest: (R,) logsumexp(z / T) over the logits z of the others, at the temperature T of the loss; -inf for none.
        vocabulary_size: V_teacher, number of entries of the student's vocabulary that the teacher knows.
        tail: one of `TAILS`.
    """

    indices: Tensor
    logits: Tensor
    rest: Tensor
    vocabulary_size: int
    tail: Tail = "drop"

    def __getitem__(self, rows: Tensor | slice) -> TopKLogits:
        return replace(self, indices=self.indices[rows], logits=self.logits[rows], rest=self.rest[rows])

    def probabilities(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Softened probabilities: (R, k) of the stored entries, (R,) of each entry that was not stored."""
        p, rest = self.stored_and_rest(temperature)
        if self.tail == "drop":
            return p / p.sum(dim=-1, keepdim=True), torch.zeros_like(rest)
        return p, rest / max(self.vocabulary_size - p.size(1), 1)

    def stored_and_rest(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Softened probabilities: (R, k) of the stored entries, (R,) of all others together."""
        softened = at_least_float32(self.logits) / temperature
        rest = self.rest.to(softened.dtype).unsqueeze(1)
        p = torch.softmax(torch.cat([softened, rest], dim=1), dim=1)
        return p[:, :-1], p[:, -1]

    def lprobs(self, temperature: float) -> Tensor:
        """(R, V_teacher) log of the softened probabilities; the lowest finite number stands for log(0)."""
        p, tail = self.probabilities(temperature)
        dense = tail.unsqueeze(1).repeat(1, self.vocabulary_size).scatter_(1, self.indices.long(), p)
        return dense.log_().clamp_(min=torch.finfo(dense.dtype).min)


@dataclass(frozen=True)
class SoftLabels:
    """What a teacher says about R of the target tokens in a batch of B sentences.

    Attributes:
        sentences: (R,) row of each token in the batch, ascending.
        positions: (R,) column of each token in the student's target, ascending within a sentence.
        logits: for each token those of the teacher, without gradient: (R, V_teacher) logits or log-probabilities, or
            the features that they can be projected from, or the k largest of them.
        strength: share of the distillation weight in force for these tokens, 0 to 1.
    """

    sentences: Tensor
    positions: Tensor
    logits: Tensor | ProjectedLogits | TopKLogits
    strength: float = 1.0

    def moved(self, move: Callable[[Tensor], Tensor]) -> SoftLabels:
        """The same with every tensor moved, for instance to another device."""
        return with_tensors(self, move)

    def after_prefix(self, size: int) -> SoftLabels:
        """The same for targets whose first `size` columns are left out of the loss."""
        if size == 0:
            return self
        kept = (self.positions >= size).nonzero(as_tuple=True)[0]
        return SoftLabels(self.sentences[kept], self.positions[kept] - size, self.logits[kept], self.strength)

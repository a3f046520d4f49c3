"""Word-level knowledge distillation on tensors: no fairseq in here.

Definitions: Tan et al. 2019 (arXiv 1902.10461), section 3.2; temperature as in Hinton et al. 2015. Computed in float32,
whatever precision comes in; float64 stays float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor


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

    The probability of the entries that were not stored is known from `log_sum_exp`; `tail` says what becomes of it:
    "drop" renormalizes over the stored entries (Tan et al. 2019, section 3.2), "uniform" spreads it evenly over the
    V_teacher - k others. With k = V_teacher there is no tail, and both are the teacher itself.

    Attributes:
        indices: (R, k) integers, entries of the vocabulary, none twice in a row.
        logits: (R, k) their logits, in any floating-point precision; used as float32.
        log_sum_exp: (R,) logsumexp(z / T) over all V_teacher logits z of a token, at the temperature T of the loss.
        vocabulary_size: V_teacher, number of entries of the student's vocabulary that the teacher knows.
        tail: "drop" or "uniform".
    """

    indices: Tensor
    logits: Tensor
    log_sum_exp: Tensor
    vocabulary_size: int
    tail: Literal["drop", "uniform"] = "drop"

    def __getitem__(self, rows: Tensor | slice) -> TopKLogits:
        picked = {name: getattr(self, name)[rows] for name in ("indices", "logits", "log_sum_exp")}
        return replace(self, **picked)

    def probabilities(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Softened probabilities: (R, k) of the stored entries, (R,) of each entry that was not stored."""
        softened = _at_least_float32(self.logits) / temperature
        others = self.vocabulary_size - softened.size(1)
        if self.tail == "drop":
            return torch.softmax(softened, dim=-1), softened.new_zeros(len(softened))
        p = softened.sub_(self.log_sum_exp.to(softened.dtype).unsqueeze(1)).exp_()
        # stored logits are rounded: their probabilities may add up to a little more than 1
        return p, (1 - p.sum(dim=-1)).clamp_(min=0) / max(others, 1)

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

    def after_prefix(self, size: int) -> SoftLabels:
        """The same for targets whose first `size` columns are left out of the loss."""
        if size == 0:
            return self
        kept = (self.positions >= size).nonzero(as_tuple=True)[0]
        return SoftLabels(self.sentences[kept], self.positions[kept] - size, self.logits[kept], self.strength)


@dataclass(frozen=True)
class Distillation:
    """Loss per token, and sums to log.

    Attributes:
        loss: (N,) blended loss in nats; zero where the label loss was zero and no teacher spoke.
        kd_loss: () sum over taught tokens of T^2 KL(teacher || student), in nats, no gradient.
        taught: () number of taught tokens.
        agreed: () number of taught tokens whose most probable entry is the same for teacher and student.
    """

    loss: Tensor
    kd_loss: Tensor
    taught: Tensor
    agreed: Tensor


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def kl_divergence(student_lprobs: Tensor, teacher_logits: Tensor | TopKLogits, temperature: float) -> Tensor:
    """KL(p || q) for each row, p = softmax(teacher / T) and q = softmax(student / T).

    The student may know entries at the end of its vocabulary that the teacher lacks (language tokens). The teacher
    gives them probability zero; they stay in the student's normalization, so it learns not to predict them here. This
    is the divergence of two distributions over the student's vocabulary, and the usual one where the sizes are equal.

    Args:
        student_lprobs: (R, V_student) log-probabilities at T = 1.
        teacher_logits: (R, V_teacher) logits or log-probabilities at T = 1, V_teacher <= V_student, or what is stored
            of them.
        temperature: T > 0.

    Returns:
        (R,) in nats; gradients flow to the student only.
    """
    log_q = _at_least_float32(student_lprobs)
    if temperature != 1:
        # softmax(z / T) does not change with a constant added to z, so log-probabilities serve as logits
        log_q = torch.log_softmax(log_q / temperature, dim=-1)
    with torch.no_grad():
        if isinstance(teacher_logits, TopKLogits):
            log_p = teacher_logits.lprobs(temperature)
        else:
            log_p = torch.log_softmax(_at_least_float32(teacher_logits) / temperature, dim=-1)
        p = log_p.exp()
    return torch.sub(log_p, log_q[:, : p.size(1)]).mul_(p).sum(dim=-1)


def most_probable(teacher_logits: Tensor | TopKLogits) -> Tensor:
    """(R,) the teacher's best entry for each token."""
    if isinstance(teacher_logits, TopKLogits):
        best = teacher_logits.logits.argmax(dim=-1, keepdim=True)
        return teacher_logits.indices.gather(1, best).squeeze(1)
    return teacher_logits.argmax(dim=-1)


def distil(
    student_lprobs: Tensor,
    label_loss: Tensor,
    soft_labels: list[SoftLabels],
    *,
    sentences: int,
    kd_weight: float,
    temperature: float,
) -> Distillation:
    """Blends w T^2 KL(teacher || student) + (1 - w) label loss, token by token; w = kd_weight * strength.

    Tokens without a soft label keep their label loss whole.

    Args:
        student_lprobs: (N, V_student) log-probabilities at T = 1 of all target tokens, N = sentences * length.
        label_loss: (N,) loss against the hard labels, zero at padding.
        soft_labels: one entry per teacher that has something to say; no token twice.
        sentences: B, number of sentences in the batch.
        kd_weight: lambda, 0 to 1.
        temperature: T > 0.
    """
    length = len(label_loss) // sentences
    label_share = torch.ones_like(label_loss)
    taught_losses, taught_rows = [], []
    kd_loss, agreed = label_loss.new_zeros(()), label_loss.new_zeros(())
    for labels in soft_labels:
        rows = labels.sentences * length + labels.positions
        # picking every row would only copy the largest tensor there is
        lprobs = student_lprobs if len(rows) == len(student_lprobs) else student_lprobs.index_select(0, rows)
        logits = labels.logits.dense() if isinstance(labels.logits, ProjectedLogits) else labels.logits
        loss = temperature**2 * kl_divergence(lprobs, logits, temperature)
        weight = kd_weight * labels.strength
        label_share[rows] -= weight
        taught_losses.append(weight * loss)
        taught_rows.append(rows)
        kd_loss += loss.detach().sum()
        agreed += lprobs.detach().argmax(dim=-1).eq(most_probable(logits)).sum()
    loss = label_share * label_loss
    taught = torch.cat(taught_rows) if taught_rows else None
    if taught is not None:
        loss = loss.index_add(0, taught, torch.cat(taught_losses).to(loss.dtype))
    n_taught = label_loss.new_tensor(0 if taught is None else len(taught))
    return Distillation(loss=loss, kd_loss=kd_loss, taught=n_taught, agreed=agreed)

"""Word-level knowledge distillation on tensors: no fairseq in here.

Definitions: Tan et al. 2019 (arXiv 1902.10461), section 3.2; temperature as in Hinton et al. 2015. Computed in float32,
whatever precision comes in; float64 stays float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .soft_labels import ProjectedLogits, SoftLabels, TopKLogits, at_least_float32


@dataclass(frozen=True)
class Distillation:
    """Loss per token, and sums to log.

    Attributes:
        loss: (N,) blended loss in nats; zero where the label loss was zero and there is no soft label.
        kd_loss: () sum over taught tokens of T^2 KL(teacher || student), or of another loss, in nats, no gradient.
        taught: () number of taught tokens.
        agreed: () number of taught tokens whose most probable entry is the same for teacher and student.
    """

    loss: Tensor
    kd_loss: Tensor
    taught: Tensor
    agreed: Tensor


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
    log_q = at_least_float32(student_lprobs)
    if temperature != 1:
        # softmax(z / T) does not change with a constant added to z, so log-probabilities serve as logits
        log_q = torch.log_softmax(log_q / temperature, dim=-1)
    if isinstance(teacher_logits, TopKLogits) and teacher_logits.tail == "bucket":
        return _bucket_divergence(log_q, teacher_logits, temperature)
    with torch.no_grad():
        if isinstance(teacher_logits, TopKLogits):
            log_p = teacher_logits.lprobs(temperature)
        else:
            log_p = torch.log_softmax(at_least_float32(teacher_logits) / temperature, dim=-1)
        p = log_p.exp()
    return torch.sub(log_p, log_q[:, : p.size(1)]).mul_(p).sum(dim=-1)


def _bucket_divergence(log_q: Tensor, stored: TopKLogits, temperature: float) -> Tensor:
    """KL(p || q) (R,) where the entries that were not stored count as one; `log_q` (R, V_student) at T."""
    p, rest = stored.stored_and_rest(temperature)
    indices = stored.indices.long()
    others = log_q[:, : stored.vocabulary_size].scatter(1, indices, torch.finfo(log_q.dtype).min)
    log_q = torch.cat([log_q.gather(1, indices), others.logsumexp(dim=1, keepdim=True)], dim=1)
    p = torch.cat([p, rest.unsqueeze(1)], dim=1).to(log_q.dtype)
    return (torch.xlogy(p, p) - p * log_q).sum(dim=-1)


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
    kd_loss_of: Callable[[Tensor, Tensor | ProjectedLogits | TopKLogits], Tensor] | None = None,
) -> Distillation:
    """Blends w T^2 KL(teacher || student) + (1 - w) label loss, token by token; w = kd_weight * strength.

    Tokens without a soft label keep their label loss whole.

    Args:
        student_lprobs: (N, V_student) log-probabilities at T = 1 of all target tokens, N = sentences * length.
        label_loss: (N,) loss against the hard labels, zero at padding.
        soft_labels: one entry per teacher that has any for this batch; no token twice.
        sentences: B, number of sentences in the batch.
        kd_weight: lambda, 0 to 1.
        temperature: T > 0.
        kd_loss_of: another loss in place of T^2 KL: from the rows (R,) among the N that a teacher teaches, R > 0, and
            its logits of them, to their mean loss ().
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
        if kd_loss_of is None:
            loss = temperature**2 * kl_divergence(lprobs, logits, temperature)
        else:  # the mean stands for each of them
            loss = kd_loss_of(rows, logits).expand(len(rows)) if len(rows) else lprobs.new_zeros(0)
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

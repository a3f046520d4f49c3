"""Distillation losses of words by name: what a student is asked to match of its teacher's answers.

A loss is a function

    loss(student_logits, teacher_logits, targets, temperature, **hyper_parameters) -> scalar

of ``student_logits`` and ``teacher_logits`` (R, V) for R words of a batch that one teacher teaches, ``targets`` (R,)
the words' entries in the vocabulary, ``temperature`` T > 0, and whatever hyper-parameters it has, each with a default.
It returns the mean over the words, to be weighted by ``--kd-weight``; no gradient may flow to the teacher.
``--kd-loss`` takes the name of one below or ``package.module:function``, and hyper-parameters after a colon:
``dkd:alpha=1,beta=8``. It is the contract of the images' ``--kd-loss``, with words for images and the vocabulary for
classes: one function serves both.

What a loss is given: logits where student or teacher ends in a plain output layer, log-probabilities elsewhere (an
ensemble, an adaptive softmax), and from a store of all entries logits less their largest. A store of the k largest
gives back logits whose softmax at T is right and whose values are not: a loss that needs nothing but that softmax says
so, by an attribute ``takes_top_k = True``. Entries that only the student knows (language tokens, at the end) have no
probability for such a loss; the others see the logits without them.

Shipped losses are computed in float32, whatever precision comes in; float64 stays float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .soft_labels import ProjectedLogits, TopKLogits, at_least_float32
from .word_level import kl_divergence

KdLoss = Callable[[Tensor, Tensor, Tensor, float], Tensor]

NOTHING = -1e30  # logit of what has no probability; finite, so that 0 times it is 0


def kl(student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """``T^2 * KL(softmax(teacher / T) || softmax(student / T))`` (Hinton et al. 2015), see `word_level`."""
    student_lprobs = F.log_softmax(at_least_float32(student_logits), dim=-1)
    return temperature**2 * kl_divergence(student_lprobs, teacher_logits.detach(), temperature).mean()


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    temperature: float,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Decoupled distillation (Zhao et al. 2022, arXiv 2203.08679, equation 7), times T^2.

    ``alpha * KL`` between what both give the reference's word and all others together, plus ``beta * KL`` between the
    distributions over the other words alone. With beta = 1 - p_teacher(word) of each word it would be ``kl``.
    """
    place = targets.unsqueeze(1)

    def parts(logits: Tensor) -> tuple[Tensor, Tensor]:
        lprobs = F.log_softmax(at_least_float32(logits) / temperature, dim=1)
        own = lprobs.gather(1, place)
        others = lprobs.scatter(1, place, NOTHING)
        together = others.logsumexp(dim=1, keepdim=True)
        # the word itself is out of the second distribution: its probability there is zero for both
        return torch.cat([own, together], dim=1), (others - together).scatter(1, place, NOTHING)

    student, teacher = parts(student_logits), parts(teacher_logits.detach())
    word_part, other_part = (
        F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        for ours, theirs in zip(student, teacher, strict=True)
    )
    return temperature**2 * (alpha * word_part + beta * other_part)


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    temperature: float,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """Relations in place of values (Huang et al. 2022, arXiv 2205.10536, equations 8 to 10), times T^2.

    ``beta *`` the mean Pearson distance (one minus the correlation) of both softmaxes over the vocabulary for each
    word, plus ``gamma *`` that over the words of the batch for each entry of the vocabulary.
    """
    student = torch.softmax(at_least_float32(student_logits) / temperature, dim=1)
    teacher = torch.softmax(at_least_float32(teacher_logits.detach()) / temperature, dim=1)
    between_entries = (1 - _correlation(student, teacher, dim=1)).mean()
    between_words = (1 - _correlation(student, teacher, dim=0)).mean()
    return temperature**2 * (beta * between_entries + gamma * between_words)


def standardized(student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """``kl`` of logits standardized word by word (Sun et al. 2024, arXiv 2403.01427, algorithm 1).

    From each word's logits their mean is taken, and what is left divided by its standard deviation (over V, not V - 1),
    for student and teacher alike, so that the student need not learn the size of its teacher's logits.
    """
    return kl(_z_scores(student_logits), _z_scores(teacher_logits), targets, temperature)


def ttm(student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """``KL(softmax(teacher / T) || softmax(student))``: only the teacher is tempered.

    Transformed teacher matching (Zheng and Yang 2024, arXiv 2402.11148, section 3), without the factor T^2, as there:
    it would make up for a tempered student.
    """
    student = F.log_softmax(at_least_float32(student_logits), dim=1)
    teacher = F.log_softmax(at_least_float32(teacher_logits.detach()) / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


LOSSES: dict[str, Callable[..., Tensor]] = {loss.__name__: loss for loss in (kl, dkd, dist, standardized, ttm)}
for _loss in (kl, dkd, dist, ttm):
    _loss.takes_top_k = True  # type: ignore[attr-defined]


def as_logits(teacher: Tensor | ProjectedLogits | TopKLogits, temperature: float) -> Tensor:
    """(R, V_teacher) dense logits whose softmax at T is the teacher's; with all entries stored, its logits but for a
    constant in each row."""
    if isinstance(teacher, ProjectedLogits):
        return teacher.dense()
    if not isinstance(teacher, TopKLogits):
        return teacher
    if teacher.indices.size(1) < teacher.vocabulary_size:
        return (temperature * teacher.lprobs(temperature)).clamp_(min=NOTHING)
    logits = at_least_float32(teacher.logits)
    return torch.empty_like(logits).scatter_(1, teacher.indices.long(), logits)


def same_entries(student_logits: Tensor, teacher_logits: Tensor, takes_top_k: bool) -> tuple[Tensor, Tensor]:
    """Logits of student (R, V_student) and teacher (R, V_teacher), V_teacher <= V_student, over the same entries.

    A loss of softmaxes (`takes_top_k`) gets V_student entries, to the last of which the teacher gives no probability;
    another one the V_teacher entries that both know.
    """
    missing = student_logits.size(1) - teacher_logits.size(1)
    if not missing:
        return student_logits, teacher_logits
    if not takes_top_k:
        return student_logits[:, : teacher_logits.size(1)], teacher_logits
    return student_logits, F.pad(at_least_float32(teacher_logits), (0, missing), value=NOTHING)


def _correlation(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """Pearson correlation along `dim`; 0 where one of them is constant.

    Most entries of a vocabulary have probabilities near zero in all words, whose spread must not be taken for none.
    """
    first, second = (values - values.mean(dim=dim, keepdim=True) for values in (first, second))
    return F.cosine_similarity(first, second, dim=dim, eps=1e-12)


def _z_scores(logits: Tensor) -> Tensor:
    values = at_least_float32(logits)
    spread = values.std(dim=1, keepdim=True, correction=0)
    return (values - values.mean(dim=1, keepdim=True)) / (spread + 1e-7)

"""Distillation losses by name: what a student is asked to match of its teacher's answers.

A loss is a function

    loss(student_logits, teacher_logits, targets, temperature, **hyper_parameters) -> scalar

of ``student_logits`` and ``teacher_logits`` (B, K) in any floating type, ``targets`` (B,), the class numbers,
``temperature`` T > 0, and whatever hyper-parameters it has, each with a default. It returns the mean over the batch in
float32 or float64, to be weighted by ``--kd-weight``; no gradient may flow to the teacher. ``--kd-loss`` takes the name
of one below or ``package.module:function``, and hyper-parameters after a colon: ``dkd:alpha=1,beta=8``.

Where there are images without labels (``--unlabelled``) their class number is -1. A loss that cannot do without says
so, by an attribute ``needs_labels = True``. Of mixed images (``--mixup-alpha``, ``--cutmix-alpha``) ``targets`` are
(B, K), the shares of the classes; a loss that cannot work with them has ``needs_one_class = True``.

Of several teachers, whose probabilities at T are averaged, ``teacher_logits`` is T times the logarithm of that mean:
its softmax at T is the mean.

A store of a teacher's k largest logits (``--soft-labels``, ``--top-k``) gives back logits whose softmax at T is right
and whose values are not: a loss that needs nothing but that softmax says so, by an attribute ``takes_top_k = True``.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_reference.errors import UserError
from vision_reference.losses.labels import loss_type
from vision_reference.losses.wide import widest_type
from vision_reference.soft_labels.codec import NOTHING

KdLoss = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def kd_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """``T^2 * KL(softmax(teacher / T) || softmax(student / T))``, mean over the batch.

    The arithmetic is done in float64 (``wide.widest_type``) whatever the inputs' type: the divergence shrinks as
    1 / T^2 while its terms do not, so that at T = 64 float32 keeps two or three digits of it. On (batch, classes) this
    costs nothing beside a forward pass.

    Args:
        student_logits: (B, K), any floating type.
        teacher_logits: (B, K), any floating type; no gradient flows to it. Or (B, K + 1): the last one stands for all
            classes together whose own logit is ``codec.NOTHING``, and the student's probabilities of these are summed,
            too (``--kd-tail bucket``).
        temperature: T > 0.

    Returns:
        A scalar, float32 (float64 for float64 input); its gradient has the type of ``student_logits``.

    Raises:
        ValueError: the shapes differ or T is not positive.
    """
    asked = loss_type(student_logits)
    if teacher_logits.shape[1] == student_logits.shape[1] + 1:
        student_logits = _with_bucket(student_logits, teacher_logits, temperature)
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(f"student {tuple(student_logits.shape)} and teacher {tuple(teacher_logits.shape)} differ")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    student_lprobs = F.log_softmax(_wide(student_logits) / temperature, dim=1)
    teacher_lprobs = F.log_softmax(_wide(teacher_logits.detach()) / temperature, dim=1)
    divergence = F.kl_div(student_lprobs, teacher_lprobs, reduction="batchmean", log_target=True)
    return (temperature**2 * divergence).to(asked)


def _with_bucket(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """(B, K + 1) as ``teacher_logits``: classes without a logit of their own together are the last one."""
    together = teacher_logits[:, :-1] <= NOTHING / 2
    student_logits = _wide(student_logits)
    others = (student_logits / temperature).masked_fill(~together, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([student_logits.masked_fill(together, NOTHING), temperature * others], dim=1)


def kl(student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """``T^2 * KL(softmax(teacher / T) || softmax(student / T))`` (Hinton et al. 2015); see ``kd_divergence``."""
    return kd_divergence(student_logits, teacher_logits, temperature)


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    temperature: float,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Decoupled distillation (Zhao et al. 2022, arXiv 2203.08679, equation 7), times T^2.

    ``alpha * KL`` between what both give the labelled class and all others together, plus ``beta * KL`` between the
    distributions over the other classes alone. With beta = 1 - p_teacher(label) of each image it would be ``kl``.
    """
    labelled = F.one_hot(_class_numbers(targets, "dkd"), student_logits.shape[1]).bool()

    def parts(logits: Tensor) -> tuple[Tensor, Tensor]:
        lprobs = torch.log_softmax(_wide(logits) / temperature, dim=1)
        others = lprobs.masked_fill(labelled, -torch.inf).logsumexp(dim=1, keepdim=True)
        among_others = lprobs[~labelled].view(len(lprobs), -1) - others
        return torch.cat([lprobs[labelled].unsqueeze(1), others], dim=1), among_others

    student, teacher = parts(student_logits), parts(teacher_logits.detach())
    target_part, other_part = (
        F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        for ours, theirs in zip(student, teacher, strict=True)
    )
    return (temperature**2 * (alpha * target_part + beta * other_part)).to(loss_type(student_logits))


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    temperature: float,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """Relations in place of values (Huang et al. 2022, arXiv 2205.10536, equations 8 to 10), times T^2.

    ``beta *`` the mean Pearson distance (one minus the correlation) of both softmaxes over the classes of each image,
    plus ``gamma *`` that over the images of each class in the batch.
    """
    student = torch.softmax(_wide(student_logits) / temperature, dim=1)
    teacher = torch.softmax(_wide(teacher_logits.detach()) / temperature, dim=1)
    between_classes = (1 - _correlation(student, teacher)).mean()
    within_classes = (1 - _correlation(student.T, teacher.T)).mean()
    loss = temperature**2 * (beta * between_classes + gamma * within_classes)
    return loss.to(loss_type(student_logits))


def standardized(student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """``kl`` of logits standardized image by image (Sun et al. 2024, arXiv 2403.01427, algorithm 1).

    From each image's logits their mean is taken, and what is left divided by its standard deviation (over K, not
    K - 1), for student and teacher alike, so that the student need not learn the size of its teacher's logits.
    """
    return kd_divergence(_z_scores(student_logits), _z_scores(teacher_logits), temperature).to(
        loss_type(student_logits)
    )


def ttm(student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """``KL(softmax(teacher / T) || softmax(student))``: only the teacher is tempered.

    Transformed teacher matching (Zheng and Yang 2024, arXiv 2402.11148, section 3), without the factor T^2, as there:
    it would make up for a tempered student.
    """
    student = torch.log_softmax(_wide(student_logits), dim=1)
    teacher = torch.log_softmax(_wide(teacher_logits.detach()) / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True).to(loss_type(student_logits))


LOSSES: dict[str, Callable[..., Tensor]] = {loss.__name__: loss for loss in (kl, dkd, dist, standardized, ttm)}
for _loss in (kl, dkd, dist, ttm):
    _loss.takes_top_k = True  # type: ignore[attr-defined]
dkd.needs_labels = dkd.needs_one_class = True  # type: ignore[attr-defined]


def _class_numbers(targets: Tensor, name: str) -> Tensor:
    if targets.ndim != 1:
        raise UserError(f"--kd-loss {name} needs one class an image; drop --mixup-alpha and --cutmix-alpha")
    return targets


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson correlation of each row of two (R, C); 0 where a row is constant."""
    first, second = (rows - rows.mean(dim=1, keepdim=True) for rows in (first, second))
    return F.cosine_similarity(first, second, dim=1)


def _z_scores(logits: Tensor) -> Tensor:
    values = _wide(logits)
    spread = values.std(dim=1, keepdim=True, correction=0)
    return (values - values.mean(dim=1, keepdim=True)) / (spread + 1e-7)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(widest_type(logits.device))

"""Label-smoothed cross entropy and word-level distillation straight from decoder features.

The same loss as `word_level.distil`, whose definition is the one to read, without ever holding the logits of all
tokens. Tokens are taken in chunks: one projection of a chunk serves label loss, distillation loss and gradient, which
is written over the logits and multiplied out at once. What stays is the gradient itself. It is worked out in the
forward pass, so `backward` only scales it.

Three things keep the passes over a chunk few:
- the smoothed part of the label loss needs no more of a token's logits than their sum, which is features . sum of the
  weight's rows, and its gradient is the same for every entry of the vocabulary: neither touches the chunk. The same
  holds for the evenly spread tail of stored top-k outputs;
- 1 / T is a factor of the matrix product;
- on a CPU the passes run over a few rows at a time, which stay in the cache.

Nothing in here waits for a GPU: sizes of groups and chunks are known from the shapes of the indices that come in, but
for `untaught`, which is looked for on the GPU where the caller does not give it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .soft_labels import ProjectedLogits, SoftLabels, TopKLogits

# Tokens of a chunk share their matrix products: more of them read and write the weight's gradient less often, and take
# more memory. On a GPU a chunk is so many entries (tokens times vocabulary), to keep it busy.
CPU_CHUNK_TOKENS = 512
CUDA_CHUNK_ENTRIES = 2**25
# On a CPU the passes between the products run over about so many entries at a time.
CPU_BLOCK_ENTRIES = 2**18


@dataclass(frozen=True)
class FusedDistillation:
    """The loss of a batch, and sums to log. Only `loss` has a gradient.

    Attributes:
        loss: () sum over tokens of w T^2 KL(teacher || student) + (1 - w) label-smoothed loss, in nats.
        nll_loss: () sum over tokens of the negative log-likelihood of the label, in nats.
        kd_loss: () sum over taught tokens of T^2 KL(teacher || student), in nats.
        taught: () number of taught tokens.
        agreed: () number of taught tokens whose most probable entry is the same for teacher and student.
        n_correct: () number of tokens whose label is the student's most probable entry. Here and in `agreed` it is
            enough that the student's entry shares the first place.
    """

    loss: Tensor
    nll_loss: Tensor
    kd_loss: Tensor
    taught: Tensor
    agreed: Tensor
    n_correct: Tensor


def fused_distil(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    soft_labels: list[SoftLabels],
    *,
    sentences: int,
    ignore_index: int,
    label_smoothing: float,
    kd_weight: float,
    temperature: float,
    untaught: Tensor | None = None,
) -> FusedDistillation:
    """Blends w T^2 KL(teacher || student) + (1 - w) label-smoothed loss over a batch; w = kd_weight * strength.

    The label-smoothed loss is stock fairseq's: (1 - eps - eps_i) nll - eps_i sum(lprobs), eps_i = eps / (V - 1). Tokens
    without a soft label keep it whole. Softmax, losses and sums are float32 in any precision, float64 in float64. Under
    autocast factors of matrix products on a GPU have autocast's precision.

    Args:
        features: (N, D) what goes into the student's output layer, N = sentences * length.
        weight: (V, D) of the output layer, tied to an embedding or not.
        bias: (V,) of the output layer, or None.
        target: (N,) labels, 0 to V - 1; `ignore_index` at padding, which has no label loss.
        soft_labels: one entry per teacher that has any for this batch; no token twice.
        sentences: B, number of sentences in the batch.
        ignore_index: an entry of the vocabulary.
        label_smoothing: eps, 0 to 1.
        kd_weight: lambda, 0 to 1.
        temperature: T > 0.
        untaught: (U,) the tokens, 0 to N - 1, that are no padding and have no soft label, where the caller knows them;
            to look for them takes a wait for the GPU.

    Raises:
        RuntimeError: a second backward pass was asked for.
    """
    length = len(target) // sentences
    groups = [
        _Group(labels.sentences * length + labels.positions, labels.logits, kd_weight * labels.strength, temperature)
        for labels in soft_labels
    ]
    if untaught is None:
        counted = target.ne(ignore_index)
        for group in groups:
            counted[group.rows] = False
        untaught = counted.nonzero(as_tuple=True)[0]
    groups.append(_Group(untaught))
    # autocast does not see into a Function
    device = features.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    batch = _Batch(target, ignore_index, label_smoothing, groups, autocast, torch.is_grad_enabled())
    return FusedDistillation(*_FusedDistillation.apply(features, weight, bias, batch))


@dataclass(frozen=True)
class _Group:
    """Tokens that are treated alike: those of one teacher, or those of none.

    Attributes:
        rows: (R,) among the N tokens.
        teacher: what it says about each of them, or None.
        kd_share: share of the distillation loss, w.
        temperature: T; 1 without a teacher.
    """

    rows: Tensor
    teacher: Tensor | ProjectedLogits | TopKLogits | None = None
    kd_share: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True)
class _Batch:
    """What a batch is learned from, beside features and output layer.

    Attributes:
        target: (N,)
        groups: every token that is no padding is in one of them.
        autocast: precision that autocast asks for, or None.
        learns: whether gradients are wanted at all; a Function is not told.
    """

    target: Tensor
    ignore_index: int
    label_smoothing: float
    groups: list[_Group]
    autocast: torch.dtype | None
    learns: bool


class _FusedDistillation(torch.autograd.Function):
    """From (features, weight, bias, `_Batch`) to the fields of `FusedDistillation`."""

    @staticmethod
    def forward(ctx, features, weight, bias, batch):
        inputs = (features, weight, bias)
        wanted = [batch.learns and x is not None and x.requires_grad for x in inputs]
        with torch.autocast(features.device.type, enabled=False):
            sums, ctx.gradients = _work_out(features, weight, bias, batch, wanted)
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        taught = sum(len(group.rows) for group in batch.groups if group.teacher is not None)
        logged = sums.nll_loss, sums.kd_loss, torch.full_like(sums.loss, taught), sums.agreed, sums.n_correct
        ctx.mark_non_differentiable(*logged)
        return sums.loss, *logged

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, loss_gradient, *_):
        if ctx.gradients is None:
            raise RuntimeError("the fused distillation loss keeps its gradient for one backward pass only")
        # scaled before it is rounded: a loss scale is there to keep small fp16 gradients from vanishing
        scaled = [
            None if gradient is None else gradient.mul_(loss_gradient).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        ctx.gradients = None
        return *scaled, None


def _factor_dtype(weight: Tensor, autocast: torch.dtype | None) -> torch.dtype:
    """Precision of the factors of matrix products with a weight, where autocast asks for a precision or for none."""
    if weight.dtype == torch.float64:
        return weight.dtype
    # float32 factors cost little more on a CPU, and their products can be added up in place
    return torch.float32 if weight.device.type == "cpu" else autocast or weight.dtype


class _Projection:
    """An output layer over T, for a chunk of tokens at a time."""

    def __init__(self, weight: Tensor, bias: Tensor | None, autocast: torch.dtype | None, buffer: Tensor) -> None:
        """
        Args:
            weight: (V, D)
            bias: (V,) or None.
            autocast: precision that autocast asks for, or None.
            buffer: (C, V) takes the logits, again for each chunk.
        """
        self.weight = weight.detach().to(_factor_dtype(weight, autocast))
        self.bias = None if bias is None else bias.detach().to(buffer.dtype)
        self.buffer = buffer

    def __call__(self, features: Tensor, temperature: float) -> Tensor:
        """(R, V) logits over T from features (R, D), R <= C."""
        logits = self.buffer[: len(features)]
        features = features.to(self.weight.dtype)
        if self.weight.dtype == logits.dtype:
            logits.addmm_(features, self.weight.t(), beta=0, alpha=1 / temperature)
        else:
            logits.copy_(torch.mm(features, self.weight.t())).mul_(1 / temperature)
        if self.bias is not None:
            logits.add_(self.bias, alpha=1 / temperature)
        return logits


class _FirstEntries:
    """The first V entries of the vocabulary, as far as something is the same for all of them.

    Attributes:
        size: V
        weight_sum: (D,) sum of their rows in the weight of the output layer.
        bias_sum: () sum of their biases.
        taken_features: (D,) sum over tokens of features times what is taken off the gradient of each entry's logit.
        taken: () sum over tokens of what is taken off.
    """

    def __init__(self, layer: _Projection, size: int) -> None:
        self.size = size
        self.weight_sum = layer.weight[:size].sum(dim=0, dtype=layer.buffer.dtype)
        self.bias_sum = self.weight_sum.new_zeros(()) if layer.bias is None else layer.bias[:size].sum()
        self.taken_features = torch.zeros_like(self.weight_sum)
        self.taken = torch.zeros_like(self.bias_sum)

    def logit_sum(self, features: Tensor) -> Tensor:
        """(R, 1) sum of these entries' logits at T = 1, from features (R, D)."""
        return (features @ self.weight_sum + self.bias_sum).unsqueeze(1)


class _Stored:
    """A stored teacher's side of R tokens.

    Attributes:
        indices: (R, k)
        p: (R, k) softened probabilities of these entries.
        tail: (R, 1) softened probability of each of the V_teacher - k other entries.
        mass: (R, 1) sum of all; rounded logits may leave it a little off 1.
    """

    def __init__(self, stored: TopKLogits, student_logits: Tensor, temperature: float) -> None:
        """
        Args:
            stored: of R tokens.
            student_logits: (R, V) over T.
            temperature: T
        """
        p, tail = stored.probabilities(temperature)
        self.size = stored.vocabulary_size
        self.indices = stored.indices.long()
        self.p, self.tail = p.to(student_logits.dtype), tail.to(student_logits.dtype).unsqueeze(1)
        self.others = self.size - p.size(1)
        self.mass = self.p.sum(dim=1, keepdim=True) + self.others * self.tail
        self.student_logits = student_logits.gather(1, self.indices)

    def divergence(self, logit_sum: Tensor, log_sum_exp: Tensor) -> Tensor:
        """KL(p || q) (R, 1).

        Args:
            logit_sum: (R, 1) of the student's first V_teacher logits over T.
            log_sum_exp: (R, 1) of all the student's logits over T.
        """
        lprobs = self.student_logits - log_sum_exp
        other_lprobs = logit_sum - self.size * log_sum_exp - lprobs.sum(dim=1, keepdim=True)
        stored = torch.xlogy(self.p, self.p).sub_(self.p * lprobs).sum(dim=1, keepdim=True)
        return stored + self.others * torch.xlogy(self.tail, self.tail) - self.tail * other_lprobs

    def agrees(self, top: Tensor) -> Tensor:
        """(R, 1) whether the best stored entry has the student's largest logit over T, `top` (R, 1)."""
        return self.student_logits.gather(1, self.p.argmax(dim=1, keepdim=True)).eq(top)


@dataclass
class _Sums:
    """() each: the fields of `FusedDistillation`, as far as they have come."""

    loss: Tensor
    nll_loss: Tensor
    kd_loss: Tensor
    agreed: Tensor
    n_correct: Tensor


@dataclass(frozen=True)
class _Work:
    """A batch on its way through: what all its chunks share.

    Attributes:
        features: (N, D)
        layer: the student's output layer; its buffer takes a chunk's logits, and then their gradient.
        scratch: (3, tokens of a block, V) for the passes over a block.
        gradients: of features (N, D), weight (V, D) and bias (V,) for a loss gradient of 1; None where not wanted.
        gradient_weight: (V, D) the weight as a factor of the gradient of features.
        first_entries: by their number.
    """

    features: Tensor
    batch: _Batch
    layer: _Projection
    scratch: Tensor
    sums: _Sums
    gradients: list[Tensor | None]
    gradient_weight: Tensor
    first_entries: dict[int, _FirstEntries]

    @property
    def learns(self) -> bool:
        return any(gradient is not None for gradient in self.gradients)

    def first(self, size: int) -> _FirstEntries:
        """What the first `size` entries of the vocabulary share."""
        if size not in self.first_entries:
            self.first_entries[size] = _FirstEntries(self.layer, size)
        return self.first_entries[size]


def _work_out(
    features: Tensor, weight: Tensor, bias: Tensor | None, batch: _Batch, wanted: list[bool]
) -> tuple[_Sums, list[Tensor | None]]:
    """Goes through all tokens once.

    Args:
        wanted: whether features, weight and bias get a gradient.

    Returns:
        The sums, and the gradients of the three, None where not wanted.
    """
    size = len(weight)
    work_dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    most = max(len(group.rows) for group in batch.groups)
    chunk, block = _pieces(features.device.type, size, most)

    def buffer(*shape: int) -> Tensor:
        return features.new_empty(shape, dtype=work_dtype)

    layer = _Projection(weight, bias, batch.autocast, buffer(chunk, size))
    gradients = [
        x.new_zeros(x.shape, dtype=work_dtype) if x is not None and wants else None
        for x, wants in zip((features, weight, bias), wanted, strict=True)
    ]
    work = _Work(
        features=features.detach(),
        batch=batch,
        layer=layer,
        scratch=buffer(3, block, size),
        sums=_Sums(*(features.new_zeros((), dtype=work_dtype) for _ in range(5))),
        gradients=gradients,
        # fp16 cannot hold the many small probabilities that a gradient is made of before a loss scale is applied
        gradient_weight=layer.weight.float() if layer.weight.dtype == torch.float16 else layer.weight,
        first_entries={},
    )
    # teachers take turns in one buffer
    known = [_known_entries(group.teacher) for group in batch.groups if not isinstance(group.teacher, TopKLogits)]
    teacher_logits = buffer(chunk, max(known, default=0))
    for group in batch.groups:
        projection = None
        if isinstance(group.teacher, ProjectedLogits):
            width = group.teacher.vocabulary_size
            projection = _Projection(
                group.teacher.weight, group.teacher.bias, batch.autocast, teacher_logits[:, :width]
            )
        for begin in range(0, len(group.rows), chunk):
            tokens = slice(begin, begin + chunk)
            _add_chunk(work, group, tokens, _teacher_logits(group, tokens, projection, teacher_logits))
    _, weight_gradient, bias_gradient = gradients
    for first in work.first_entries.values():
        if weight_gradient is not None:
            weight_gradient[: first.size] -= first.taken_features
        if bias_gradient is not None:
            bias_gradient[: first.size] -= first.taken
    return work.sums, gradients


def _pieces(device: str, size: int, most: int) -> tuple[int, int]:
    """Tokens of a chunk and of a block, for a vocabulary of `size` and groups of at most `most` tokens."""
    if device == "cpu":
        chunk, block = CPU_CHUNK_TOKENS, max(1, CPU_BLOCK_ENTRIES // size)
    else:
        chunk = block = max(1, CUDA_CHUNK_ENTRIES // size)
    chunk = max(1, min(chunk, most))
    return chunk, min(block, chunk)


def _teacher_logits(group: _Group, tokens: slice, projection: _Projection | None, buffer: Tensor) -> Tensor | None:
    """(R, V_teacher) logits over T of some tokens of a group, in the buffer; None without them."""
    if isinstance(group.teacher, ProjectedLogits):
        assert projection is not None
        return projection(group.teacher.features[tokens], group.temperature)
    if isinstance(group.teacher, Tensor):
        logits = group.teacher[tokens]
        return buffer[: len(logits), : logits.size(1)].copy_(logits).div_(group.temperature)
    return None


def _add_chunk(work: _Work, group: _Group, tokens: slice, teacher: Tensor | None) -> None:
    """Adds what some tokens of a group give to sums and gradients.

    Args:
        teacher: (R, V_teacher) its logits over T, overwritten; None where it is stored, or there is none.
    """
    batch, sums = work.batch, work.sums
    rows, temperature, kd_share = group.rows[tokens], group.temperature, group.kd_share
    features = work.features[rows]
    logits = work.layer(features, temperature)
    features = features.to(logits.dtype)
    target = batch.target[rows].unsqueeze(1)
    counted = target.ne(batch.ignore_index)
    label_share = counted.to(logits.dtype) * (1 - kd_share)
    at_label = logits.gather(1, target)
    stored, mass = None, torch.ones_like(label_share)
    if isinstance(group.teacher, TopKLogits):
        stored = _Stored(group.teacher[tokens], logits, temperature)
        mass = stored.mass

    block_size = work.scratch.size(1)
    parts = []
    for begin in range(0, len(rows), block_size):
        block = slice(begin, begin + block_size)
        taught = None if teacher is None else teacher[block]
        shares = label_share[block], kd_share * mass[block]
        parts.append(_pass(logits[block], taught, shares, temperature, work.scratch, work.learns))
    top, total, hard_total, divergence, agreed = (torch.cat(part) for part in zip(*parts, strict=True))

    eps_i = batch.label_smoothing / (logits.size(1) - 1)
    label_weight = 1 - batch.label_smoothing - eps_i
    entries = work.first(logits.size(1))
    lse = temperature * top + hard_total.log()
    nll = lse - temperature * at_label
    lprob_sum = entries.logit_sum(features) - entries.size * lse
    sums.nll_loss += (counted * nll).sum()
    sums.loss += (label_share * (label_weight * nll - eps_i * lprob_sum)).sum()
    sums.n_correct += (counted & at_label.eq(top)).sum()
    # amounts (R, 1) that the gradients of a token's first entries have in common
    taken = [(entries, label_share * eps_i)]
    if stored is not None:
        known = work.first(stored.size)
        divergence = stored.divergence(known.logit_sum(features) / temperature, top + total.log())
        agreed = stored.agrees(top)
        taken.append((known, stored.tail * (kd_share * temperature)))
    elif teacher is not None:
        divergence = divergence + total.log()
    kd_loss = temperature**2 * divergence.sum()
    sums.kd_loss += kd_loss
    sums.loss += kd_share * kd_loss
    sums.agreed += agreed.sum()

    if work.learns:
        logits.scatter_add_(1, target, label_share * -label_weight)
        if stored is not None:
            logits.scatter_add_(1, stored.indices, (stored.p - stored.tail) * (-kd_share * temperature))
        _multiply_out(work, rows, features, logits, taken)


def _pass(
    logits: Tensor,
    teacher: Tensor | None,
    shares: tuple[Tensor, Tensor],
    temperature: float,
    scratch: Tensor,
    learns: bool,
) -> tuple[Tensor, ...]:
    """All passes over the logits of R tokens.

    Turns the student's logits into (1 - w) softmax(logits) + w T (softmax(logits / T) - p), which is their gradient
    but for what single entries of a token get, or all of them alike.

    Args:
        logits: (R, V) the student's over T, overwritten.
        teacher: (R, V_teacher) logits over T, overwritten; or None, then p is left out.
        shares: (R, 1) each, of the label loss, 1 - w, and of the distillation loss, w.
        temperature: T
        scratch: (3, at least R, V) overwritten.
        learns: without it the logits are left as anything.

    Returns:
        (R, 1) each: largest logit over T; sum of exp(logit / T - largest); the same for T = 1; KL(p || q) less the
        log of the first sum, or 0; whether student and teacher share the most probable entry.
    """
    label_share, kd_share = shares
    top = logits.amax(dim=1, keepdim=True)
    logits.sub_(top)
    soft = torch.exp(logits, out=scratch[0, : len(logits)])
    total = hard_total = soft.sum(dim=1, keepdim=True)
    hard = soft
    if temperature != 1:
        hard = scratch[1, : len(logits)]
        if temperature in (2, 3):  # a product or two are cheaper than one more exponential
            torch.pow(soft, temperature, out=hard)
        else:
            torch.mul(logits, temperature, out=hard).exp_()
        hard_total = hard.sum(dim=1, keepdim=True)

    if teacher is None:
        divergence = agreed = torch.zeros_like(total)
    else:
        known = logits[:, : teacher.size(1)]
        teacher_top, best = _first_place(teacher)
        agreed = known.gather(1, best).eq(0)
        p = torch.exp(teacher.sub_(teacher_top), out=scratch[2, : len(teacher), : teacher.size(1)])
        p_total = p.sum(dim=1, keepdim=True)
        divergence = teacher.sub_(known).mul_(p).sum(dim=1, keepdim=True).div_(p_total).sub_(p_total.log())

    if learns:
        hard_scale, soft_scale = label_share / hard_total, temperature * kd_share / total
        if hard is soft:
            torch.mul(soft, hard_scale + soft_scale, out=logits)
        else:
            torch.mul(hard, hard_scale, out=logits).addcmul_(soft, soft_scale)
        if teacher is not None:
            known.addcmul_(p, kd_share / p_total, value=-temperature)
    return top, total, hard_total, divergence, agreed


def _multiply_out(
    work: _Work, rows: Tensor, features: Tensor, gradient: Tensor, taken: list[tuple[_FirstEntries, Tensor]]
) -> None:
    """Adds what R tokens with `features` (R, D) and the gradient (R, V) of their logits give."""
    feature_gradient, weight_gradient, bias_gradient = work.gradients
    factor = gradient.to(work.gradient_weight.dtype)
    # a GPU's fp16 factors became float32 for the exponents' sake alone, of which TF32 keeps all: products of its fast
    # kind have fp16's digits and float32's range
    with _tf32(allowed=work.layer.weight.dtype == torch.float16):
        if feature_gradient is not None:
            product = torch.mm(factor, work.gradient_weight).to(gradient.dtype)
            for first, amount in taken:
                product.addr_(amount.squeeze(1), first.weight_sum, alpha=-1)
            feature_gradient[rows] = product
        if weight_gradient is not None and factor.dtype == gradient.dtype:
            weight_gradient.addmm_(factor.t(), features)
        elif weight_gradient is not None:
            weight_gradient += torch.mm(factor.t(), features.to(factor.dtype))
    if bias_gradient is not None:
        bias_gradient += gradient.sum(dim=0)
    for first, amount in taken:
        first.taken_features.addmv_(features.t(), amount.squeeze(1))
        first.taken += amount.sum()


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Where allowed, matrix products of float32 on a GPU round their factors to TF32 (8 bits of exponent, 10 of
    mantissa) while this is open, which its tensor cores multiply several times as fast; else as the user has set it."""
    if not allowed:
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _first_place(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Largest of each row of (R, V) and where it is, both (R, 1).

    On a CPU torch looks for the place entry by entry, and for the largest alone many times as fast: so the place is
    looked for in that part of the row where the largest is.
    """
    width, size = 128, logits.size(1)
    if size < width:
        return logits.max(dim=1, keepdim=True)
    whole = size // width * width
    parts = logits[:, :whole].unflatten(1, (-1, width)).amax(dim=2)
    if whole < size:
        parts = torch.cat([parts, logits[:, whole:].amax(dim=1, keepdim=True)], dim=1)
    top, part = parts.max(dim=1, keepdim=True)
    begin = (part * width).clamp_(max=size - width)
    within = logits.gather(1, begin + torch.arange(width, device=logits.device)).argmax(dim=1, keepdim=True)
    return top, begin + within


def _known_entries(teacher: Tensor | ProjectedLogits | None) -> int:
    if teacher is None:
        return 0
    return len(teacher.weight) if isinstance(teacher, ProjectedLogits) else teacher.size(1)

"""Label-smoothed cross entropy and word-level distillation straight from decoder features: no fairseq in here.

The same loss as `word_level_kd.distil`, whose definition is the one to read, without ever holding the logits of all
tokens. Tokens are taken in chunks: one projection of a chunk serves label loss, distillation loss and gradient, which
is written over the logits and multiplied out at once. What stays is the gradient itself. It is worked out in the
forward pass, so `backward` only scales it.

Three things keep the passes over a chunk few:
- the smoothed part of the label loss needs no more of a token's logits than their sum, which is features . sum of the
  weight's rows, and its gradient is the same for every entry of the vocabulary: neither touches the chunk. The same
  holds for the evenly spread tail of stored top-k outputs;
- 1 / T is a factor of the matrix product;
- on a CPU the passes run over a few rows at a time, which stay in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .word_level_kd import ProjectedLogits, SoftLabels, TopKLogits

# Tokens of a chunk share their matrix products: more of them read and write the weight's gradient less often, and take
# more memory. On a GPU a chunk is so many entries (tokens times vocabulary), to keep it busy.
CPU_CHUNK_TOKENS = 256
CUDA_CHUNK_ENTRIES = 2**26
# On a CPU the passes between the products run over about so many entries at a time.
CPU_BLOCK_ENTRIES = 2**19


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
        soft_labels: one entry per teacher that has something to say; no token twice.
        sentences: B, number of sentences in the batch.
        ignore_index: an entry of the vocabulary.
        label_smoothing: eps, 0 to 1.
        kd_weight: lambda, 0 to 1.
        temperature: T > 0.

    Raises:
        RuntimeError: a second backward pass was asked for.
    """
    length = len(target) // sentences
    untaught = target.ne(ignore_index)
    groups = []
    for labels in soft_labels:
        rows = labels.sentences * length + labels.positions
        untaught[rows] = False
        groups.append(_Group(rows, labels.logits, kd_weight * labels.strength, temperature))
    groups.append(_Group(untaught.nonzero(as_tuple=True)[0]))
    # a Function is not told that gradients are off, and autocast does not see into it
    device = features.device.type
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (features, weight, bias)]
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def run() -> _Run:
        return _Run(features, weight, bias, target, ignore_index, label_smoothing, groups, wanted, autocast)

    return FusedDistillation(*_FusedDistillation.apply(features, weight, bias, run))


class _FusedDistillation(torch.autograd.Function):
    """From (features, weight, bias, what makes a `_Run` of them) to the fields of `FusedDistillation`."""

    @staticmethod
    def forward(ctx, features, weight, bias, run):
        with torch.autocast(features.device.type, enabled=False):
            batch = run()
            loss, *logged = batch()
        ctx.gradients = batch.gradients
        ctx.dtypes = [None if x is None else x.dtype for x in (features, weight, bias)]
        ctx.mark_non_differentiable(*logged)
        return loss, *logged

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
        dtype = weight.dtype if weight.dtype == torch.float64 else autocast or weight.dtype
        if weight.device.type == "cpu" and dtype != torch.float64:
            # float32 factors cost little more on a CPU, and their products can be added up in place
            dtype = torch.float32
        self.weight = weight.detach().to(dtype)
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


@dataclass(frozen=True)
class _Labels:
    """The label's side of R tokens.

    Attributes:
        target: (R, 1)
        counted: (R, 1) whether the token has a label loss.
        share: (R, 1) share of the label loss, 1 - w or 0.
        logit_sum: (R, 1) sum of the student's logits at T = 1.
    """

    target: Tensor
    counted: Tensor
    share: Tensor
    logit_sum: Tensor

    def __getitem__(self, rows: slice) -> _Labels:
        return _Labels(self.target[rows], self.counted[rows], self.share[rows], self.logit_sum[rows])


@dataclass(frozen=True)
class _Stored:
    """A stored teacher's side of R tokens.

    Attributes:
        indices: (R, k)
        p: (R, k) softened probabilities of these entries.
        tail: (R, 1) softened probability of each of the first `size` entries that was not stored.
        logit_sum: (R, 1) sum over the first `size` entries of the student's logits at T = 1.
        size: number of entries that the teacher knows.
    """

    indices: Tensor
    p: Tensor
    tail: Tensor
    logit_sum: Tensor
    size: int

    def __getitem__(self, rows: slice) -> _Stored:
        return _Stored(self.indices[rows], self.p[rows], self.tail[rows], self.logit_sum[rows], self.size)


@dataclass(frozen=True)
class _Softened:
    """The student's side of R tokens at T.

    Attributes:
        logits: (R, V) over T, less the largest of each token.
        top: (R, 1) the largest, over T.
        exponentials: (R, V) of `logits`.
        total: (R, 1) their sum.
    """

    logits: Tensor
    top: Tensor
    exponentials: Tensor
    total: Tensor


class _Run:
    """One batch on its way through: buffers, gradients, and sums.

    Attributes:
        gradients: of features (N, D), weight (V, D) and bias (V,) for a loss gradient of 1; None where not wanted.
    """

    def __init__(
        self,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        ignore_index: int,
        label_smoothing: float,
        groups: list[_Group],
        wanted: list[bool],
        autocast: torch.dtype | None,
    ) -> None:
        self.features, self.target, self.ignore_index = features.detach(), target, ignore_index
        self.groups, self.autocast = groups, autocast
        self.size = len(weight)
        self.work = torch.float64 if features.dtype == torch.float64 else torch.float32
        self.eps_i = label_smoothing / (self.size - 1)
        self.label_weight = 1 - label_smoothing - self.eps_i

        if features.device.type == "cpu":
            chunk, block = CPU_CHUNK_TOKENS, max(1, CPU_BLOCK_ENTRIES // self.size)
        else:
            chunk = block = max(1, CUDA_CHUNK_ENTRIES // self.size)
        self.chunk = min(chunk, max(len(group.rows) for group in groups))
        self.block = min(block, self.chunk)
        self.project = _Projection(weight, bias, autocast, self._buffer(self.chunk, self.size))
        # teachers take turns in one buffer
        known = [_known_entries(group.teacher) for group in groups if not isinstance(group.teacher, TopKLogits)]
        self.teacher_logits = self._buffer(self.chunk, max(known, default=0))
        taught = any(group.teacher is not None for group in groups)
        self.scratch = self._buffer(3, self.block, self.size) if taught else None

        self.gradients = [
            x.new_zeros(x.shape, dtype=self.work) if wants else None
            for x, wants in zip((features, weight, bias), wanted, strict=True)
        ]
        self.tracked = any(wanted)
        # fp16 cannot hold the many small probabilities that a gradient is made of before a loss scale is applied
        factor = self.project.weight
        self.gradient_weight = factor.float() if factor.dtype == torch.float16 else factor
        self.first_entries: dict[int, _FirstEntries] = {}
        self.loss, self.nll_loss, self.kd_loss, self.agreed, self.n_correct = (
            features.new_zeros((), dtype=self.work) for _ in range(5)
        )

    def _buffer(self, *shape: int) -> Tensor:
        return self.features.new_empty(shape, dtype=self.work)

    def _first(self, size: int) -> _FirstEntries:
        if size not in self.first_entries:
            self.first_entries[size] = _FirstEntries(self.project, size)
        return self.first_entries[size]

    def __call__(self) -> tuple[Tensor, ...]:
        """Goes through all tokens once; returns the fields of `FusedDistillation` in their order."""
        taught = 0
        for group in self.groups:
            taught += len(group.rows) if group.teacher is not None else 0
            projection = None
            if isinstance(group.teacher, ProjectedLogits):
                weight, bias = group.teacher.weight, group.teacher.bias
                projection = _Projection(weight, bias, self.autocast, self.teacher_logits[:, : len(weight)])
            for begin in range(0, len(group.rows), self.chunk):
                self._chunk(group, projection, slice(begin, begin + self.chunk))
        _, weight_gradient, bias_gradient = self.gradients
        for first in self.first_entries.values():
            if weight_gradient is not None:
                weight_gradient[: first.size] -= first.taken_features
            if bias_gradient is not None:
                bias_gradient[: first.size] -= first.taken
        return self.loss, self.nll_loss, self.kd_loss, self.loss.new_tensor(taught), self.agreed, self.n_correct

    def _chunk(self, group: _Group, projection: _Projection | None, tokens: slice) -> None:
        rows, temperature = group.rows[tokens], group.temperature
        features = self.features[rows]
        logits = self.project(features, temperature)
        features = features.to(self.work)
        everything = self._first(self.size)
        target = self.target[rows].unsqueeze(1)
        counted = target.ne(self.ignore_index)
        labels = _Labels(target, counted, counted.to(self.work) * (1 - group.kd_share), everything.logit_sum(features))
        # amounts (R, 1) that the gradients of a token's first entries have in common
        taken = [(everything, labels.share * self.eps_i)]

        teacher = group.teacher if group.teacher is None else group.teacher[tokens]
        if projection is not None:
            teacher = projection(teacher.features, temperature)
        elif isinstance(teacher, Tensor):
            teacher = self.teacher_logits[: len(rows), : teacher.size(1)].copy_(teacher).div_(temperature)
        elif isinstance(teacher, TopKLogits):
            known = self._first(teacher.vocabulary_size)
            p, tail = (x.to(self.work) for x in teacher.probabilities(temperature))
            tail = tail.unsqueeze(1)
            teacher = _Stored(teacher.indices.long(), p, tail, known.logit_sum(features), known.size)
            taken.append((known, tail * group.kd_share * temperature))

        for begin in range(0, len(rows), self.block):
            block = slice(begin, begin + self.block)
            self._block(group, logits[block], labels[block], teacher if teacher is None else teacher[block])
        if self.tracked:
            self._multiply_out(rows, features, logits, taken)

    def _block(self, group: _Group, logits: Tensor, labels: _Labels, teacher: Tensor | _Stored | None) -> None:
        """Adds up the losses of R tokens, and turns their logits (R, V) over T into the gradient of the logits at 1.

        The gradient lacks what is the same for all of a token's first entries.
        """
        temperature, share = group.temperature, group.kd_share
        top = logits.amax(dim=1, keepdim=True)
        logits.sub_(top)
        at_label = logits.gather(1, labels.target)
        # without a teacher the logits themselves are not needed any more
        soft = torch.exp(logits, out=logits if teacher is None else self.scratch[0, : len(logits)])
        student = _Softened(logits, top, soft, soft.sum(dim=1, keepdim=True))
        hard, hard_total = soft, student.total
        if temperature != 1:
            hard = torch.mul(logits, temperature, out=self.scratch[1, : len(logits)]).exp_()
            hard_total = hard.sum(dim=1, keepdim=True)

        log_total = hard_total.log()
        nll = log_total - temperature * at_label
        lprob_sum = labels.logit_sum - self.size * (temperature * top + log_total)
        self.loss += (labels.share * (self.label_weight * nll - self.eps_i * lprob_sum)).sum()
        self.nll_loss += (labels.counted * nll).sum()
        self.n_correct += (labels.counted & at_label.eq(0)).sum()

        divergence, mass, p, p_scale = None, 1, None, None
        if isinstance(teacher, Tensor):
            divergence, p, p_scale = self._dense_divergence(student, teacher)
        elif teacher is not None:
            divergence, mass = self._stored_divergence(student, teacher, temperature)
        if divergence is not None:
            kd_loss = temperature**2 * divergence.sum()
            self.kd_loss += kd_loss
            self.loss += share * kd_loss

        if not self.tracked:
            return
        hard_scale, soft_scale = labels.share / hard_total, share * temperature * mass / student.total
        if hard is soft:
            torch.mul(soft, hard_scale + soft_scale, out=logits)
        else:
            torch.mul(hard, hard_scale, out=logits).addcmul_(soft, soft_scale)
        if p is not None:
            logits[:, : p.size(1)].addcmul_(p, p_scale, value=-share * temperature)
        elif teacher is not None:
            logits.scatter_add_(1, teacher.indices, (teacher.p - teacher.tail).mul_(-share * temperature))
        logits.scatter_add_(1, labels.target, labels.share * -self.label_weight)

    def _dense_divergence(self, student: _Softened, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """KL(p || q) (R, 1) for teacher logits (R, V_teacher) over T, overwritten, and p in two factors."""
        known = student.logits[:, : teacher.size(1)]
        top, best = teacher.max(dim=1, keepdim=True)
        self.agreed += known.gather(1, best).eq(0).sum()
        teacher.sub_(top)
        exponentials = torch.exp(teacher, out=self.scratch[2, : len(teacher), : teacher.size(1)])
        total = exponentials.sum(dim=1, keepdim=True)
        difference = teacher.sub_(known).mul_(exponentials).sum(dim=1, keepdim=True)
        scale = total.reciprocal()
        return difference * scale - total.log() + student.total.log(), exponentials, scale

    def _stored_divergence(self, student: _Softened, teacher: _Stored, temperature: float) -> tuple[Tensor, Tensor]:
        """KL(p || q) (R, 1), and the sum (R, 1) of p, which rounded logits may leave a little off 1."""
        log_total = student.total.log()
        at_stored = student.logits.gather(1, teacher.indices)
        best = teacher.p.argmax(dim=1, keepdim=True)
        self.agreed += at_stored.gather(1, best).eq(0).sum()
        stored_lprobs = at_stored - log_total
        others = teacher.size - teacher.p.size(1)
        lprob_sum = teacher.logit_sum / temperature - teacher.size * (student.top + log_total)
        other_lprobs = lprob_sum - stored_lprobs.sum(dim=1, keepdim=True)
        divergence = torch.xlogy(teacher.p, teacher.p).sub_(teacher.p * stored_lprobs).sum(dim=1, keepdim=True)
        divergence += others * torch.xlogy(teacher.tail, teacher.tail) - teacher.tail * other_lprobs
        return divergence, teacher.p.sum(dim=1, keepdim=True) + others * teacher.tail

    def _multiply_out(
        self, rows: Tensor, features: Tensor, gradient: Tensor, taken: list[tuple[_FirstEntries, Tensor]]
    ) -> None:
        """Adds what R tokens with `features` (R, D) and the gradient (R, V) of their logits give."""
        feature_gradient, weight_gradient, bias_gradient = self.gradients
        factor = gradient.to(self.gradient_weight.dtype)
        if feature_gradient is not None:
            product = torch.mm(factor, self.gradient_weight).to(self.work)
            for first, amount in taken:
                product.addr_(amount.squeeze(1), first.weight_sum, alpha=-1)
            feature_gradient[rows] = product
        if weight_gradient is not None and factor.dtype == self.work:
            weight_gradient.addmm_(factor.t(), features)
        elif weight_gradient is not None:
            weight_gradient += torch.mm(factor.t(), features.to(factor.dtype))
        if bias_gradient is not None:
            bias_gradient += gradient.sum(dim=0)
        for first, amount in taken:
            first.taken_features.addmv_(features.t(), amount.squeeze(1))
            first.taken += amount.sum()


def _known_entries(teacher: Tensor | ProjectedLogits | None) -> int:
    if teacher is None:
        return 0
    return len(teacher.weight) if isinstance(teacher, ProjectedLogits) else teacher.size(1)

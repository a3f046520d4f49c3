"""The fused loss against the dense definition in float64, finite differences, and what it may hold in memory.

Needs no fairseq: `pytest --noconftest` runs this file where there is none.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_plugins.losses import fused as fused_kd_loss
from fairseq_plugins.losses.fused import fused_distil
from fairseq_plugins.losses.soft_labels import ProjectedLogits, SoftLabels, TopKLogits
from fairseq_plugins.losses.word_level import distil

REPO = Path(__file__).parents[3]
PAD = 1


@dataclass
class Problem:
    """A batch of `sentences` x `length` tokens, some of them padding, and what the loss is made of."""

    features: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    soft_labels: list[SoftLabels]
    sentences: int
    label_smoothing: float = 0.1
    kd_weight: float = 0.7
    temperature: float = 2.0

    @property
    def learned(self):
        return [x for x in (self.features, self.weight, self.bias) if x is not None]

    def options(self):
        return {"sentences": self.sentences, "kd_weight": self.kd_weight, "temperature": self.temperature}


def stored(logits, k, tail, temperature, precision=None):
    top = logits.topk(k, dim=1)
    values = top.values if precision is None else top.values.to(precision)
    rest = torch.logsumexp(logits.scatter(1, top.indices, -torch.inf) / temperature, 1)
    return TopKLogits(top.indices.int(), values, rest, logits.size(1), tail)


FORMS = ("dense", "projected", "drop", "uniform")


def teacher(form, size, known, temperature, rng, dtype, k=3):
    features, weight = torch.randn(size, 4, generator=rng), torch.randn(known, 4, generator=rng)
    projected = ProjectedLogits(features.to(dtype), weight.to(dtype), torch.randn(known, generator=rng).to(dtype))
    if form == "projected":
        return projected
    return projected.dense() if form == "dense" else stored(projected.dense(), min(k, known), form, temperature)


def problem(forms=("dense",), *, seed=0, dtype=torch.float64, bias=True, size=11, known=9, **options):
    """Each teacher speaks about one sentence but for its first token; the sentence after the last has no teacher."""
    rng = torch.Generator().manual_seed(seed)
    length, sentences, width = 5, len(forms) + 1, 6
    target = torch.randint(2, size, (sentences, length), generator=rng)
    target[:, length - 1] = PAD
    labels = []
    for nth, form in enumerate(forms):
        positions = torch.arange(1, length - 1)
        logits = teacher(form, len(positions), known, options.get("temperature", 2.0), rng, dtype)
        labels.append(SoftLabels(torch.full_like(positions, nth), positions, logits, strength=1 / (nth + 1)))
    features = torch.randn(sentences * length, width, generator=rng).to(dtype)
    weight = torch.randn(size, width, generator=rng).to(dtype)
    bias = torch.randn(size, generator=rng).to(dtype) if bias else None
    made = Problem(features, weight, bias, target.flatten(), labels, sentences, **options)
    for x in made.learned:
        x.requires_grad_()
    return made


def dense(problem):
    """The definition: (loss, nll, kd, taught, agreed, correct) from logits of all tokens."""
    logits = torch.nn.functional.linear(problem.features, problem.weight, problem.bias)
    lprobs = torch.log_softmax(logits, dim=-1, dtype=None if logits.dtype == torch.float64 else torch.float32)
    counted = problem.target.ne(PAD)
    nll = -lprobs.gather(1, problem.target.unsqueeze(1)).squeeze(1) * counted
    eps, eps_i = problem.label_smoothing, problem.label_smoothing / (lprobs.size(1) - 1)
    label_loss = (1 - eps - eps_i) * nll - eps_i * lprobs.sum(1) * counted
    blended = distil(lprobs, label_loss, problem.soft_labels, **problem.options())
    correct = (lprobs.argmax(1).eq(problem.target) & counted).sum()
    return blended.loss.sum(), nll.sum(), blended.kd_loss, blended.taught, blended.agreed, correct


def fused(problem):
    blended = fused_distil(
        problem.features,
        problem.weight,
        problem.bias,
        problem.target,
        problem.soft_labels,
        ignore_index=PAD,
        label_smoothing=problem.label_smoothing,
        **problem.options(),
    )
    return (
        blended.loss,
        blended.nll_loss,
        blended.kd_loss,
        blended.taught,
        blended.agreed,
        blended.n_correct,
    )


def assert_same(problem, rtol=1e-10, atol=1e-12, gradient_scale=1.0):
    """Both ways give the same numbers to log, and the same gradients."""
    expected, found = dense(problem), fused(problem)
    for name, one, other in zip(("loss", "nll", "kd", "taught", "agreed", "correct"), expected, found, strict=True):
        torch.testing.assert_close(other.to(one.dtype), one, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
    gradients = [torch.autograd.grad(gradient_scale * outcome[0], problem.learned) for outcome in (expected, found)]
    for one, other in zip(*gradients, strict=True):
        assert other.dtype == one.dtype
        torch.testing.assert_close(other, one, rtol=rtol, atol=atol)


@pytest.fixture
def small_pieces(monkeypatch):
    """Chunks and blocks so small that every batch has several, the last of them not full."""
    monkeypatch.setattr(fused_kd_loss, "CPU_CHUNK_TOKENS", 2)
    monkeypatch.setattr(fused_kd_loss, "CPU_BLOCK_ENTRIES", 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.9), (2.0, 0.7), (3.0, 0.8), (3.3, 1.0), (2.0, 0.0)])
def test_equals_the_dense_definition(form, temperature, weight):
    assert_same(problem([form], temperature=temperature, kd_weight=weight))


@settings(max_examples=60, deadline=None)
@given(
    forms=st.lists(st.sampled_from(FORMS), max_size=3),
    seed=st.integers(0, 999),
    size=st.integers(4, 300),
    unknown=st.integers(0, 1),
    bias=st.booleans(),
    pieces=st.tuples(st.integers(1, 30), st.integers(1, 600)),
    temperature=st.floats(0.5, 20),
    kd_weight=st.floats(0, 1),
    label_smoothing=st.floats(0, 0.9),
    gradient_scale=st.floats(0.1, 1000),
)
def test_equals_the_dense_definition_whatever_the_sizes(
    forms, seed, size, unknown, bias, pieces, temperature, kd_weight, label_smoothing, gradient_scale
):
    options = {"temperature": temperature, "kd_weight": kd_weight, "label_smoothing": label_smoothing}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_kd_loss, "CPU_CHUNK_TOKENS", pieces[0])
        patch.setattr(fused_kd_loss, "CPU_BLOCK_ENTRIES", pieces[1])
        made = problem(forms, seed=seed, size=size, known=size - unknown, bias=bias, **options)
        assert_same(made, rtol=1e-8, atol=1e-9 * gradient_scale, gradient_scale=gradient_scale)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradient_equals_finite_differences(form, temperature, small_pieces):
    made, step = problem([form], temperature=temperature), 1e-5
    gradients = torch.autograd.grad(fused(made)[0], made.learned)
    with torch.no_grad():
        for x, gradient in zip(made.learned, gradients, strict=True):
            entries, slopes = x.view(-1), torch.empty_like(gradient).view(-1)
            for nth, value in enumerate(entries.tolist()):
                entries[nth] = value + step
                above = fused(made)[0]
                entries[nth] = value - step
                slopes[nth] = (above - fused(made)[0]) / (2 * step)
                entries[nth] = value
            torch.testing.assert_close(gradient, slopes.view_as(gradient), rtol=1e-6, atol=1e-7)


def test_several_teachers_in_one_batch_each_with_its_own_strength(small_pieces):
    assert_same(problem(FORMS))


def test_teachers_that_know_different_parts_of_the_vocabulary(small_pieces):
    made, others = problem(["projected", "uniform"], known=11), problem(["projected", "uniform"], known=7)
    made.soft_labels = [made.soft_labels[0], others.soft_labels[1]]
    assert_same(made)


def test_a_batch_that_no_teacher_speaks_about_has_stock_label_smoothed_loss():
    made = problem([])
    assert_same(made)
    assert [x.item() for x in fused(made)[2:5]] == [0, 0, 0]


def test_a_batch_of_nothing_but_padding_gives_zero_and_no_gradient():
    made = problem([])
    made.target.fill_(PAD)
    loss = fused(made)[0]
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, made.learned))


def test_a_batch_of_no_tokens_at_all():
    made = problem([])
    made.features, made.target = made.features.detach()[:0].requires_grad_(), made.target[:0]
    loss = fused(made)[0]
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, made.learned))


def test_padding_changes_nothing_and_gets_no_gradient():
    made = problem(["dense", "uniform"])
    longer = problem(["dense", "uniform"])
    pad = (0, 0, 0, 2)
    longer.features = torch.nn.functional.pad(made.features.detach().view(3, 5, -1), pad, value=9.0).flatten(0, 1)
    longer.features.requires_grad_()
    longer.target = torch.nn.functional.pad(made.target.view(3, 5), (0, 2), value=PAD).flatten()
    one, other = fused(made), fused(longer)
    for x, y in zip(one, other, strict=True):
        torch.testing.assert_close(x, y)
    (gradient,) = torch.autograd.grad(other[0], longer.features)
    (expected,) = torch.autograd.grad(one[0], made.features)
    torch.testing.assert_close(gradient.view(3, 7, -1)[:, :5], expected.view(3, 5, -1))
    assert not gradient.view(3, 7, -1)[:, 4:].any()


@pytest.mark.parametrize("form", FORMS)
def test_prefix_left_out_of_the_loss_takes_its_soft_labels_with_it(form):
    made = problem([form])
    made.soft_labels = [labels.after_prefix(2) for labels in made.soft_labels]
    made.features = made.features.detach().view(2, 5, -1)[:, 2:].flatten(0, 1).requires_grad_()
    made.target = made.target.view(2, 5)[:, 2:].flatten()
    assert fused(made)[3].item() == 2
    assert_same(made)


@pytest.mark.parametrize("tail", ["drop", "uniform"])
def test_stored_outputs_with_all_entries_are_the_teacher_itself(tail):
    made = problem(["dense"])
    whole = fused(made)
    (labels,) = made.soft_labels
    every = stored(labels.logits, 9, tail, made.temperature)
    made.soft_labels = [SoftLabels(labels.sentences, labels.positions, every)]
    for one, other in zip(whole, fused(made), strict=True):
        torch.testing.assert_close(other, one)
    assert_same(made)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_tail_is_dropped_or_spread_as_defined(temperature):
    made = problem(["dense"], temperature=temperature)
    (labels,) = made.soft_labels
    p = torch.softmax(labels.logits / temperature, dim=1)
    top = p.topk(3, dim=1)
    only = torch.zeros_like(p).scatter(1, top.indices, top.values)
    rest = 1 - only.sum(1, keepdim=True)
    explicit = {"drop": only / only.sum(1, keepdim=True), "uniform": torch.where(only > 0, only, rest / 6)}
    for tail, q in explicit.items():
        # log-probabilities times T are logits of the same softened distribution; 0 becomes next to nothing
        made.soft_labels = [SoftLabels(labels.sentences, labels.positions, temperature * q.clamp(min=1e-300).log())]
        expected = fused(made)
        short = stored(labels.logits, 3, tail, temperature)
        made.soft_labels = [SoftLabels(labels.sentences, labels.positions, short)]
        for one, other in zip(expected, fused(made), strict=True):
            torch.testing.assert_close(other, one)


def test_float32_agrees_with_float64_at_the_size_of_a_real_vocabulary():
    options = {"size": 5000, "known": 4990}
    exact, single = problem(["projected", "uniform"], **options), problem(["projected", "uniform"], **options)
    for name in ("features", "weight", "bias"):
        setattr(single, name, getattr(single, name).detach().float().requires_grad_())
    expected, found = fused(exact), fused(single)
    for one, other in zip(expected, found, strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(other.double(), one, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(x[0], y.learned) for x, y in ((expected, exact), (found, single))]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other.double(), one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("halves_multiplied", [False, True], ids=["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_added_up_in_float32(form, precision, halves_multiplied, monkeypatch, small_pieces):
    if halves_multiplied:
        monkeypatch.setattr(fused_kd_loss, "_factor_dtype", lambda weight, autocast: autocast or weight.dtype)
    half, exact = problem([form]), problem([form])
    for name in ("features", "weight", "bias"):
        # the same numbers, which half precision can hold
        value = getattr(half, name).detach().to(precision)
        setattr(half, name, value.requires_grad_())
        setattr(exact, name, value.detach().double().requires_grad_())
    found, expected = fused(half), fused(exact)
    tolerance = 10 * torch.finfo(precision).eps
    assert found[0].dtype == torch.float32
    for one, other in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=0.1 * tolerance)
    # a loss scale reaches the gradient before it is rounded
    gradients = torch.autograd.grad(found[0] * 64, half.learned)
    for one, other in zip(gradients, torch.autograd.grad(expected[0] * 64, exact.learned), strict=True):
        assert one.dtype == precision
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=64 * tolerance)


def test_small_fp16_gradients_survive_where_a_loss_scale_lifts_them(monkeypatch):
    monkeypatch.setattr(fused_kd_loss, "_factor_dtype", lambda weight, autocast: weight.dtype)
    made = problem([], size=300, bias=False)
    made.weight = torch.zeros(300, 6, dtype=torch.float16, requires_grad=True)
    made.features = torch.full((5, 6), 1e-5, dtype=torch.float16, requires_grad=True)
    (gradient,) = torch.autograd.grad(fused(made)[0] * 2**15, made.weight)
    # 4 tokens, each 1e-5 * (1 / 300 - eps / 299): far below what fp16 can hold before it is scaled
    never_label = [entry for entry in range(300) if entry not in made.target.tolist()]
    expected = 4 * 2**15 * made.features[0, 0].double() * (1 / 300 - 0.1 / 299)
    torch.testing.assert_close(gradient[never_label].double(), expected.expand(len(never_label), 6), rtol=2e-3, atol=0)


def as_tf32(x):
    """The nearest numbers with 10 bits of mantissa: how a GPU rounds factors of float32 where TF32 is allowed."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


class _GPUProducts(TorchFunctionMode):
    """Matrix products of float32 with factors rounded as a GPU would, and what was allowed at each of them."""

    def __init__(self):
        super().__init__()
        self.allowed = []

    def __torch_function__(self, operation, types, args=(), kwargs=None):
        if operation in (torch.mm, Tensor.addmm_) and args[-1].dtype == torch.float32:
            self.allowed.append(torch.backends.cuda.matmul.allow_tf32)
            if self.allowed[-1]:
                args = (*args[:-2], as_tf32(args[-2]), as_tf32(args[-1]))
        return operation(*args, **(kwargs or {}))


def unlikely_entries(device="cpu"):
    """A problem in fp16 and the same in float64, all but one entry of which have probabilities of 1e-9 and less."""
    size, width = 300, 6
    pair = []
    for dtype in (torch.float16, torch.float64):
        made = problem([], size=size, bias=False, dtype=torch.float64)
        weight = made.weight.detach().clamp(-1, 1)
        weight[2] = 9.0
        made.weight = weight.to(torch.float16).to(device, dtype).requires_grad_()
        features = (torch.arange(5 * width).view(5, width) % 7 / 16 + 0.25).to(torch.float16)
        made.features = features.to(device, dtype).requires_grad_()
        made.target = torch.full((5,), 2, device=device)
        made.label_smoothing = 0.0
        pair.append(made)
    return pair


def assert_unlikely_entries_learn(half, exact):
    scale = 2**20  # a loss scale that lifts what fp16 could not hold otherwise
    expected = torch.autograd.grad(fused(exact)[0] * scale, exact.weight)[0][3:]
    (found,) = torch.autograd.grad(fused(half)[0] * scale, half.weight)
    assert (expected / scale).abs().max() < 2**-25, "fp16 should round these to zero"
    lifted = expected.abs() > 2**-14
    assert lifted.float().mean() > 0.5
    torch.testing.assert_close(found[3:].double()[lifted], expected[lifted], rtol=4e-3, atol=0)


def test_gradients_that_fp16_cannot_hold_survive_the_products_of_a_gpu(monkeypatch):
    monkeypatch.setattr(fused_kd_loss, "_factor_dtype", lambda weight, autocast: weight.dtype)
    half, exact = unlikely_entries()
    with _GPUProducts() as products:
        assert_unlikely_entries_learn(half, exact)
    assert products.allowed, "no product of float32 was seen"
    assert all(products.allowed)


def test_products_of_float32_are_left_as_the_user_has_set_them(monkeypatch):
    made = problem(["projected"], dtype=torch.float32)
    with _GPUProducts() as products:
        fused(made)
    assert products.allowed
    assert not any(products.allowed)
    assert not torch.backends.cuda.matmul.allow_tf32


on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@on_gpu
def test_gradients_that_fp16_cannot_hold_survive_on_a_gpu():
    assert_unlikely_entries_learn(*unlikely_entries("cuda"))


@on_gpu
@pytest.mark.parametrize("form", FORMS)
def test_nothing_waits_for_the_gpu(form):
    made = problem([form], dtype=torch.float32)
    labels = made.soft_labels[0].moved(lambda x: x.cuda())
    arguments = [x.detach().cuda().requires_grad_() for x in made.learned] + [made.target.cuda(), [labels]]
    untaught = found_untaught(made).cuda()
    options = {"ignore_index": PAD, "label_smoothing": 0.1, "untaught": untaught, **made.options()}
    fused_distil(*arguments, **options).loss.backward()  # libraries load
    torch.cuda.set_sync_debug_mode("error")
    try:
        fused_distil(*arguments, **options).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def found_untaught(made):
    counted = made.target.ne(PAD)
    for labels in made.soft_labels:
        counted[labels.sentences * 5 + labels.positions] = False
    return counted.nonzero().squeeze(1)


def test_tokens_without_soft_labels_may_be_given():
    made = problem(FORMS)
    options = {"ignore_index": PAD, "label_smoothing": made.label_smoothing, **made.options()}
    given = fused_distil(*made.learned, made.target, made.soft_labels, **options, untaught=found_untaught(made).flip(0))
    for one, other in zip(fused(made), vars(given).values(), strict=True):
        torch.testing.assert_close(other, one)


def test_autocast_changes_neither_the_precision_of_the_loss_nor_of_the_gradient():
    made = problem(["projected"], dtype=torch.float32)
    expected = fused(made)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fused(made)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
    for gradient in torch.autograd.grad(found[0], made.learned):
        assert gradient.dtype == torch.float32


def test_frozen_parts_get_no_gradient():
    made = problem(["dense"])
    made.weight.requires_grad_(False)
    fused(made)[0].backward()
    assert made.weight.grad is None
    assert made.features.grad.any()
    assert made.bias.grad.any()


def test_without_gradients_the_loss_is_the_same():
    made = problem(FORMS)
    expected = fused(made)
    with torch.no_grad():
        found = fused(made)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
        assert not other.requires_grad


def test_only_the_loss_has_a_gradient_and_it_can_be_had_once():
    loss, *logged = fused(problem(["dense"]))
    assert not any(x.requires_grad for x in logged)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        loss.backward()


def test_accumulated_batches_and_tied_weights_add_up():
    halves, whole = [problem(["dense"], seed=seed) for seed in (1, 2)], []
    embedding = halves[0].weight.detach().clone().requires_grad_()
    for made, loss_of in [(m, f) for f in (fused, dense) for m in halves]:
        tied = Problem(**{**vars(made), "weight": embedding, "features": made.features + embedding[made.target]})
        whole.append(torch.autograd.grad(loss_of(tied)[0], embedding)[0])
    torch.testing.assert_close(whole[0] + whole[1], whole[2] + whole[3])


def test_teacher_outputs_are_left_as_they_were():
    made = problem(FORMS, temperature=1.0)
    before = [made.soft_labels[0].logits.clone(), made.soft_labels[1].logits.features.clone()]
    before += [labels.logits.logits.clone() for labels in made.soft_labels[2:]]
    fused(made)[0].backward()
    after = [made.soft_labels[0].logits, made.soft_labels[1].logits.features]
    after += [labels.logits.logits for labels in made.soft_labels[2:]]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_teachers_run_in_inference_mode_can_be_learned_from():
    made = problem(["projected", "dense"])
    with torch.inference_mode():
        made.soft_labels = [
            SoftLabels(labels.sentences, labels.positions, labels.logits[torch.arange(3)])
            for labels in made.soft_labels
        ]
    fused(made)[0].backward()
    assert made.features.grad.any()


class _LargestTensor(TorchDispatchMode):
    """Keeps the number of entries of the largest tensor that any operation returns."""

    entries = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        outcome = operation(*args, **(kwargs or {}))
        for x in outcome if isinstance(outcome, (tuple, list)) else [outcome]:
            if isinstance(x, Tensor):
                self.entries = max(self.entries, x.numel())
        return outcome


@pytest.mark.parametrize("form", FORMS[1:])
def test_no_tensor_as_large_as_the_logits_of_the_batch_ever_lives(form, monkeypatch):
    monkeypatch.setattr(fused_kd_loss, "CPU_CHUNK_TOKENS", 8)
    rng, tokens, size, width = torch.Generator().manual_seed(0), 256, 500, 8
    labels = SoftLabels(torch.zeros(tokens).long(), torch.arange(tokens), teacher(form, tokens, size, 2.0, rng, None))
    features = torch.randn(tokens, width, generator=rng, requires_grad=True)
    weight = torch.randn(size, width, generator=rng, requires_grad=True)
    made = Problem(features, weight, None, torch.randint(2, size, (tokens,), generator=rng), [labels], 1)
    with _LargestTensor() as largest:
        dense(made)[0].backward()
    assert largest.entries == tokens * size, "the dense loss should show that this finds such tensors"
    with _LargestTensor() as largest:
        fused(made)[0].backward()
    # a chunk of both, and two more for the passes
    assert largest.entries <= 3 * 8 * size


@pytest.mark.parametrize("size", [1, 127, 128, 129, 300, 512])
def test_place_of_the_largest_logit_is_found_in_rows_of_any_length(size):
    logits = torch.randn(40, size)
    logits[torch.arange(40), torch.randint(size, (40,))] = 9.0
    top, place = fused_kd_loss._first_place(logits)
    assert torch.equal(top, logits.max(1, keepdim=True).values)
    assert torch.equal(place, logits.max(1, keepdim=True).indices)


def test_can_be_used_where_fairseq_is_not_installed():
    program = "import sys; sys.modules['fairseq'] = None; import fairseq_plugins.losses.fused as kd; kd.fused_distil"
    subprocess.run([sys.executable, "-c", program], cwd=REPO, check=True, timeout=120)

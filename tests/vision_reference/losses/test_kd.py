"""Every distillation loss against its formula, written out image by image in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vision_reference.errors import UserError
from vision_reference.losses.by_name import check_labels, parse_kd_loss
from vision_reference.losses.kd import LOSSES

B, K = 6, 5


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    student, teacher = (3 * torch.randn(B, K, generator=generator, dtype=torch.double) for _ in range(2))
    return student, teacher, torch.tensor([0, 4, 2, 2, 1, 3])


def softmax(row, temperature=1.0):
    exponentials = [math.exp(value / temperature) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def pearson(x, y):
    mx, my = sum(x) / len(x), sum(y) / len(y)
    cross = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return cross / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def by_hand_kl(student, teacher, targets, T):
    return T**2 * sum(kl(softmax(t, T), softmax(s, T)) for s, t in zip(student, teacher, strict=True)) / len(student)


def by_hand_dkd(student, teacher, targets, T, alpha, beta):
    total = 0.0
    for s, t, label in zip(student, teacher, targets, strict=True):
        p, q = softmax(t, T), softmax(s, T)
        binary = kl([p[label], 1 - p[label]], [q[label], 1 - q[label]])
        others = [k for k in range(len(p)) if k != label]
        rest = kl([p[k] / (1 - p[label]) for k in others], [q[k] / (1 - q[label]) for k in others])
        total += alpha * binary + beta * rest
    return T**2 * total / len(student)


def by_hand_dist(student, teacher, targets, T, beta, gamma):
    p, q = [softmax(t, T) for t in teacher], [softmax(s, T) for s in student]
    between = sum(1 - pearson(a, b) for a, b in zip(p, q, strict=True)) / len(p)
    columns = list(zip(zip(*p, strict=True), zip(*q, strict=True), strict=True))
    within = sum(1 - pearson(a, b) for a, b in columns) / len(columns)
    return T**2 * (beta * between + gamma * within)


def by_hand_standardized(student, teacher, targets, T):
    def z(row):
        mean = sum(row) / len(row)
        spread = math.sqrt(sum((value - mean) ** 2 for value in row) / len(row))
        return [(value - mean) / (spread + 1e-7) for value in row]

    return by_hand_kl([z(s) for s in student], [z(t) for t in teacher], targets, T)


def by_hand_ttm(student, teacher, targets, T):
    return sum(kl(softmax(t, T), softmax(s)) for s, t in zip(student, teacher, strict=True)) / len(student)


CASES = [
    ("kl", by_hand_kl, {}),
    ("dkd", by_hand_dkd, {"alpha": 1.0, "beta": 8.0}),
    ("dkd:alpha=0.5,beta=2", by_hand_dkd, {"alpha": 0.5, "beta": 2}),
    ("dist", by_hand_dist, {"beta": 1.0, "gamma": 1.0}),
    ("dist:beta=2,gamma=0.25", by_hand_dist, {"beta": 2, "gamma": 0.25}),
    ("standardized", by_hand_standardized, {}),
    ("ttm", by_hand_ttm, {}),
]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("text", "by_hand", "hyper"), CASES, ids=[case[0] for case in CASES])
def test_a_loss_is_its_formula_and_its_gradient_the_difference_quotient(batch, text, by_hand, hyper, temperature):
    student, teacher, targets = batch
    loss = parse_kd_loss(text)
    value = loss(student, teacher, targets, temperature)
    expected = by_hand(student.tolist(), teacher.tolist(), targets.tolist(), temperature, **hyper)
    assert value.item() == pytest.approx(expected, rel=1e-9)
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher, targets, temperature), student.clone().requires_grad_())
    assert loss(student.half(), teacher.half(), targets, temperature).dtype == torch.float32


@pytest.mark.parametrize("name", LOSSES)
def test_the_teacher_gets_no_gradient_and_a_student_that_equals_it_has_nothing_to_learn(batch, name):
    student, teacher, targets = batch
    teacher.requires_grad_()
    parse_kd_loss(name)(student.requires_grad_(), teacher, targets, 2.0).backward()
    assert teacher.grad is None
    same = teacher.detach().clone().requires_grad_()
    parse_kd_loss(name)(same, teacher, targets, 1.0).backward()
    assert same.grad.abs().max() < 1e-9


def test_decoupled_parts_weighted_as_in_plain_distillation_give_plain_distillation(batch):
    """Zhao et al. 2022, section 3.1: KD = TCKD + (1 - p(label)) NCKD, for one image."""
    student, teacher, targets = (part[:1] for part in batch)
    beta = 1 - torch.softmax(teacher, dim=1)[0, targets[0]].item()
    decoupled = parse_kd_loss(f"dkd:alpha=1,beta={beta!r}")(student, teacher, targets, 1.0)
    torch.testing.assert_close(decoupled, LOSSES["kl"](student, teacher, targets, 1.0))


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(0.1, 50), shift=st.floats(-50, 50))
def test_standardized_logits_forget_size_and_shift(scale, shift):
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    other = torch.randn(4, 7, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    loss = parse_kd_loss("standardized")
    torch.testing.assert_close(
        loss(logits, other, None, 2.0), loss(scale * logits + shift, other, None, 2.0), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", LOSSES)
def test_logits_far_apart_and_constant_ones_stay_finite(name):
    targets = torch.tensor([0, 1])
    far = torch.tensor([[60.0, -60.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    loss = parse_kd_loss(name)(far, torch.tensor([[-60.0, 60.0, 0.0], [5.0, 5.0, 5.0]]), targets, 1.0)
    loss.backward()
    assert loss.isfinite()
    assert far.grad.isfinite().all()


def test_a_function_of_ones_own_is_taken_with_its_hyper_parameters(batch, tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text(
        "def squared(student_logits, teacher_logits, targets, temperature, scale=1.0):\n"
        "    return scale * (student_logits - teacher_logits).square().mean()\n\n"
        "squared.needs_labels = True\n\n"
        "def needy(student_logits, teacher_logits, targets, temperature, must):\n    return must\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    student, teacher, targets = batch
    loss = parse_kd_loss("my_losses:squared:scale=3")
    torch.testing.assert_close(loss(student, teacher, targets, 1.0), 3 * (student - teacher).square().mean())
    assert not loss.takes_top_k
    check_labels(loss, "squared", mixed=True, unlabelled=False)  # it needs labels, which may be mixed
    with pytest.raises(UserError, match="squared needs the label of each image"):
        check_labels(loss, "squared", mixed=False, unlabelled=True)
    with pytest.raises(UserError, match="hyper-parameters with defaults"):
        parse_kd_loss("my_losses:needy")
    with pytest.raises(UserError, match="my_losses has no function 'nothing'"):
        parse_kd_loss("my_losses:nothing")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "unknown --kd-loss ''; allowed: kl, dkd, dist, standardized, ttm"),
        ("kll", "unknown --kd-loss 'kll'"),
        ("dkd:gamma=1", "unknown hyper-parameter 'gamma'; the loss has alpha, beta"),
        ("kl:alpha=1", "unknown hyper-parameter 'alpha'; the loss has no hyper-parameters"),
        ("dkd:temperature=1", "unknown hyper-parameter 'temperature'"),
        ("dkd:alpha", "'alpha' is no name=number"),
        ("dkd:alpha=", "'alpha=' is no name=number"),
        ("dkd:alpha=one", "'alpha=one' is no name=number"),
        ("dkd:alpha=1:beta=2", "one colon before the hyper-parameters"),
        ("no_such_module:loss", "cannot import no_such_module"),
    ],
)
def test_a_mistake_is_one_line(text, line):
    with pytest.raises(UserError) as caught:
        parse_kd_loss(text)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)

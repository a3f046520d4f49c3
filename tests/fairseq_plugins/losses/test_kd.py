"""Every distillation loss of words against its formula, written out word by word in float64."""

import math

import pytest
import torch

from fairseq_plugins.criterions.kd_loss_by_name import is_own, parse_kd_loss
from fairseq_plugins.errors import UserError
from fairseq_plugins.losses.kd import LOSSES, NOTHING, as_logits, same_entries
from fairseq_plugins.losses.soft_labels import ProjectedLogits, TopKLogits

R, V = 6, 5


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(11)
    student, teacher = (3 * torch.randn(R, V, generator=generator, dtype=torch.double) for _ in range(2))
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
    for s, t, word in zip(student, teacher, targets, strict=True):
        p, q = softmax(t, T), softmax(s, T)
        others = [v for v in range(len(p)) if v != word]
        total += alpha * kl([p[word], 1 - p[word]], [q[word], 1 - q[word]])
        total += beta * kl([p[v] / (1 - p[word]) for v in others], [q[v] / (1 - q[word]) for v in others])
    return T**2 * total / len(student)


def by_hand_dist(student, teacher, targets, T, beta, gamma):
    p, q = [softmax(t, T) for t in teacher], [softmax(s, T) for s in student]
    between = sum(1 - pearson(a, b) for a, b in zip(p, q, strict=True)) / len(p)
    columns = list(zip(zip(*p, strict=True), zip(*q, strict=True), strict=True))
    return T**2 * (beta * between + gamma * sum(1 - pearson(a, b) for a, b in columns) / len(columns))


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
    expected = by_hand(student.tolist(), teacher.tolist(), targets.tolist(), temperature, **hyper)
    assert loss(student, teacher, targets, temperature).item() == pytest.approx(expected, rel=1e-9)
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher, targets, temperature), student.clone().requires_grad_())
    half = loss(student.half(), teacher.half(), targets, temperature)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("text", LOSSES)
def test_both_halves_of_the_project_mean_the_same_by_a_name(batch, text):
    from vision_reference.losses.by_name import parse_kd_loss as of_images

    theirs, ours = of_images(text), parse_kd_loss(text)
    assert ours(*batch, 2.0).item() == pytest.approx(theirs(*batch, 2.0).item(), rel=1e-9)
    assert ours.takes_top_k == theirs.takes_top_k


@pytest.mark.parametrize("name", LOSSES)
def test_the_teacher_gets_no_gradient_and_a_student_that_equals_it_has_nothing_to_learn(batch, name):
    _, teacher, targets = batch
    teacher.requires_grad_()
    same = teacher.detach().clone().requires_grad_()
    parse_kd_loss(name)(same, teacher, targets, 1.0).backward()
    assert teacher.grad is None
    assert same.grad.abs().max() < 1e-9


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if getattr(loss, "takes_top_k", False)])
def test_entries_that_the_teacher_lacks_have_no_probability_and_no_harm_in_float32(batch, name):
    student, teacher, targets = (part.float() if part.is_floating_point() else part for part in batch)
    wide, padded = same_entries(student, teacher[:, :-1], takes_top_k=True)
    assert wide is student
    assert torch.equal(padded, torch.cat([teacher[:, :-1], torch.full((R, 1), NOTHING)], dim=1))
    found = parse_kd_loss(name)(student.requires_grad_(), padded, targets.clamp(max=V - 2), 1.0)
    nearly = torch.cat([teacher[:, :-1], torch.full((R, 1), -40.0)], dim=1)
    expected = parse_kd_loss(name)(student.detach().double(), nearly.double(), targets.clamp(max=V - 2), 1.0)
    found.backward()
    # of `dist` the correlation of a column without spread counts as none
    assert found.item() == pytest.approx(expected.item(), rel=1e-4 if name != "dist" else 0.5)
    assert student.grad.isfinite().all()


def test_a_loss_of_logits_sees_the_entries_that_both_know(batch):
    student, teacher, _ = batch
    narrow, same = same_entries(student, teacher[:, :3], takes_top_k=False)
    assert torch.equal(narrow, student[:, :3])
    assert same.shape == (R, 3)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 64.0])
def test_logits_of_every_form_have_the_teachers_softmax_at_the_temperature(temperature):
    generator = torch.Generator().manual_seed(0)
    features, weight = torch.randn(R, 4, generator=generator), torch.randn(V, 4, generator=generator)
    dense = features @ weight.T
    torch.testing.assert_close(as_logits(ProjectedLogits(features, weight), temperature), dense)
    order = dense.argsort(dim=1, descending=True)
    largest = dense.gather(1, order)
    whole = TopKLogits(order, largest - largest[:, :1], torch.full((R,), -torch.inf), V, "uniform")
    torch.testing.assert_close(as_logits(whole, temperature), dense - largest[:, :1])
    rest = (largest[:, 2:] / temperature).logsumexp(dim=1)
    dropped = as_logits(TopKLogits(order[:, :2], largest[:, :2], rest, V, "drop"), temperature)
    assert dropped.isfinite().all()
    expected = torch.zeros(R, V).scatter(1, order[:, :2], torch.softmax(largest[:, :2] / temperature, dim=1))
    torch.testing.assert_close(torch.softmax(dropped / temperature, dim=1), expected)


def test_a_function_of_ones_own_is_taken_with_its_hyper_parameters(batch, tmp_path, monkeypatch):
    (tmp_path / "word_losses.py").write_text(
        "def squared(student_logits, teacher_logits, targets, temperature, scale=1.0):\n"
        "    return scale * (student_logits - teacher_logits).square().mean()\n\n"
        "def needy(student_logits, teacher_logits, targets, temperature, must):\n    return must\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    student, teacher, targets = batch
    loss = parse_kd_loss("word_losses:squared:scale=3")
    torch.testing.assert_close(loss(student, teacher, targets, 1.0), 3 * (student - teacher).square().mean())
    assert not loss.takes_top_k
    assert is_own("word_losses:squared:scale=3")
    assert not is_own("dkd:alpha=1")
    with pytest.raises(UserError, match="hyper-parameters with defaults"):
        parse_kd_loss("word_losses:needy")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("dkt", "unknown --kd-loss 'dkt'; allowed: kl, dkd, dist, standardized, ttm, each"),
        ("dkd:gamma=1", "unknown hyper-parameter 'gamma'; the loss has alpha, beta"),
        ("kl:alpha=1", "unknown hyper-parameter 'alpha'; the loss has no hyper-parameters"),
        ("dkd:alpha=much", "'alpha=much' is no name=number, as in alpha=1"),
        ("dkd:alpha=1:beta=2", "one colon before the hyper-parameters, commas between them"),
        ("no.such.module:loss", "cannot import no.such.module .* is PYTHONPATH set to its folder"),
        ("math:no_such", "math has no function 'no_such'"),
    ],
)
def test_a_loss_that_there_is_not_is_named_in_one_line_of_the_words_that_images_have(text, problem):
    from vision_reference.errors import UserError as OfImages
    from vision_reference.losses.by_name import parse_kd_loss as of_images

    with pytest.raises(UserError, match=problem) as ours:
        parse_kd_loss(text)
    with pytest.raises(OfImages) as theirs:
        of_images(text)
    assert str(ours.value) == str(theirs.value)

"""What a store keeps of a teacher, against the definitions in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vision_reference.losses.kd import kd_divergence
from vision_reference.losses.wide import average
from vision_reference.soft_labels.codec import decode, encode

TEMPERATURES = (1.0, 2.0, 3.0, 64.0)


def logits(seed, batch=5, classes=30, scale=4.0):
    return scale * torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed)) + 7


def rebuilt(parts, classes, number, temperature, tail="uniform"):
    rest = parts["rest"][:, number] if "rest" in parts else None
    z = decode(parts["logits"], parts.get("indices"), rest, classes=classes, temperature=temperature, tail=tail)
    return torch.softmax(z.double() / temperature, dim=1)


def expected(z, k, temperature, tail):
    """The k most probable classes as they are, the others evenly or not at all, in float64."""
    p = torch.softmax(z.double() / temperature, dim=1)
    order = p.argsort(dim=1, descending=True)
    kept = torch.zeros_like(p, dtype=torch.bool).scatter(1, order[:, :k], True)
    if tail == "drop":
        p = torch.where(kept, p, 0)
        return p / p.sum(dim=1, keepdim=True)
    return torch.where(kept, p, torch.where(kept, 0, p).sum(dim=1, keepdim=True) / (p.shape[1] - k))


@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.1, 4.0, 30.0]))
@settings(max_examples=30, deadline=None)
def test_all_classes_serve_every_temperature_to_float16_accuracy(seed, scale):
    z = logits(seed, scale=scale)
    parts = encode(z, None, [])
    assert parts.keys() == {"logits"}
    assert parts["logits"].dtype == torch.float16
    assert parts["logits"].amax(dim=1).eq(0).all()
    for temperature in (0.5, 1.0, 3.0, 64.0):
        p = torch.softmax(z.double() / temperature, dim=1)
        # A logit is off by at most 2**-11 of its distance to the largest, so p changes by p * distance * 2**-11 / T.
        torch.testing.assert_close(rebuilt(parts, 30, 0, temperature), p, rtol=0, atol=6e-4)


@given(seed=st.integers(0, 2**31), k=st.integers(1, 29), tail=st.sampled_from(["uniform", "drop"]))
@settings(max_examples=40, deadline=None)
def test_top_k_keeps_the_largest_and_accounts_for_the_rest(seed, k, tail):
    z = logits(seed)
    parts = encode(z, k, TEMPERATURES)
    assert parts["logits"].shape == parts["indices"].shape == (5, k)
    for number, temperature in enumerate(TEMPERATURES):
        torch.testing.assert_close(
            rebuilt(parts, 30, number, temperature, tail), expected(z, k, temperature, tail), rtol=5e-3, atol=1e-7
        )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_tail_far_too_small_for_float32_sums_is_kept(temperature):
    z = torch.tensor([[0.0, -20.0, -40.0, -41.0, -42.0]])
    parts = encode(z, 2, TEMPERATURES)
    p = rebuilt(parts, 5, TEMPERATURES.index(temperature), temperature)
    torch.testing.assert_close(p, expected(z, 2, temperature, "uniform"), rtol=1e-3, atol=0)
    assert p.min() > 0


def test_divergence_and_gradient_are_finite_where_a_teacher_gives_no_probability():
    z = logits(1)
    parts = encode(z, 3, [1.0])
    teacher = decode(**parts | {"rest": parts["rest"][:, 0]}, classes=30, temperature=1.0, tail="drop")
    student = logits(2).requires_grad_()
    loss = kd_divergence(student, teacher, 1.0)
    loss.backward()
    p, q = expected(z, 3, 1.0, "drop"), torch.log_softmax(student.detach().double(), dim=1)
    assert loss.item() == pytest.approx((torch.xlogy(p, p) - p * q).sum(dim=1).mean().item(), rel=1e-3)
    torch.testing.assert_close(student.grad.double(), (q.exp() - p) / 5, rtol=0, atol=1e-4)


@given(seed=st.integers(0, 2**31), k=st.integers(1, 29), temperature=st.sampled_from(TEMPERATURES))
@settings(max_examples=30, deadline=None)
def test_bucket_is_the_divergence_over_k_classes_and_one_more(seed, k, temperature):
    z, y = logits(seed), logits(seed + 1).double().requires_grad_()
    parts = encode(z, k, [temperature])
    teacher = decode(
        parts["logits"], parts["indices"], parts["rest"][:, 0], classes=30, temperature=temperature, tail="bucket"
    )
    loss = kd_divergence(y, teacher, temperature)
    p = torch.softmax(parts["logits"].double() / temperature, 1)  # rounded as stored; its mass is left to the rest
    mass = torch.logsumexp(parts["logits"].double() / temperature, 1).exp()
    rest = parts["rest"][:, 0].double().exp()
    p = torch.cat([p * (mass / (mass + rest)).unsqueeze(1), (rest / (mass + rest)).unsqueeze(1)], 1)
    q = torch.softmax(y / temperature, 1)
    kept = q.gather(1, parts["indices"])
    beyond = q.scatter(1, parts["indices"], 0).sum(1, keepdim=True)
    expected = temperature**2 * (torch.xlogy(p, p) - p * torch.cat([kept, beyond], 1).log()).sum(1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-9)
    (found,), (wanted,) = torch.autograd.grad(loss, y), torch.autograd.grad(expected, y)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 64.0])
def test_several_teachers_are_averaged_in_probability(temperature):
    first, second = logits(3), logits(4)
    mean = (torch.softmax(first.double() / temperature, 1) + torch.softmax(second.double() / temperature, 1)) / 2
    joint = average([first, second], temperature)
    torch.testing.assert_close(torch.softmax(joint / temperature, dim=1), mean, rtol=1e-9, atol=0)
    assert average([first], temperature) is first


def test_extreme_logits_are_cut_to_what_float16_holds():
    parts = encode(torch.tensor([[1e6, 0.0, -1e6]]), None, [])
    assert parts["logits"].tolist() == [[0.0, -65504.0, -65504.0]]

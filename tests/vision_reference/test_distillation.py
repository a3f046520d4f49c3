"""The distillation loss against closed forms, and the teacher's isolation."""

import copy
import math
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import resnet18

from vision_reference.distillation import Teacher, distillation_loss
from vision_reference.losses.kd import kd_divergence
from vision_reference.losses.labels import label_loss
from vision_reference.networks.folding import fold_batch_norms


def logits(seed, batch=6, classes=10, scale=3.0):
    return scale * torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed))


def numpy_kd(student, teacher, temperature):
    """The definition, written out in float64: T^2 * mean over the batch of sum_k p_k * log(p_k / q_k)."""

    def lprobs(z):
        z = z.double().numpy() / temperature
        z = z - z.max(axis=1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    q, p = lprobs(student), lprobs(teacher)
    return temperature**2 * (np.exp(p) * (p - q)).sum(axis=1).mean()


@given(
    seed=st.integers(0, 2**31), temperature=st.sampled_from([0.5, 1, 2, 3, 64]), classes=st.sampled_from([2, 10, 1000])
)
@settings(max_examples=60, deadline=None)
def test_kd_equals_the_float64_closed_form(seed, temperature, classes):
    student, teacher = logits(seed, classes=classes), logits(seed + 1, classes=classes)
    value = kd_divergence(student, teacher, temperature)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(numpy_kd(student, teacher, temperature), rel=1e-6)


def test_kd_of_a_hand_worked_case():
    # Two classes: the teacher says (3/4, 1/4), the student (1/2, 1/2).
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kd_divergence(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-6)
    # At T = 2 the teacher says sqrt(3) : 1.
    p = math.sqrt(3) / (math.sqrt(3) + 1)
    expected = 4 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    assert kd_divergence(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 64.0])
@pytest.mark.parametrize("kd_weight", [0.0, 0.3, 1.0])
def test_gradient_equals_finite_differences(temperature, kd_weight):
    student = logits(1, batch=3, classes=5).double().requires_grad_()
    teacher, labels = logits(2, batch=3, classes=5).double(), torch.tensor([0, 3, 4])
    total = partial(
        distillation_loss,
        targets=labels,
        teacher_logits=teacher,
        temperature=temperature,
        kd_weight=kd_weight,
        label_smoothing=0.1,
    )
    assert torch.autograd.gradcheck(lambda z: total(z).total, (student,))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 64.0])
def test_gradient_equals_its_closed_form_in_float32(temperature):
    student, teacher = logits(3).requires_grad_(), logits(4)
    kd_divergence(student, teacher, temperature).backward()
    q, p = (F.softmax(z.detach().double() / temperature, dim=1) for z in (student, teacher))
    torch.testing.assert_close(student.grad.double(), temperature * (q - p) / len(q), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.01, 1.0, 3.0, 1e5])
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(temperature):
    teacher = logits(5)
    student = teacher.clone().requires_grad_()
    value = kd_divergence(student, teacher, temperature)
    value.backward()
    assert value.item() == 0
    assert student.grad.abs().max() < 1e-9  # rounding in float64


def test_kd_does_not_see_a_constant_added_to_all_logits():
    student, teacher = logits(6), logits(7)
    shifted = kd_divergence(student + 5, teacher - 3, 2.0)
    torch.testing.assert_close(shifted, kd_divergence(student, teacher, 2.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("temperature", [1e3, 1e4, 1e5])
def test_for_large_temperature_kd_approaches_half_the_mean_squared_centred_difference(temperature):
    student, teacher = logits(8), logits(9)
    difference = teacher.double() - student.double()
    difference -= difference.mean(dim=1, keepdim=True)
    limit = difference.square().sum(dim=1).mean().item() / (2 * difference.shape[1])
    assert kd_divergence(student, teacher, temperature).item() == pytest.approx(limit, rel=20 / temperature)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 64.0, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kd_and_its_gradient_stay_finite_for_extreme_logits(temperature, dtype):
    extreme = torch.tensor([[1e4, -1e4, 0.0, 1e4], [-1e4, -1e4, -1e4, 1e4]], dtype=dtype)
    student, teacher = extreme.clone().requires_grad_(), extreme.flip(1)
    value = kd_divergence(student, teacher, temperature)
    value.backward()
    assert value.isfinite()
    assert value >= 0
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5])
def test_without_weight_on_the_teacher_the_loss_is_torchs_label_smoothed_cross_entropy(alpha):
    student, teacher, labels = logits(10), logits(11), torch.arange(6)
    losses = distillation_loss(student, labels, teacher, temperature=3.0, kd_weight=0.0, label_smoothing=alpha)
    plain = distillation_loss(student, labels, None, temperature=3.0, kd_weight=0.0, label_smoothing=alpha)
    expected = nn.CrossEntropyLoss(label_smoothing=alpha)(student, labels)
    assert losses.total == plain.total == losses.ce == expected


def test_label_smoothing_spreads_alpha_over_all_classes():
    z, labels, alpha = logits(12), torch.tensor([1, 2, 3, 4, 5, 6]), 0.2
    smoothed = (1 - alpha) * F.one_hot(labels, 10) + alpha / 10
    expected = -(smoothed.double() * F.log_softmax(z.double(), dim=1)).sum(dim=1).mean()
    assert label_loss(z, labels, alpha).item() == pytest.approx(expected.item(), rel=1e-6)


@given(kd_weight=st.floats(0, 1), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_total_is_the_weighted_sum_of_its_reported_parts(kd_weight, seed):
    student, teacher, labels = logits(seed), logits(seed + 1), torch.arange(6)
    losses = distillation_loss(student, labels, teacher, temperature=2.0, kd_weight=kd_weight, label_smoothing=0.1)
    expected = kd_weight * losses.kd.item() + (1 - kd_weight) * losses.ce.item()
    assert losses.total.item() == pytest.approx(expected, rel=1e-6)


def test_mixed_labels_give_the_mean_of_their_labels_losses():
    z = logits(13, batch=1)
    mixed = torch.zeros(1, 10)
    mixed[0, 2], mixed[0, 7] = 0.3, 0.7
    expected = 0.3 * label_loss(z, torch.tensor([2]), 0.0) + 0.7 * label_loss(z, torch.tensor([7]), 0.0)
    torch.testing.assert_close(label_loss(z, mixed, 0.0), expected)


def test_loss_is_float32_under_bf16_autocast():
    student, teacher = logits(14).bfloat16(), logits(15).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = distillation_loss(
            student, torch.arange(6), teacher, temperature=2.0, kd_weight=0.5, label_smoothing=0.1
        )
    assert {loss.dtype for loss in losses} == {torch.float32}
    assert losses.kd.item() == pytest.approx(numpy_kd(student.float(), teacher.float(), 2.0), rel=1e-6)


@pytest.mark.parametrize(("shape", "temperature"), [((6, 9), 1.0), ((6, 10), 0.0), ((6, 10), -1.0)])
def test_wrong_shapes_and_temperatures_are_refused(shape, temperature):
    with pytest.raises(ValueError, match="differ|temperature"):
        kd_divergence(torch.zeros(6, 10), torch.zeros(shape), temperature)


def test_teacher_answers_as_the_frozen_network_in_evaluation_mode_and_never_changes():
    torch.manual_seed(0)
    network = resnet18(num_classes=4)
    before = copy.deepcopy(network).eval()
    images = torch.randn(2, 3, 32, 32)
    teacher = Teacher(network, torch.device("cpu"), torch.contiguous_format, nullcontext)
    answer = teacher(images)
    with torch.no_grad():
        torch.testing.assert_close(answer, before(images), rtol=1e-4, atol=1e-5)  # batch norms are folded
    student = nn.Linear(4, 4)
    kd_divergence(student(torch.randn(2, 4)), answer, 1.0).backward()
    assert student.weight.grad.any()
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before.state_dict()[name]), name


def test_under_autocast_a_teacher_with_its_weights_in_bf16_answers_to_the_bit_as_autocast_does():
    torch.manual_seed(0)
    network = resnet18(num_classes=4).eval()
    images = torch.randn(2, 3, 32, 32)
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    teacher = Teacher(network, torch.device("cpu"), torch.contiguous_format, autocast)
    with torch.inference_mode(), autocast():
        expected = fold_batch_norms(network)(images)
    assert teacher.model.conv1.weight.dtype == torch.bfloat16
    assert network.conv1.weight.dtype == torch.float32
    assert torch.equal(teacher(images), expected)


@given(seed=st.integers(0, 2**31), alpha=st.sampled_from([0.05, 0.1, 0.5, 1.0]), classes=st.sampled_from([2, 10, 1000]))
@settings(max_examples=30, deadline=None)
def test_max_suppression_equals_its_formula_in_float64(seed, alpha, classes):
    z = logits(seed, classes=classes)
    labels = torch.arange(6) % classes
    z64 = z.double().numpy()
    lse = np.log(np.exp(z64 - z64.max(1, keepdims=True)).sum(1)) + z64.max(1)
    expected = (lse - z64[np.arange(6), labels.numpy()] + alpha * (z64.max(1) - z64.mean(1))).mean()
    assert label_loss(z, labels, 0.0, alpha).item() == pytest.approx(expected, rel=1e-5)
    assert label_loss(z.double(), labels, 0.0, alpha).item() == pytest.approx(expected, rel=1e-12)


def test_max_suppression_equals_label_smoothing_where_the_network_is_right_and_exceeds_it_elsewhere():
    z = logits(5).double()
    right, wrong = z.argmax(1), z.argmin(1)
    assert label_loss(z, right, 0.0, 0.1).item() == pytest.approx(label_loss(z, right, 0.1).item(), rel=1e-12)
    gap = 0.1 * (z.amax(1) - z.gather(1, wrong[:, None])[:, 0]).mean().item()
    assert label_loss(z, wrong, 0.0, 0.1).item() == pytest.approx(label_loss(z, wrong, 0.1).item() + gap, rel=1e-12)


@pytest.mark.parametrize("kd_weight", [0.0, 0.3])
def test_gradient_of_max_suppression_equals_finite_differences(kd_weight):
    student = logits(1, batch=3, classes=5).double().requires_grad_()
    shares = torch.softmax(logits(6, batch=3, classes=5).double(), 1)  # labels of mixed images
    for targets in (torch.tensor([0, 3, 4]), shares):
        total = partial(
            distillation_loss,
            targets=targets,
            teacher_logits=logits(2, batch=3, classes=5).double(),
            temperature=2.0,
            kd_weight=kd_weight,
            label_smoothing=0.0,
            max_suppression=0.2,
        )
        assert torch.autograd.gradcheck(lambda z, total=total: total(z).total, (student,))

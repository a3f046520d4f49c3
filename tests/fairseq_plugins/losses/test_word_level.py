"""The arithmetic against closed forms in float64, finite differences, and properties."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_plugins.losses.soft_labels import SoftLabels
from fairseq_plugins.losses.word_level import distil, kl_divergence

REPO = Path(__file__).parents[3]


def softmax(row, temperature=1.0):
    exponentials = [math.exp(z / temperature) for z in row]
    return [e / sum(exponentials) for e in exponentials]


def kl_by_hand(teacher, student, temperature):
    q = softmax(student, temperature)
    return sum(p * math.log(p / q[i]) for i, p in enumerate(softmax(teacher, temperature)))


def problem(seed=0, sentences=2, length=3, student_size=7, teacher_size=5, dtype=torch.float64):
    """Random logits; the teacher speaks about all but the first token of each sentence."""
    rng = torch.Generator().manual_seed(seed)
    student = torch.randn(sentences * length, student_size, generator=rng, dtype=dtype)
    rows, columns = torch.ones(sentences, length - 1).nonzero(as_tuple=True)
    teacher = torch.randn(len(rows), teacher_size, generator=rng, dtype=dtype)
    label_loss = torch.rand(sentences * length, generator=rng, dtype=dtype)
    return student, label_loss, SoftLabels(rows, columns + 1, teacher)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 64.0])
def test_kl_equals_the_definition_worked_out_in_plain_python(temperature):
    student, teacher = [0.3, -1.2, 2.0, 0.0], [1.5, 0.1, -0.7, 0.2]
    lprobs = torch.log_softmax(torch.tensor([student], dtype=torch.float64), -1)
    kl = kl_divergence(lprobs, torch.tensor([teacher], dtype=torch.float64), temperature)
    assert kl.item() == pytest.approx(kl_by_hand(teacher, student, temperature), rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_entries_that_only_the_student_knows_have_teacher_probability_zero(temperature):
    student, teacher = [0.3, -1.2, 2.0, 0.7], [1.5, 0.1, -0.7]
    lprobs = torch.log_softmax(torch.tensor([student], dtype=torch.float64), -1)
    short = kl_divergence(lprobs, torch.tensor([teacher], dtype=torch.float64), temperature)
    assert short.item() == pytest.approx(kl_by_hand(teacher, student, temperature), rel=1e-12)
    never = kl_divergence(lprobs, torch.tensor([[*teacher, -1e9]], dtype=torch.float64), temperature)
    torch.testing.assert_close(short, never)


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.9), (2.0, 0.9), (3.0, 1.0), (2.0, 0.0)])
def test_blended_loss_equals_its_definition_token_by_token(temperature, weight):
    student, label_loss, labels = problem()
    blended = distil(
        torch.log_softmax(student, -1), label_loss, [labels], sentences=2, kd_weight=weight, temperature=temperature
    )
    expected, kd_total = label_loss.tolist(), 0.0
    for token, (sentence, position) in enumerate(zip(labels.sentences, labels.positions, strict=True)):
        row = int(sentence) * 3 + int(position)
        kd = temperature**2 * kl_by_hand(labels.logits[token].tolist(), student[row].tolist(), temperature)
        expected[row] = weight * kd + (1 - weight) * expected[row]
        kd_total += kd
    assert blended.loss.tolist() == pytest.approx(expected, rel=1e-12)
    assert blended.kd_loss.item() == pytest.approx(kd_total, rel=1e-12)
    assert blended.taught.item() == 4


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradient_equals_finite_differences(temperature):
    student, label_loss, labels = problem()
    weights = torch.rand(6, 7, dtype=torch.float64)

    def loss(logits):
        lprobs = torch.log_softmax(logits, -1)
        blended = distil(
            lprobs,
            label_loss - (weights * lprobs).sum(-1),
            [labels],
            sentences=2,
            kd_weight=0.7,
            temperature=temperature,
        )
        return blended.loss.sum()

    assert torch.autograd.gradcheck(loss, student.requires_grad_())


def test_gradient_of_the_teacher_part_is_temperature_times_the_difference_of_probabilities():
    student, label_loss, labels = problem(teacher_size=7)
    student.requires_grad_()
    distil(
        torch.log_softmax(student, -1), label_loss, [labels], sentences=2, kd_weight=1.0, temperature=2.0
    ).loss.sum().backward()
    rows = labels.sentences * 3 + labels.positions
    expected = torch.zeros_like(student)
    expected[rows] = 2.0 * (torch.softmax(student[rows] / 2, -1) - torch.softmax(labels.logits / 2, -1)).detach()
    torch.testing.assert_close(student.grad, expected)


def test_strength_scales_the_weight_of_its_own_tokens_only():
    student, label_loss, labels = problem()
    lprobs = torch.log_softmax(student, -1)
    first = SoftLabels(labels.sentences[:2], labels.positions[:2], labels.logits[:2], strength=0.5)
    second = SoftLabels(labels.sentences[2:], labels.positions[2:], labels.logits[2:])
    both = distil(lprobs, label_loss, [first, second], sentences=2, kd_weight=0.8, temperature=1.0).loss
    half = distil(lprobs, label_loss, [labels], sentences=2, kd_weight=0.4, temperature=1.0).loss
    full = distil(lprobs, label_loss, [labels], sentences=2, kd_weight=0.8, temperature=1.0).loss
    torch.testing.assert_close(both, torch.cat([half[:3], full[3:]]))


def test_without_soft_labels_the_label_loss_is_left_as_it_is():
    student, label_loss, _ = problem()
    blended = distil(student, label_loss, [], sentences=2, kd_weight=0.9, temperature=2.0)
    assert torch.equal(blended.loss, label_loss)
    assert (blended.kd_loss.item(), blended.taught.item(), blended.agreed.item()) == (0, 0, 0)


def test_with_weight_one_labels_of_taught_tokens_have_no_gradient():
    student, label_loss, labels = problem()
    label_loss.requires_grad_()
    distil(student, label_loss, [labels], sentences=2, kd_weight=1.0, temperature=1.0).loss.sum().backward()
    assert label_loss.grad.view(2, 3).tolist() == [[1, 0, 0], [1, 0, 0]]


def test_agreement_counts_tokens_with_the_same_most_probable_entry():
    lprobs = torch.log_softmax(torch.tensor([[3.0, 1.0, 0.0], [0.0, 5.0, 1.0], [0.0, 1.0, 9.0]]), -1)
    labels = SoftLabels(torch.tensor([0, 0, 0]), torch.arange(3), torch.tensor([[9.0, 1.0], [2.0, 1.0], [0.0, 1.0]]))
    blended = distil(lprobs, torch.zeros(3), [labels], sentences=1, kd_weight=0.9, temperature=1.0)
    # the third token's best entry is one that the teacher does not know
    assert blended.agreed.item() == 1


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_half_precision_teachers_are_softened_in_float32(precision):
    student, _, labels = problem(dtype=torch.float32)
    lprobs = torch.log_softmax(student, -1)
    half = labels.logits.to(precision)
    kl = kl_divergence(lprobs[:4], half, 2.0)
    assert kl.dtype == torch.float32
    torch.testing.assert_close(kl, kl_divergence(lprobs[:4], half.float(), 2.0), rtol=0, atol=0)


def test_teachers_run_in_inference_mode_can_be_learned_from():
    student, label_loss, labels = problem()
    student.requires_grad_()
    with torch.inference_mode():
        logits = labels.logits * 1
    inferred = SoftLabels(labels.sentences, labels.positions, logits)
    lprobs = torch.log_softmax(student, -1)
    distil(lprobs, label_loss, [inferred], sentences=2, kd_weight=0.9, temperature=2.0).loss.sum().backward()
    assert student.grad.abs().sum() > 0


rows_of_logits = st.lists(st.floats(-20, 20), min_size=6, max_size=6)


@settings(max_examples=60, deadline=None)
@given(student=rows_of_logits, teacher=rows_of_logits, temperature=st.floats(0.3, 64), constant=st.floats(-50, 50))
def test_kl_is_never_negative_zero_for_equals_and_blind_to_a_constant(student, teacher, temperature, constant):
    student, teacher = (torch.tensor([row], dtype=torch.float64) for row in (student, teacher))
    lprobs = torch.log_softmax(student, -1)
    kl = kl_divergence(lprobs, teacher, temperature)
    assert kl.item() > -1e-12
    torch.testing.assert_close(kl, kl_divergence(lprobs, teacher + constant, temperature), rtol=1e-7, atol=1e-10)
    assert abs(kl_divergence(torch.log_softmax(teacher, -1), teacher, temperature).item()) < 1e-12


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(4)), st.integers(0, 3))
def test_loss_does_not_depend_on_batch_order_or_padding(seed, order, padding):
    student, label_loss, labels = problem(seed, sentences=4)
    lprobs = torch.log_softmax(student, -1)
    loss = distil(lprobs, label_loss, [labels], sentences=4, kd_weight=0.9, temperature=2.0).loss

    # the same sentences in another order, each with more padding behind it
    order = torch.tensor(order)
    padded_lprobs = torch.nn.functional.pad(lprobs.view(4, 3, 7)[order], (0, 0, 0, padding), value=-1.0)
    padded_label_loss = torch.nn.functional.pad(label_loss.view(4, 3)[order], (0, padding))
    moved = SoftLabels(labels.sentences, labels.positions, labels.logits.view(4, 2, 5)[order].flatten(0, 1))
    again = distil(
        padded_lprobs.flatten(0, 1), padded_label_loss.flatten(), [moved], sentences=4, kd_weight=0.9, temperature=2.0
    ).loss
    torch.testing.assert_close(again.view(4, 3 + padding)[:, :3], loss.view(4, 3)[order])
    assert again.view(4, 3 + padding)[:, 3:].abs().sum() == 0


def test_left_out_prefix_moves_the_soft_labels_with_the_remaining_columns():
    logits = torch.arange(8.0).view(4, 2)
    labels = SoftLabels(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 1, 3]), logits, strength=0.5)
    rest = labels.after_prefix(2)
    assert (rest.sentences.tolist(), rest.positions.tolist(), rest.strength) == ([0, 1], [0, 1], 0.5)
    assert torch.equal(rest.logits, logits[[1, 3]])


def test_arithmetic_can_be_used_where_fairseq_is_not_installed():
    program = "import sys; sys.modules['fairseq'] = None; import fairseq_plugins.losses.word_level as kd; kd.distil"
    subprocess.run([sys.executable, "-c", program], cwd=REPO, check=True, timeout=120)

"""`--kd-loss` in the criterion: other losses than KL over the words that a teacher teaches, and whose code is run."""

import sys

import pytest
import torch
from fairseq import options, tasks
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss

from fairseq_plugins.errors import UserError

MIXED = [0, 61, 121, 5, 70, 130, 3]
OWN = """
def squared(student_logits, teacher_logits, targets, temperature, scale=1.0):
    assert len(student_logits) == len(teacher_logits) == len(targets)
    return scale * ((student_logits - teacher_logits.detach()) / temperature).square().mean()


def by_word(student_logits, teacher_logits, targets, temperature):
    return (student_logits - teacher_logits).square().mean(dim=1)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's, `own_word_losses`, not imported yet."""
    (tmp_path / "own_word_losses.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_word_losses", None)


def student(toy, *flags):
    teachers = ["--teachers", f"en-de={toy.de},en-ru={toy.ru}"]
    return [*toy.multilingual, *toy.tiny, *toy.training, *toy.task, *teachers, *flags]


def parse(argv):
    return options.parse_args_and_arch(options.get_training_parser(), input_args=[str(word) for word in argv])


def expected_loss(task, model, criterion, sample, kd_loss, cut, temperature, kd_weight):
    """The blended loss written out with the images' own functions: teacher by teacher, in float64."""
    with torch.no_grad():
        logits = model(**sample["net_input"])[0].flatten(0, 1)
        target = sample["target"].flatten()
        label_loss, _ = label_smoothed_nll_loss(logits.log_softmax(-1), target, criterion.eps, 1, reduce=False)
        shares, total = torch.ones(len(target)), 0.0
        for labels in task.soft_labels(sample):
            rows = labels.sentences * sample["target"].size(1) + labels.positions
            teacher = labels.logits if isinstance(labels.logits, torch.Tensor) else labels.logits.dense()
            ours = logits[rows].double()
            missing = ours.size(1) - teacher.size(1)
            assert missing > 0  # language tokens
            if cut:
                ours = ours[:, : teacher.size(1)]
            else:
                teacher = torch.cat([teacher, torch.full((len(teacher), missing), -1e30)], dim=1)
            total += kd_weight * len(rows) * kd_loss(ours, teacher.double(), target[rows], temperature).item()
            shares[rows] -= kd_weight
        return total + (shares * label_loss.squeeze(1)).sum().item()


@pytest.mark.parametrize(
    ("text", "cut"), [("dkd:alpha=0.5,beta=2", False), ("ttm", False), ("standardized", True), ("own", True)]
)
def test_another_loss_is_a_mean_over_the_words_of_each_teacher(toy, setup, batch, own, text, cut):
    from vision_reference.losses.by_name import parse_kd_loss as of_images

    text = "own_word_losses:squared:scale=3" if text == "own" else text
    task, model, criterion = setup(student(toy, "--kd-loss", text, "--kd-temperature", 2, "--kd-weight", 0.75))
    sample = batch(task, MIXED)
    soft_labels = task.soft_labels(sample)
    assert len(soft_labels) == 2
    loss, _, logged = criterion(model.eval(), {**sample, "soft_labels": soft_labels})
    expected = expected_loss(task, model, criterion, sample, of_images(text), cut, 2.0, 0.75)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert logged["kd_ntokens"] == sum(len(labels.sentences) for labels in soft_labels)
    # the same token by token; gradients reach both ends of the student
    rows, _, _ = criterion(model, {**sample, "soft_labels": soft_labels}, reduce=False)
    assert rows.sum().item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert all(one.isfinite().all() for one in gradients.values())
    assert {"encoder.embed_tokens.weight", "decoder.layers.0.fc2.weight"} <= gradients.keys()


def test_which_way_is_taken_is_said_once(toy, setup, batch, caplog):
    for text, said in (("kl", "from decoder features"), ("dist", "from logits: --kd-loss dist needs them")):
        task, model, criterion = setup(student(toy, "--kd-loss", text))
        sample = batch(task, MIXED)
        with caplog.at_level("INFO", logger="fairseq_plugins"):
            criterion(model, {**sample, "soft_labels": task.soft_labels(sample)})
        assert f"distillation loss {said}" in caplog.text


def test_a_loss_that_returns_no_mean_is_told_so(toy, setup, batch, own):
    task, model, criterion = setup(student(toy, "--kd-loss", "own_word_losses:by_word"))
    sample = batch(task, MIXED)
    with pytest.raises(UserError, match=r"by_word returned shape \(\d+,\): a loss returns one number, the mean over"):
        criterion(model, {**sample, "soft_labels": task.soft_labels(sample)})


def test_nothing_is_imported_because_a_checkpoint_names_it(toy, own):
    """fairseq-validate builds the criterion that a checkpoint names; only a training has named it itself."""
    args = parse(student(toy, "--kd-loss", "own_word_losses:squared"))
    task = tasks.setup_task(args)
    task.build_model(args, from_checkpoint=True)
    task.build_criterion(args)
    assert "own_word_losses" not in sys.modules
    task.build_model(args)
    task.build_criterion(args)
    assert "own_word_losses" in sys.modules


def test_a_loss_that_there_is_not_is_refused_in_one_line(toy):
    args = parse(student(toy, "--kd-loss", "dkt"))
    with pytest.raises(UserError, match="unknown --kd-loss 'dkt'; allowed: kl, dkd, dist, standardized, ttm"):
        tasks.setup_task(args).build_criterion(args)

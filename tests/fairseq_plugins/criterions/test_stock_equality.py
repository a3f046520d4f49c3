"""Without a teacher the criterion is stock fairseq's, to the last bit."""

import pytest
import torch
from fairseq import metrics

STOCK = ["--task", "translation", "--criterion", "label_smoothed_cross_entropy"]
OURS = ["--task", "translation_kd", "--criterion", "label_smoothed_kd_cross_entropy"]
VARIANTS = [
    [],
    ["--label-smoothing", "0"],
    ["--report-accuracy"],
    ["--ignore-prefix-size", "1"],
    ["--sentence-avg"],
    ["--report-accuracy", "--ignore-prefix-size", "2", "--label-smoothing", "0.3"],
]


def equal(ours, stock):
    return ours.keys() == stock.keys() and all(
        torch.equal(torch.as_tensor(ours[k]), torch.as_tensor(stock[k])) for k in stock
    )


def step(toy, setup, batch, argv, reduce=True):
    task, model, criterion = setup([toy.data, "-s", "en", "-t", "de", *toy.tiny, *toy.training, *argv])
    loss, sample_size, logged = criterion(model, batch(task, range(8)), reduce=reduce)
    loss.sum().backward()
    return loss, sample_size, logged, [weight.grad for weight in model.parameters()]


@pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)
@pytest.mark.parametrize("task", ["translation", "translation_kd"])
def test_loss_sample_size_logging_and_gradients_equal_the_stock_criterion(toy, setup, batch, variant, task):
    stock_loss, stock_size, stock_logged, stock_grads = step(toy, setup, batch, [*STOCK, *variant])
    ours = ["--task", task, "--criterion", "label_smoothed_kd_cross_entropy"]
    loss, size, logged, grads = step(toy, setup, batch, [*ours, *variant, "--kd-temperature", 3])
    assert torch.equal(loss, stock_loss)
    assert size == stock_size
    assert equal(logged, stock_logged)
    for grad, stock_grad in zip(grads, stock_grads, strict=True):
        assert (grad is None) == (stock_grad is None)
        assert grad is None or torch.equal(grad, stock_grad)


def test_unreduced_loss_equals_the_stock_criterion(toy, setup, batch):
    stock_loss = step(toy, setup, batch, STOCK, reduce=False)[0]
    loss = step(toy, setup, batch, OURS, reduce=False)[0]
    assert torch.equal(loss, stock_loss)


def test_training_without_teacher_logs_the_same_numbers_as_stock_update_by_update(toy, train, tmp_path):
    def run(argv):
        common = [toy.data, "-s", "en", "-t", "de", *toy.tiny, *toy.training, "--max-update", 8, "--no-save"]
        logs = train([*common, "--dropout", 0.1, "--update-freq", 2, "--save-dir", tmp_path, *argv])
        return [
            {key: value for key, value in line.items() if not key.endswith(("wps", "ups", "wall"))}
            for tag in ("train_inner", "valid", "train")
            for line in logs[tag]
        ]

    assert run(OURS) == run(STOCK)


def test_student_of_many_pairs_without_teachers_trains_as_stock_does(toy, train, tmp_path):
    def run(*argv):
        logs = train(
            [*toy.multilingual, *toy.tiny, *toy.training, "--max-update", 4, "--save-dir", tmp_path, "--no-save", *argv]
        )
        return [(line["loss"], line["nll_loss"], line["gnorm"]) for line in logs["train_inner"]]

    stock = run("--task", "translation_multi_simple_epoch", "--criterion", "label_smoothed_cross_entropy")
    assert run(*toy.task) == stock


def test_validation_of_a_distilled_student_is_the_plain_loss_and_asks_no_teacher(toy, setup, batch):
    argv = [toy.data, "-s", "en", "-t", "de", *toy.tiny, *toy.training]
    task, model, criterion = setup([*argv, *OURS, "--teacher", toy.de])
    stock_task, stock_model, stock_criterion = setup([*argv, *STOCK])
    stock_model.load_state_dict(model.state_dict())
    task.teachers["en-de"].members.forward = None
    task.teachers["en-de"].members[0].forward = None
    sample = batch(task, range(8))
    loss, size, logged = task.valid_step(sample, model.eval(), criterion.eval())
    stock_loss, stock_size, stock_logged = stock_task.valid_step(sample, stock_model.eval(), stock_criterion.eval())
    assert torch.equal(loss, stock_loss)
    assert size == stock_size
    assert equal(logged, stock_logged)


def test_metrics_of_a_run_without_teacher_are_the_stock_ones(toy, setup, batch):
    task, model, criterion = setup([toy.data, "-s", "en", "-t", "de", *toy.tiny, *toy.training, *OURS])
    _, _, logged = criterion(model, batch(task, range(8)))
    with metrics.aggregate() as found:
        task.reduce_metrics([logged], criterion)
    assert not [name for name in found if name.startswith("kd_")]

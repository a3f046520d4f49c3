"""Learning rates: torchvision's to rounding error of torch's own schedulers, the paper's as computed by hand."""

import argparse

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from vision_reference.errors import UserError
from vision_reference.schedules import LearningRate, Schedule, build_schedule

# torch's schedulers miss the optimizer's steps, which these tests do without, and warn about their own inner calls.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step:UserWarning"),
    pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning"),
]


def make_optimizer(*lrs: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs])


def torch_scheduler(optimizer, rule: LearningRate):
    """What torchvision's recipe builds of torch's schedulers."""
    main = {
        "steplr": lambda: lr_scheduler.StepLR(optimizer, rule.step_size, rule.gamma),
        "multisteplr": lambda: lr_scheduler.MultiStepLR(optimizer, list(rule.milestones), rule.gamma),
        "exponentiallr": lambda: lr_scheduler.ExponentialLR(optimizer, rule.gamma),
        "cosineannealinglr": lambda: lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=rule.epochs - rule.warmup_epochs, eta_min=rule.min
        ),
    }[rule.scheduler]()
    if not rule.warmup_epochs:
        return main
    if rule.warmup_method == "linear":
        warmup = lr_scheduler.LinearLR(optimizer, rule.warmup_decay, total_iters=rule.warmup_epochs)
    else:
        warmup = lr_scheduler.ConstantLR(optimizer, rule.warmup_decay, total_iters=rule.warmup_epochs)
    return lr_scheduler.SequentialLR(optimizer, [warmup, main], milestones=[rule.warmup_epochs])


def rates(optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("warmup", [(0, "constant"), (1, "constant"), (5, "constant"), (1, "linear"), (5, "linear")])
@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        ("steplr", {"step_size": 7}),
        ("steplr", {"step_size": 1, "gamma": 0.97}),
        ("multisteplr", {"milestones": (3, 4, 11)}),
        ("multisteplr", {"milestones": (1,), "gamma": 0.5}),
        ("exponentiallr", {"gamma": 0.9}),
        ("cosineannealinglr", {}),
        ("cosineannealinglr", {"min": 1e-3}),
    ],
)
def test_rates_are_those_of_torchs_own_schedulers_in_every_epoch_and_group(scheduler, options, warmup):
    rule = LearningRate(30, scheduler, warmup_epochs=warmup[0], warmup_method=warmup[1], warmup_decay=0.03, **options)
    theirs, ours = make_optimizer(0.5, 0.01), make_optimizer(0.5, 0.01)
    reference, schedule = torch_scheduler(theirs, rule), Schedule(ours, rule)
    for epoch in range(30):
        schedule.step_to(epoch, step=epoch, steps_per_epoch=50)
        assert rates(ours) == pytest.approx(rates(theirs), rel=1e-9, abs=1e-12), epoch
        reference.step()


PAPER_STUDENT = LearningRate(200, "steplr", step_size=80, warmup_epochs=5, warmup_per_step=True)


@pytest.mark.parametrize(
    ("epoch", "step", "expected"),
    [  # lr 0.1, 1,000 steps an epoch: 0.1 * (1 + step + 1000 * epoch) / 5000 before epoch 5
        (0, 0, 0.00002),
        (0, 999, 0.02),
        (4, 0, 0.08002),
        (4, 999, 0.1),
        (5, 0, 0.1),
        (79, 999, 0.1),
        (80, 0, 0.01),
        (159, 999, 0.01),
        (160, 0, 0.001),
        (199, 999, 0.001),
    ],
)
def test_the_papers_student_warms_up_in_every_step_and_decays_80_epochs_from_the_start(epoch, step, expected):
    assert PAPER_STUDENT.at(0.1, epoch, step, 1000) == pytest.approx(expected, rel=1e-12)


def test_the_papers_teacher_decays_every_30_epochs():
    teacher = LearningRate(90, "steplr", step_size=30)
    table = {0: 0.1, 29: 0.1, 30: 0.01, 59: 0.01, 60: 0.001, 89: 0.001}
    assert {epoch: teacher.at(0.1, epoch, 3, 10) for epoch in table} == pytest.approx(table, rel=1e-12)


def test_a_warm_up_per_step_does_not_shift_a_cosine():
    warmed = LearningRate(20, "cosineannealinglr", warmup_epochs=4, warmup_per_step=True)
    plain = LearningRate(20, "cosineannealinglr")
    assert [warmed.at(0.1, epoch, 6, 7) for epoch in range(3, 20)] == [plain.at(0.1, epoch) for epoch in range(3, 20)]
    assert warmed.at(0.1, 2, 6, 7) == pytest.approx(plain.at(0.1, 2) * 3 / 4)


@given(
    epochs=st.integers(1, 300),
    warmup=st.integers(0, 20),
    per_step=st.booleans(),
    scheduler=st.sampled_from(["steplr", "cosineannealinglr", "exponentiallr"]),
    data=st.data(),
)
def test_the_rate_never_leaves_the_range_from_0_to_its_base(epochs, warmup, per_step, scheduler, data):
    rule = LearningRate(
        epochs, scheduler, warmup_epochs=warmup, warmup_method="linear", warmup_per_step=per_step and warmup > 0
    )
    epoch, step = data.draw(st.integers(0, epochs)), data.draw(st.integers(0, 9))
    assert 0 <= rule.at(0.3, epoch, step, 10) <= 0.3 * (1 + 1e-12)


def test_a_resumed_run_has_the_rates_of_an_uninterrupted_one():
    straight, resumed = make_optimizer(0.1, 0.02), make_optimizer(0.1, 0.02)
    first, second = Schedule(straight, PAPER_STUDENT), Schedule(resumed, PAPER_STUDENT)
    for step in range(10):
        first.step_to(2, step, 10)
    resumed.load_state_dict(straight.state_dict())  # brings the rates of the last step along
    second.load_state_dict(first.state_dict())
    assert second.epoch == 3
    for optimizer, schedule in ((straight, first), (resumed, second)):
        schedule.step_to(3, 0, 10)
        assert rates(optimizer) == pytest.approx([0.1 * 31 / 50, 0.02 * 31 / 50], rel=1e-12)


@pytest.mark.parametrize("warmup_epochs", [0, 3])
def test_the_scheduler_state_of_torchvisions_recipe_is_understood(warmup_epochs):
    rule = LearningRate(30, "steplr", step_size=4, warmup_epochs=warmup_epochs, warmup_method="linear")
    theirs, ours = make_optimizer(0.1), make_optimizer(0.1)
    reference, schedule = torch_scheduler(theirs, rule), Schedule(ours, rule)
    for _ in range(9):
        reference.step()
    schedule.load_state_dict(reference.state_dict())
    assert schedule.epoch == 9
    assert rates(ours) == pytest.approx(rates(theirs), rel=1e-9)


def test_every_flag_reaches_the_rule():
    args = argparse.Namespace(
        epochs=12,
        lr_scheduler="cosineannealinglr",
        lr_step_size=3,
        lr_milestones=[4, 6],
        lr_gamma=0.5,
        lr_min=0.01,
        lr_warmup_epochs=2,
        lr_warmup_method="linear",
        lr_warmup_decay=0.2,
        lr_warmup_per_step=False,
    )
    schedule = build_schedule(make_optimizer(0.1), args)
    assert schedule.rule == LearningRate(12, "cosineannealinglr", 3, (4, 6), 0.5, 0.01, 2, "linear", 0.2, False)
    assert rates(schedule.optimizer) == pytest.approx([0.02])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"scheduler": "plateau"}, ["plateau", "steplr", "multisteplr", "cosineannealinglr", "exponentiallr"]),
        ({"warmup_method": "quadratic"}, ["quadratic", "constant", "linear"]),
        ({"warmup_per_step": True}, ["--lr-warmup-per-step", "--lr-warmup-epochs"]),
    ],
)
def test_an_impossible_schedule_is_refused_naming_what_is_allowed(options, named):
    with pytest.raises(UserError) as error:
        LearningRate(10, **options)
    assert all(word in str(error.value) for word in named)

"""Weight decay goes where the flags say; learning rates are torch's own, or the paper's; the average decays as told."""

import argparse

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from vision_reference.arguments import OPTIMIZERS, parse_args
from vision_reference.errors import UserError
from vision_reference.learner import Learner
from vision_reference.optimization import (
    LearningRate,
    Schedule,
    adjusted_decay,
    build_ema,
    build_optimizer,
    parameter_groups,
)

# torch's schedulers miss the optimizer's steps, which these tests do without, and warn about their own inner calls.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step:UserWarning"),
    pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning"),
]


def names_by_decay(model, groups) -> dict[float, set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    result = {}
    for group in groups:
        result.setdefault(group["weight_decay"], set()).update(names[id(parameter)] for parameter in group["params"])
    return result


@pytest.fixture(scope="module")
def resnet():
    return torchvision.models.resnet18(num_classes=3)


@pytest.fixture(scope="module")
def vit():
    return torchvision.models.VisionTransformer(
        image_size=8, patch_size=4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=3
    )


@pytest.mark.parametrize("norm", [None, 0.1])
@pytest.mark.parametrize("bias", [None, 0.2])
@pytest.mark.parametrize("embedding", [None, 0.3])
@pytest.mark.parametrize("network", ["resnet", "vit"])
def test_every_parameter_is_in_exactly_one_group(network, norm, bias, embedding, request):
    model = request.getfixturevalue(network)
    groups = parameter_groups(model, 0.9, norm, bias, embedding)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())


def test_one_decay_for_all_is_one_group_in_the_models_order(resnet):
    (group,) = parameter_groups(resnet, 1e-4)
    assert all(ours is theirs for ours, theirs in zip(group["params"], resnet.parameters(), strict=True))
    assert group["weight_decay"] == 1e-4


def test_norm_decay_reaches_weights_and_biases_of_normalization_layers_only(resnet):
    found = names_by_decay(resnet, parameter_groups(resnet, 0.9, norm_weight_decay=0.0))
    norms = {name for name, _ in resnet.named_parameters() if "bn" in name or "downsample.1" in name}
    assert found == {0.0: norms, 0.9: {name for name, _ in resnet.named_parameters()} - norms}


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4, affine=True)]
)
def test_every_kind_of_normalization_counts_as_one(layer):
    model = nn.Sequential(nn.Linear(4, 4), layer)
    found = names_by_decay(model, parameter_groups(model, 0.9, norm_weight_decay=0.1))
    assert found == {0.9: {"0.weight", "0.bias"}, 0.1: {"1.weight", "1.bias"}}


def test_bias_decay_reaches_all_biases_those_of_normalization_too(resnet):
    found = names_by_decay(resnet, parameter_groups(resnet, 0.9, norm_weight_decay=0.1, bias_weight_decay=0.2))
    biases = {name for name, _ in resnet.named_parameters() if name.endswith(".bias")}
    assert found[0.2] == biases
    assert all("bn" in name or "downsample.1" in name for name in found[0.1])


def test_embedding_decay_reaches_the_class_token_and_as_in_the_recipe_not_vits_positions(vit):
    found = names_by_decay(vit, parameter_groups(vit, 0.9, transformer_embedding_decay=0.0))
    assert found[0.0] == {"class_token"}


def test_embedding_decay_reaches_relative_positions():
    model = torchvision.models.SwinTransformer([2, 2], 8, [2], [2], [2, 2], num_classes=3)
    found = names_by_decay(model, parameter_groups(model, 0.9, transformer_embedding_decay=0.0))
    assert found[0.0] == {f"features.1.{block}.attn.relative_position_bias_table" for block in (0, 1)}


def test_groups_come_in_the_order_of_the_recipe_so_that_its_optimizer_states_fit(vit):
    groups = parameter_groups(vit, 0.9, 0.1, 0.2, 0.3)
    assert [group["weight_decay"] for group in groups] == [0.9, 0.1, 0.2, 0.3]


def test_frozen_parameters_are_left_out_and_shared_ones_count_once():
    shared = nn.Linear(3, 3)
    model = nn.ModuleDict({"first": shared, "second": nn.Sequential(shared, nn.Linear(3, 2))})
    model["second"][1].bias.requires_grad_(False)
    (group,) = parameter_groups(model, 0.1)
    expected = [shared.weight, shared.bias, model["second"][1].weight]
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in expected]


def one_step(optimizer_of) -> torch.Tensor:
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = optimizer_of([{"params": [weight], "weight_decay": 0.01}])
    for scale in (1.0, 2.0, -1.0):
        weight.grad = scale * torch.tensor([0.5, 0.25, -4.0])
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("sgd", lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.8)),
        ("sgd_nesterov", lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.8, nesterov=True)),
        ("SGD", lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.8)),
        ("rmsprop", lambda groups: torch.optim.RMSprop(groups, lr=0.1, momentum=0.8, eps=0.0316, alpha=0.9)),
        ("adamw", lambda groups: torch.optim.AdamW(groups, lr=0.1)),
    ],
)
def test_optimizers_step_as_torchs_own_with_the_recipes_settings(name, reference):
    ours = one_step(lambda groups: build_optimizer(name, groups, lr=0.1, momentum=0.8, weight_decay=0.5))
    assert torch.equal(ours, one_step(reference))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_choice_of_the_command_line_is_an_optimizer(name):
    weight = nn.Parameter(torch.ones(1))
    assert build_optimizer(name, [{"params": [weight]}], lr=0.1, momentum=0.9, weight_decay=0.5).param_groups


def test_weight_decay_counts_for_groups_without_one():
    weight = nn.Parameter(torch.ones(1))
    optimizer = build_optimizer("sgd", [{"params": [weight]}], lr=0.1, momentum=0.9, weight_decay=0.5)
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_an_unknown_optimizer_is_refused_naming_the_known_ones():
    with pytest.raises(UserError, match="'adam'; allowed: sgd, sgd_nesterov, rmsprop, adamw"):
        build_optimizer("adam", [], 0.1, 0.9, 0.0)


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


@pytest.mark.parametrize(("method", "expected"), [("constant", [0, 0, 0, 0.5]), ("linear", [0, 1 / 6, 1 / 3, 0.5])])
def test_a_warmup_may_begin_at_nothing(method, expected):
    flags = ["--lr", "0.5", "--lr-warmup-epochs", "3", "--lr-warmup-decay", "0", "--lr-warmup-method", method]
    optimizer = make_optimizer(0.5)
    schedule = Schedule(optimizer, LearningRate.of(parse_args(flags)))
    for epoch, rate in enumerate(expected):
        schedule.step_to(epoch)
        assert rates(optimizer) == pytest.approx([rate])


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


@pytest.mark.parametrize("finished", [1, 2, 3, 4, 9, 11])
@pytest.mark.parametrize("warmup", [(0, "constant"), (1, "linear"), (3, "constant"), (4, "linear")])
@pytest.mark.parametrize("scheduler", ["steplr", "exponentiallr", "cosineannealinglr"])
def test_torchvisions_recipe_goes_on_from_our_state_with_the_rates_of_an_undisturbed_run(scheduler, warmup, finished):
    rule = LearningRate(12, scheduler, step_size=4, warmup_epochs=warmup[0], warmup_method=warmup[1], warmup_decay=0.1)
    ours = make_optimizer(0.5, 0.01)
    learner = Learner(None, None, None, ours, Schedule(ours, rule), None, None)
    learner.schedule.step_to(finished - 1, 6, 7)
    saved = learner.state_dict()
    straight, resumed = make_optimizer(0.5, 0.01), make_optimizer(0.5, 0.01)
    reference, theirs = torch_scheduler(straight, rule), torch_scheduler(resumed, rule)
    resumed.load_state_dict(saved["optimizer"])
    theirs.load_state_dict(saved["lr_scheduler"])
    for _ in range(finished):
        reference.step()
    for epoch in range(finished, 12):
        assert rates(resumed) == pytest.approx(rates(straight), rel=1e-9, abs=1e-12), epoch
        theirs.step()
        reference.step()


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
    schedule = Schedule(make_optimizer(0.1), LearningRate.of(args))
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


def test_decay_is_adjusted_by_processes_batch_steps_and_epochs():
    # ResNet-50 on 8 GPUs, batch 128, every 32 steps, 600 epochs: 1 - 2e-5 * 8 * 128 * 32 / 600
    decay = adjusted_decay(0.99998, batch_size=128, world_size=8, steps=32, epochs=600)
    assert decay == pytest.approx(1 - 2e-5 * 54.61333333, rel=1e-9)


def test_decay_is_never_negative():
    assert adjusted_decay(0.9, batch_size=256, world_size=8, steps=32, epochs=1) == 0.0


def test_the_average_follows_weights_and_batch_norm_statistics_but_keeps_the_first_as_they_are():
    # 1 - 0.001 * 50 is left of a value at each update
    decay = adjusted_decay(0.999, batch_size=10, world_size=2, steps=5, epochs=2)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = build_ema(model, decay)
    values = [1.0, 2.0, 4.0]
    for value in values:
        with torch.no_grad():
            model[0].weight.fill_(value)
            model[1].running_mean.fill_(10 * value)
        ema.update_parameters(model)
    expected = (1.0 * 0.95 + 2.0 * 0.05) * 0.95 + 4.0 * 0.05
    torch.testing.assert_close(ema.module[0].weight.data, torch.full((2, 2), expected))
    torch.testing.assert_close(ema.module[1].running_mean, torch.full((2,), 10 * expected))
    assert model[0].weight[0, 0] == 4.0

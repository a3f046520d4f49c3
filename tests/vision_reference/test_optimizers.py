"""Weight decay goes where the flags say, and optimizers are set up as torchvision's recipe sets them up."""

import pytest
import torch
import torchvision
from torch import nn

from vision_reference.errors import UserError
from vision_reference.optimizers import build_optimizer, parameter_groups


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


def test_weight_decay_counts_for_groups_without_one():
    weight = nn.Parameter(torch.ones(1))
    optimizer = build_optimizer("sgd", [{"params": [weight]}], lr=0.1, momentum=0.9, weight_decay=0.5)
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_an_unknown_optimizer_is_refused_naming_the_known_ones():
    with pytest.raises(UserError, match="'adam'; allowed: sgd, sgd_nesterov, rmsprop, adamw"):
        build_optimizer("adam", [], 0.1, 0.9, 0.0)

"""New last layers, auxiliary heads and image sizes, over every classification network that torchvision lists."""

import warnings

import pytest
import torch
import torchvision
from torch import nn

from vision_reference.errors import UserError
from vision_reference.networks import heads

NAMES = torchvision.models.list_models(module=torchvision.models)


@pytest.fixture(autouse=True)
def uninitialized(monkeypatch):
    """Networks of a billion weights are built in milliseconds when nobody fills them in."""
    for name in [name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")]:
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


def build(name, **options):
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torchvision.models.get_model(name, weights=None, **options)


def run(model, size, batch=2):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(torch.empty(batch, 3, size, size, device="meta"))


@pytest.mark.parametrize("name", NAMES)
def test_every_torchvision_network_gets_a_head_of_the_wanted_width_and_keeps_all_other_weights(name):
    model = build(name).to("meta")
    before = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    reference = {key: tensor.shape for key, tensor in build(name, num_classes=7).to("meta").state_dict().items()}

    assert heads.class_count(model) == 1000
    assert heads.replace_head(model, 7) is model

    assert heads.class_count(model) == 7
    size = heads.fixed_input_size(model) or 224
    assert run(model.eval(), size).shape == (2, 7)
    # The whole network now has the shapes that torchvision itself gives a 7-way one.
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == reference
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    changed = {key for key in after if after[key] is not before[key]}
    expected = {f"{heads.last_layer(model)[0]}.{kind}" for kind in ("weight", "bias")}
    for auxiliary in heads.auxiliary_heads(model):
        expected |= {f"{auxiliary}.{'fc' if auxiliary == 'AuxLogits' else 'fc2'}.{kind}" for kind in ("weight", "bias")}
    assert changed == expected & set(after)  # MaxViT's classifier has no bias
    assert all(after[key].requires_grad for key in changed)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_get_the_new_width_too_and_can_be_dropped(name):
    model = heads.replace_head(build(name).to("meta"), 5).train()
    outputs = run(model, 299)
    assert [tuple(logits.shape) for logits in outputs] == [(2, 5)] * len(outputs)

    heads.drop_auxiliary_heads(model)
    assert run(model, 299).shape == (2, 5)
    assert heads.auxiliary_heads(model) == {}


def test_the_new_head_keeps_type_bias_and_convolution_settings():
    linear = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 9, bias=False, dtype=torch.float64))
    heads.replace_head(linear, 2)
    assert (linear[2].bias, linear[2].weight.dtype, linear[0].out_features) == (None, torch.float64, 4)

    convolution = nn.Sequential(nn.Conv2d(3, 9, 3, stride=2, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    heads.replace_head(convolution, 2)
    assert convolution[0].kernel_size == (3, 3)
    assert convolution[0].stride == (2, 2)
    assert convolution[0].padding == (1, 1)


def test_a_network_without_a_classifier_and_a_head_without_classes_are_refused():
    with pytest.raises(UserError, match="no Linear or Conv2d"):
        heads.replace_head(nn.ReLU(), 2)
    with pytest.raises(UserError, match="at least 1 class, not 0"):
        heads.replace_head(nn.Linear(2, 2), 0)


@pytest.mark.parametrize("with_auxiliary", [True, False])
def test_a_file_saved_with_other_heads_loads_strictly_after_the_model_took_their_shape(with_auxiliary):
    saved = build("googlenet", num_classes=12).to("meta")
    if not with_auxiliary:
        heads.drop_auxiliary_heads(saved)
    model = heads.shape_heads_like(build("googlenet").to("meta"), saved.state_dict())
    model.load_state_dict(saved.state_dict(), strict=True, assign=True)
    assert heads.class_count(model) == 12
    assert bool(heads.auxiliary_heads(model)) == with_auxiliary


def test_a_file_with_the_same_class_count_or_without_a_head_leaves_the_last_layer_alone():
    model = build("resnet18").to("meta")
    before = model.fc
    heads.shape_heads_like(model, model.state_dict())
    heads.shape_heads_like(model, {"conv1.weight": torch.empty(1)})
    assert model.fc is before


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("vit_b_16", {}, 224),
        ("vit_b_16", {"image_size": 384}, 384),
        ("inception_v3", {}, 299),
        ("maxvit_t", {"input_size": (224, 224)}, 224),
        ("resnet18", {}, None),
        ("swin_t", {}, None),
    ],
)
def test_networks_cut_for_one_image_size_say_so_and_refuse_others_in_one_line(name, options, size):
    model = build(name, **options).to("meta").train()
    assert heads.fixed_input_size(model) == size
    if size is None:
        heads.check_input_sizes("student", name, model, [224, 256])
    else:
        heads.check_input_sizes("student", name, model, [size])
        with pytest.raises(UserError) as error:
            heads.check_input_sizes("teacher", name, model, [size, 320])
        assert str(error.value).startswith(f"teacher {name} takes {size}x{size} images only, not 320x320")
        assert f"--train-crop-size {size}" in str(error.value)
        assert "\n" not in str(error.value)
    assert model.training


def test_a_network_whose_pooling_leaves_nothing_of_small_images_is_refused_before_training():
    model = build("alexnet")
    before = {key: (tensor.data_ptr(), tensor._version) for key, tensor in model.state_dict().items()}
    heads.check_input_sizes("student", "alexnet", model, [64])
    with pytest.raises(UserError, match="student alexnet cannot process 32x32 images"):
        heads.check_input_sizes("student", "alexnet", model, [32, 64])
    assert {key: (tensor.data_ptr(), tensor._version) for key, tensor in model.state_dict().items()} == before

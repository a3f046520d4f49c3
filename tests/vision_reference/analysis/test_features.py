"""The last layer is found by looking; features are what goes into it; what was collected once is kept."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from vision_reference.analysis import features, subjects
from vision_reference.errors import UserError
from vision_reference.networks.by_name import build_model
from vision_reference.networks.heads import last_layer

# One of each of torchvision's families but SqueezeNet, and ours; the side in pixels is the least that it takes.
FAMILIES = {
    "alexnet": 64, "convnext_tiny": 32, "densenet121": 32, "efficientnet_b0": 32, "googlenet": 64, "inception_v3": 96,
    "mnasnet0_5": 32, "mobilenet_v2": 32, "mobilenet_v3_small": 32, "regnet_x_400mf": 32, "resnet18": 32, "resnet8": 32,
    "shufflenet_v2_x0_5": 32, "swin_t": 32, "swin_v2_t": 64,
}  # fmt: skip


def _network(name: str) -> nn.Module:
    small_transformers = {
        "vgg": lambda: torchvision.models.VGG(
            torchvision.models.vgg.make_layers([8, "M", 512], batch_norm=False), num_classes=7, init_weights=False
        ),
        "vit": lambda: torchvision.models.VisionTransformer(32, 16, 2, 2, 32, 64, num_classes=7),
        "maxvit": lambda: torchvision.models.MaxVit((64, 64), 8, 2, [8, 16], [1, 1], 8, 0.0, num_classes=7),
    }
    return small_transformers[name]() if name in small_transformers else build_model(name, 7)


@pytest.mark.parametrize(("name", "side"), [*FAMILIES.items(), ("vgg", 16), ("vit", 32), ("maxvit", 64)])
def test_features_are_the_input_of_the_layer_that_makes_the_logits(name, side):
    network, images = _network(name).eval(), torch.rand(5, 3, side, side)
    layer_name, layer = features.find_last_layer(network, images)
    assert layer_name == last_layer(network)[0]
    seen = features.collect(network, [(images[:3], torch.arange(3)), (images[3:], torch.arange(2))])
    weight, bias = features.last_weights(layer)
    assert seen.features.shape == (5, weight.shape[1])
    again = seen.features @ weight.T + (0 if bias is None else bias)  # MaxViT's has no bias
    scale = np.abs(seen.logits).max()
    np.testing.assert_allclose(again, seen.logits, atol=1e-5 * scale + 1e-30)
    with torch.inference_mode():
        np.testing.assert_allclose(network(images).numpy(), seen.logits, atol=1e-5 * scale + 1e-30)
    assert seen.labels.tolist() == [0, 1, 2, 0, 1]
    assert not layer._forward_pre_hooks
    assert not layer._forward_hooks


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_convnext"])
def test_timms_networks_have_theirs(name):
    pytest.importorskip("timm")
    network, images = build_model(f"timm:{name}", 6).eval(), torch.rand(2, 3, 160, 160)
    seen = features.collect(network, [(images, torch.arange(2))])
    weight, bias = features.last_weights(features.find_last_layer(network, images)[1])
    np.testing.assert_allclose(seen.features @ weight.T + bias, seen.logits, atol=1e-5)


class ConvolutionalHead(nn.Sequential):
    """As BiT's: the classifier is a 1x1 convolution on pooled features."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(5, 4, 1), nn.Flatten())


def test_a_convolution_on_pooled_features_is_a_linear_layer():
    network, images = ConvolutionalHead().eval(), torch.rand(3, 3, 8, 8)
    seen = features.collect(network, [(images, torch.arange(3))])
    weight, bias = features.last_weights(network[2])
    assert weight.shape == (4, 5)
    np.testing.assert_allclose(seen.features @ weight.T + bias, seen.logits, atol=1e-6)


def test_squeezenet_and_networks_that_add_something_after_are_refused():
    torch.manual_seed(0)  # of other weights the clipping may have nothing to clip
    # At 32x32 its last map has one pixel, so that only the clipping after the convolution tells the difference.
    for network in (build_model("squeezenet1_1", 4), nn.Sequential(nn.Flatten(), nn.Linear(3072, 4), nn.ReLU())):
        with pytest.raises(UserError, match="not the output of a linear layer"):
            features.find_last_layer(network.eval(), torch.rand(2, 3, 32, 32))


def test_outputs_that_are_not_finite_are_refused():
    network = build_model("resnet8", 4).eval()
    nn.init.constant_(network.fc.bias, float("nan"))
    with pytest.raises(UserError, match="not finite"):
        features.collect(network, [(torch.rand(2, 3, 32, 32), torch.arange(2))])


@pytest.fixture
def shown(few_digits):
    return subjects.read_images(few_digits)


def outputs(path, images):
    subject = subjects.load_subject("net", str(path), images, device="cpu")
    return subject, subjects.outputs_of(subject, images.val, images, batch_size=16, workers=0)


def test_features_are_kept_beside_the_checkpoint_until_it_changes(tmp_path, shown, monkeypatch, write_checkpoint):
    path = write_checkpoint(tmp_path / "net.pth")
    _, first = outputs(path, shown)
    assert len(first.labels) == 37
    (kept,) = (tmp_path / "net.pth.features").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(features, "collect", lambda *_: pytest.fail("collected again"))
        _, again = outputs(path, shown)
    np.testing.assert_array_equal(first.features, again.features)
    # Other pixels are other features.
    small = subjects.load_subject("net", str(path), shown, device="cpu", crop=24)
    other = subjects.outputs_of(small, shown.val, shown, batch_size=16, workers=0)
    assert not np.array_equal(first.logits, other.logits)
    assert len(list((tmp_path / "net.pth.features").iterdir())) == 2
    # A checkpoint of other weights leaves nothing of the old ones.
    write_checkpoint(path, seed=5)
    _, changed = outputs(path, shown)
    assert not np.array_equal(first.features, changed.features)
    assert kept not in (tmp_path / "net.pth.features").iterdir()
    assert len(list((tmp_path / "net.pth.features").iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "empty"])
def test_damaged_files_are_made_anew(tmp_path, shown, damage, write_checkpoint):
    path = write_checkpoint(tmp_path / "net.pth")
    _, first = outputs(path, shown)
    (kept,) = (tmp_path / "net.pth.features").iterdir()
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 255
    kept.write_bytes({"cut": content[:-99], "flipped": content, "other": b"hello", "empty": b""}[damage])
    assert features.kept(kept) is None
    _, again = outputs(path, shown)
    np.testing.assert_array_equal(first.features, again.features)
    assert features.kept(kept) is not None


def test_a_folder_that_cannot_be_written_to_costs_nothing_but_time(tmp_path, shown, write_checkpoint):
    path = write_checkpoint(tmp_path / "net.pth")
    (tmp_path / "net.pth.features").write_text("a file where the folder would be")
    _, seen = outputs(path, shown)
    assert len(seen.labels) == 37


def test_networks_of_other_classes_or_sizes_are_refused(tmp_path, shown, write_checkpoint):
    with pytest.raises(UserError, match="tells 3 classes apart, .* has 4"):
        subjects.load_subject("three", str(write_checkpoint(tmp_path / "three.pth", classes=3)), shown)
    named = write_checkpoint(tmp_path / "named.pth")
    content = torch.load(named, weights_only=True)
    torch.save({**content, "description": {"classes": ["a", "b", "c", "d"]}}, named)
    with pytest.raises(UserError, match=r"trained on other classes \(a, b, c, ...\): it does not know '0'"):
        subjects.load_subject("named", str(named), shown)
    torch.save({**content, "description": {"classes": ["3", "1", "0", "2"]}}, named)
    assert subjects.load_subject("named", str(named), shown).numbers.tolist() == [2, 1, 3, 0]
    with pytest.raises(UserError, match="cannot process 1x1"):
        subjects.load_subject("tiny", str(write_checkpoint(tmp_path / "m.pth", model="densenet121")), shown, crop=1)
    bare = tmp_path / "bare.pth"
    torch.save(build_model("resnet8", 4).state_dict(), bare)
    with pytest.raises(UserError, match="does not say which network"):
        subjects.load_subject("bare", str(bare), shown)
    assert subjects.load_subject("bare", str(bare), shown, model="resnet8", preset="digits").pixels.crop == 32


def test_classes_by_name_first_by_number_second_and_the_nearest_names(shown):
    images = subjects.Images(shown.root, [], [], ["3", "cat", "dog"], ["3", "tabby", "hound"])
    assert subjects.class_number("3", images) == 0  # its name, although there is no class number 3
    assert subjects.class_number("tabby", images) == 1
    assert subjects.class_number("2", images) == 2
    with pytest.raises(UserError, match="no class 'tably' in .*; nearest: tabby"):
        subjects.class_number("tably", images)
    with pytest.raises(UserError, match="a number from 0 to 2"):
        subjects.class_number("7", images)


def test_a_part_of_imagenet_finds_its_places_among_the_1000_classes(tmp_path, blank_images, write_checkpoint):
    pytest.importorskip("timm")
    root = blank_images(tmp_path / "in", {f"val/{wnid}": 1 for wnid in ("n02113624", "n01440764")})
    images = subjects.read_images(root, train=False)
    assert images.names == ["tench", "toy poodle"]
    path = write_checkpoint(tmp_path / "net.pth", classes=1000)
    subject = subjects.load_subject("net", str(path), images)
    assert subject.numbers.tolist() == [0, 265]
    assert subjects.all_names(subject, images)[266] == "miniature poodle"


def test_images_are_chosen_evenly():
    samples = [(f"{number}", number % 2) for number in range(20)]
    assert [path for path, _ in subjects.spread_out(samples, 1, 4)] == ["1", "7", "13", "19"]
    assert len(subjects.spread_out(samples, 0, 99)) == 10

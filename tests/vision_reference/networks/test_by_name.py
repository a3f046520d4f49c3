"""Networks are built, filled and described from files of every origin and from torchvision's names."""

import pytest
import safetensors.torch
import torch
import torchvision

from vision_reference.errors import UserError
from vision_reference.images.presets import PRESETS
from vision_reference.networks import by_name, description
from vision_reference.networks.by_name import load_network, read_state
from vision_reference.networks.checkpoints import safetensors_metadata, save_atomically
from vision_reference.networks.description import describe_run

ARCH = "shufflenet_v2_x0_5"
RUN = {
    "preset": "digits",
    "interpolation": "bicubic",
    "train_crop_size": 24,
    "val_resize_size": 36,
    "val_crop_size": 28,
    "label_smoothing": 0.1,
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return torchvision.models.get_model(ARCH, num_classes=3)


def own_checkpoint(model, **changes):
    described = describe_run(RUN, ["cat", "dog", "eel"], {"acc1": 71.5})
    return {"model": model.state_dict(), "arch": ARCH, "args": RUN, "description": described, **changes}


def assert_same_answers(loaded, model):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(loaded(images), model.eval()(images))


def test_a_checkpoint_of_ours_tells_all_that_is_needed_to_use_it(model, tmp_path):
    path = tmp_path / "best.pth"
    save_atomically(own_checkpoint(model), path)
    network, described = load_network(path)
    assert not network.training
    assert_same_answers(network, model)
    assert described.arch == ARCH
    assert described.classes == ("cat", "dog", "eel")
    assert described.preset == "digits"
    assert (described.train_crop_size, described.val_resize_size, described.val_crop_size) == (24, 36, 28)
    assert described.interpolation == "bicubic"
    assert described.mean == described.std == (0.5, 0.5, 0.5)
    assert described.accuracy == 71.5
    assert described.args["label_smoothing"] == 0.1
    assert described.made_by["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert set(described.made_by["code"]) == {"version", "commit"}
    assert described.assumed == ()
    assert vars(described) == vars(read_state(str(path), None)[1])


def test_the_average_is_loaded_where_asked_for(model, tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(model)
    with torch.no_grad():
        averaged.module.fc.bias += 1
    save_atomically(own_checkpoint(model, model_ema=averaged.state_dict()), tmp_path / "best.pth")
    network, _ = load_network(tmp_path / "best.pth", ema=True)
    assert torch.equal(network.fc.bias, model.fc.bias + 1)


def test_an_authors_file_tells_its_network_and_accuracy_and_the_rest_is_assumed(model, tmp_path):
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"arch": ARCH, "state_dict": state, "best_acc1": torch.tensor([71.5])}, tmp_path / "a.pth.tar")
    network, described = load_network(tmp_path / "a.pth.tar")
    assert_same_answers(network, model)
    assert described.accuracy == 71.5
    assert described.classes is None
    assert (described.preset, described.val_crop_size) == ("imagenet", 224)
    assert described.mean == PRESETS["imagenet"].mean
    assert {"preset", "val_resize_size", "val_crop_size", "interpolation", "mean", "std"} <= set(described.assumed)


def test_files_of_before_descriptions_tell_what_their_command_line_says(model, tmp_path):
    torch.save({"model": model.state_dict(), "arch": ARCH, "args": RUN}, tmp_path / "old.pth")
    described = read_state(str(tmp_path / "old.pth"), None)[1]
    assert (described.preset, described.val_resize_size, described.interpolation) == ("digits", 36, "bicubic")
    assert described.mean == (0.5, 0.5, 0.5)
    assert described.classes is None


FACTS = {
    "architecture": ARCH,
    "classes": ["cat", "dog", "eel"],
    "input": {
        "resize_shorter_side": 36,
        "center_crop": 28,
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    },
    "accuracy": 71.5,
    "licence": "mit",
}


def test_an_export_to_safetensors_is_as_good_as_a_checkpoint(model, tmp_path):
    path, state = tmp_path / "model.safetensors", model.state_dict()
    safetensors.torch.save_file(state, path, metadata=safetensors_metadata(state, FACTS))
    network, described = load_network(path)
    assert_same_answers(network, model)
    assert described.classes == ("cat", "dog", "eel")
    assert (described.val_resize_size, described.val_crop_size, described.interpolation) == (36, 28, "bicubic")
    assert (described.mean, described.accuracy) == ((0.5, 0.5, 0.5), 71.5)
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="damaged"):
        load_network(path)


@pytest.mark.parametrize("metadata", [None, {"description": "my best"}, {"description": "[1]"}, {"description": "{}"}])
def test_safetensors_of_others_are_bare_weights(metadata, model, tmp_path):
    safetensors.torch.save_file(model.state_dict(), tmp_path / "theirs.safetensors", metadata=metadata)
    network, described = load_network(tmp_path / "theirs.safetensors", ARCH)
    assert_same_answers(network, model)
    assert described.classes is None


def test_bare_weights_need_a_name(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(UserError, match="does not say which network it holds"):
        load_network(tmp_path / "bare.pth")
    network, described = load_network(tmp_path / "bare.pth", ARCH)
    assert_same_answers(network, model)
    assert described.arch == ARCH


def test_torchvisions_weights_are_described_by_torchvision(monkeypatch):
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    torch.manual_seed(1)
    network = torchvision.models.resnet18()
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: network.state_dict())
    loaded, described = load_network(str(weights))
    assert torch.equal(loaded.fc.weight, network.fc.weight)
    assert described.arch == "resnet18"
    assert len(described.classes) == 1000
    assert described.classes[0] == "tench"
    assert (described.val_resize_size, described.val_crop_size, described.interpolation) == (256, 224, "bilinear")
    assert described.accuracy == pytest.approx(69.758)
    assert described.assumed == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_crop_size": -1}, "val_crop_size is '-1'"),
        ({"val_crop_size": 10**9}, "not from 1 to 4096"),
        ({"val_resize_size": "big"}, "val_resize_size is 'big'"),
        ({"interpolation": "psychic"}, "not bilinear or bicubic or nearest or"),
        ({"mean": [0.5, 0.5]}, "mean is '.0.5, 0.5.', not three numbers"),
        ({"std": [0.5, 0.0, 0.5]}, "not three numbers above 0"),
        ({"std": [0.5, float("nan"), 0.5]}, "not three numbers above 0"),
        ({"classes": [1, 2, 3]}, "not a list of names"),
        ({"classes": ["cat", "cat", "dog"]}, "names a class twice"),
        ({"classes": ["cat", "dog"]}, "names 2 classes and has 3"),
        ({"preset": 7}, "preset is '7', not a name"),
        ({"preset": "mars"}, "preset 'mars' is unknown"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes, message, model, tmp_path):
    checkpoint = own_checkpoint(model)
    checkpoint["description"] |= changes
    save_atomically(checkpoint, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=message) as error:
        load_network(tmp_path / "odd.pth")
    assert "\n" not in str(error.value)


def test_a_small_file_that_claims_a_huge_network_costs_nothing(model, tmp_path, monkeypatch):
    made = []
    build = by_name.build_model
    monkeypatch.setattr(by_name, "build_model", lambda *a: made.append(build(*a)) or made[-1])
    save_atomically(own_checkpoint(model, arch="vit_h_14"), tmp_path / "huge.pth")
    with pytest.raises(UserError, match="do not fit VisionTransformer"):
        load_network(tmp_path / "huge.pth")
    assert all(parameter.is_meta for network in made for parameter in network.parameters())


def test_the_commit_is_told_of_a_clone_only(monkeypatch, tmp_path):
    assert description.code_version()["commit"] is None or len(description.code_version()["commit"]) >= 40
    monkeypatch.setattr(description, "ROOT", tmp_path)  # inside nobody's repository
    assert description.code_version()["commit"] is None

"""Weights by name, from caches in which there are files of ours; nothing is downloaded."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import ResNet18_Weights

from vision_reference import train
from vision_reference.arguments import parse_args
from vision_reference.errors import UserError
from vision_reference.images.presets import PRESETS
from vision_reference.machine import Rank
from vision_reference.networks import checkpoints, pretrained
from vision_reference.networks.by_name import build_model, load_network
from vision_reference.networks.teachers import read_teacher
from vision_reference.predict import Predictor

timm = pytest.importorskip("timm")
hub = pytest.importorskip("huggingface_hub")

HALF = (0.5, 0.5, 0.5)
CONFIG = {
    "architecture": "test_resnet",
    "num_classes": 3,
    "label_names": ["cat", "dog", "eel"],
    "pretrained_cfg": {
        "input_size": [3, 96, 96],
        "crop_pct": 0.96,
        "interpolation": "lanczos",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.6, 0.7],
    },
}


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Puts files of a repository into a cache of the Hub of the test's own, on a machine without a network."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    hub.utils.reset_sessions()

    def put(identifier, state=None, metadata=None, **texts):
        folder = tmp_path / "hub" / f"models--{identifier.replace('/', '--')}"
        snapshot = folder / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("abc")
        if state is not None:
            save_file(state, snapshot / "model.safetensors", metadata)
        for name, text in texts.items():
            (snapshot / f"{name}.json").write_text(text)

    yield put
    hub.utils.reset_sessions()


@pytest.fixture(scope="module")
def thousand():
    """timm's smallest ResNet, with ImageNet's classes."""
    torch.manual_seed(0)
    return build_model("timm:test_resnet", 1000).eval()


IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_timms_weights_come_with_their_own_preparation(cached, thousand):
    cached("timm/test_resnet.r160_in1k", thousand.state_dict())
    for source in ("timm:test_resnet", "timm:test_resnet.r160_in1k"):
        network, described = load_network(source)
        with torch.inference_mode():
            assert torch.equal(network(IMAGES), thousand(IMAGES))
        assert (described.arch, described.mean, described.std) == (source, HALF, HALF)
        config = timm.data.resolve_data_config({}, model=thousand)
        assert described.val_crop_size == config["input_size"][1]
        assert described.val_resize_size == int(config["input_size"][1] / config["crop_pct"])
        assert described.interpolation == config["interpolation"]
        assert described.classes[:2] == ("tench", "goldfish")
        assert described.assumed == ()


def started(*flags):
    args = parse_args(["--model", "timm:test_resnet", "--weights", "timm:test_resnet", *flags])
    return args, train.settle_start(args, None, Rank())


def test_a_student_starts_from_timms_weights_and_sees_what_they_saw(cached, thousand, capsys):
    cached("timm/test_resnet.r160_in1k", thousand.state_dict())
    args, start = started("--std", "0.2", "0.2", "0.2")
    assert "images are prepared as timm:test_resnet says: --mean 0.5 0.5 0.5 --train-crop" in capsys.readouterr().out
    assert (args.mean, args.std) == ([0.5] * 3, [0.2] * 3)
    assert (args.train_crop_size, args.val_crop_size) == (160, 160)
    network = train.start_network(args.model, start, ["cat", "dog"], Rank())
    assert "is dropped: the data has 2 others" in capsys.readouterr().out
    assert torch.equal(network.conv1[0].weight, thousand.conv1[0].weight)
    assert network.fc.out_features == 2
    args, _ = started("--preset", "cifar10")
    assert (args.mean, args.train_crop_size) == ([0.5] * 3, 32)
    # a run that goes on needs no weights and does as it did
    resumed = parse_args(["--model", "timm:test_resnet", "--weights", "timm:gone", "--resume", "auto"])
    description = {"mean": [0.5] * 3, "std": [0.2] * 3, "val_crop_size": 160}
    assert train.settle_start(resumed, {"description": description}, Rank()) is None
    assert (resumed.mean, resumed.std, resumed.val_crop_size) == ([0.5] * 3, [0.2] * 3, 160)


def test_timms_weights_teach(cached, thousand):
    cached("timm/test_resnet.r160_in1k", thousand.state_dict())
    wnids = [f"n{number:08d}" for number in range(1000)]
    teacher = read_teacher("timm:test_resnet", "timm:test_resnet", wnids, PRESETS["imagenet"], [1.0])
    factor, offset = teacher.renormalize
    preset = PRESETS["imagenet"]
    shown = (IMAGES[0] - torch.tensor(preset.mean).view(3, 1, 1)) / torch.tensor(preset.std).view(3, 1, 1)
    torch.testing.assert_close(shown * factor + offset, (IMAGES[0] - 0.5) / 0.5, atol=1e-5, rtol=1e-5)
    assert any("shown pixels as it was trained on them (mean (0.5" in note for note in teacher.notes)


def test_a_repository_of_the_hub_is_a_network(cached, few_digits):
    torch.manual_seed(1)
    three = build_model("timm:test_resnet", 3).eval()
    cached("somebody/fish", three.state_dict(), config=json.dumps(CONFIG))
    network, described = load_network("hf://somebody/fish")
    with torch.inference_mode():
        assert torch.equal(network(IMAGES), three(IMAGES))
    assert (described.arch, described.classes) == ("timm:test_resnet", ("cat", "dog", "eel"))
    assert (described.mean, described.std, described.interpolation) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), "lanczos")
    assert (described.val_crop_size, described.val_resize_size) == (96, 100)
    picture = next((few_digits / "val" / "0").iterdir())
    (found,) = Predictor.load("hf://somebody/fish").predict([str(picture)], top=3)
    assert set(found.classes) == {"cat", "dog", "eel"}


def test_an_export_of_ours_on_the_hub_says_all_inside(cached):
    network = build_model("resnet8", 2)
    facts = {
        "architecture": "resnet8",
        "classes": ["cat", "dog"],
        "accuracy": 91.0,
        "input": {"preset": "cifar10", "resize_shorter_side": 40, "center_crop": 32, "interpolation": "bicubic",
                  "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]},
    }  # fmt: skip
    state = network.state_dict()
    cached("us/student", state, checkpoints.safetensors_metadata(state, facts))
    _, described = load_network("hf://us/student@main")
    assert (described.arch, described.classes, described.accuracy) == ("resnet8", ("cat", "dog"), 91.0)
    assert (described.preset, described.val_resize_size, described.mean) == ("cifar10", 40, (0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("timm:huge", None, "timm has no model 'huge'"),
        ("timm:resnet18.nope", None, "timm has no trained weights 'resnet18.nope'; it has resnet18.a1_in1k"),
        ("timm:resnet18", "timm:resnet34", "are not weights of timm:resnet34; name the network timm:resnet18"),
        ("timm:resnet18", None, r"run huggingface-cli download timm/resnet18.a1_in1k model.safetensors config.json, "
                                r"then copy models--timm--resnet18.a1_in1k from its cache into .*hub"),
        ("hf://nobody/nothing", None, "could not fetch 'hf://nobody/nothing' .*copy models--nobody--nothing from"),
        ("hf://nobody", None, "'hf://nobody' is not hf://owner/name"),
        ("hf://some/body/else", None, "is not hf://owner/name"),
        ("Nothing_Weights.V1", None, "torchvision has no weights 'Nothing_Weights.V1'"),
        ("ResNet50_Weights.IMAGENET1K_V1", "resnet18", "are not weights of resnet18"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_told_in_one_line(cached, source, name, message):
    with pytest.raises(UserError, match=message) as caught:
        pretrained.read(source, name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{}", "does not say architecture and pretrained_cfg"),
        ("[", "does not say architecture"),
        (json.dumps({**CONFIG, "pretrained_cfg": {**CONFIG["pretrained_cfg"], "input_size": "big"}}), "size big"),
        (json.dumps({**CONFIG, "pretrained_cfg": {**CONFIG["pretrained_cfg"], "std": [1, 0, 1]}}), "its std is"),
        (json.dumps({**CONFIG, "architecture": "os:system"}), "timm has no model 'os:system'"),
    ],
)
def test_a_config_that_cannot_be_is_refused(cached, config, message):
    cached("bad/one", build_model("timm:test_resnet", 3).state_dict(), config=config)
    with pytest.raises(UserError, match=message):
        load_network("hf://bad/one")


def test_torchvisions_weights_are_looked_for_in_torchs_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(pretrained, "_answers", lambda url: False)
    weights = ResNet18_Weights.IMAGENET1K_V1
    assert pretrained.weights_of("resnet18") == str(weights)
    assert pretrained.weights_of("resnet8") is None
    assert f"fetch {weights.url} elsewhere" in pretrained.missing(str(weights))
    file = tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    file.touch()
    assert pretrained.missing(str(weights)) is None
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: (_ for _ in ()).throw(OSError("no route")))
    file.unlink()
    with pytest.raises(UserError, match=f"download {weights.url} where there is a network and put it into {tmp_path}"):
        pretrained.read(str(weights), "resnet18")

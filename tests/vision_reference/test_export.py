"""Exported files run without this project, in a process of their own, and answer as the original."""

import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from vision_reference import export
from vision_reference.errors import UserError
from vision_reference.images.pipelines import Normalize
from vision_reference.images.presets import PRESETS
from vision_reference.networks import checkpoints
from vision_reference.networks.by_name import build_model
from vision_reference.networks.description import describe_run

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CLASSES = ["ant", "bee", "cow"]
ARGS = {
    "model": "resnet18",
    "preset": "digits",
    "interpolation": "bilinear",
    "train_crop_size": 32,
    "val_resize_size": 32,
    "val_crop_size": 32,
}
# What the cards tell a stranger to do, for a batch of one and of three; argv: folder. No path leads to the project.
STRANGER = """
import sys
import numpy, onnxruntime, safetensors.torch, torch, torchvision
sys.path[:] = [path for path in sys.path if path]
folder = sys.argv[1]
images = torch.from_numpy(numpy.load(f"{folder}/images.npy"))
answers = {}
for name in ("a.onnx", "int8.onnx"):
    session = onnxruntime.InferenceSession(f"{folder}/{name}")
    answers[name] = [session.run(None, {"images": images[:n].numpy()})[0] for n in (1, 3)]
model = torchvision.models.get_model("resnet18", num_classes=3).eval()
model.load_state_dict(safetensors.torch.load_file(f"{folder}/hub/model.safetensors"))
import timm
other = timm.create_model("resnet18", num_classes=3, checkpoint_path=f"{folder}/hub/model.safetensors").eval()
programs = {"a.safetensors": model, "timm": other, "a.pt": torch.jit.load(f"{folder}/a.pt")}
programs["a.pt2"] = torch.export.load(f"{folder}/a.pt2").module()
for name, program in programs.items():
    with torch.inference_mode():
        answers[name] = [program(images[:n]).numpy() for n in (1, 3)]
assert not any(name.startswith("vision_reference") for name in sys.modules)
for name, (one, three) in answers.items():
    numpy.save(f"{folder}/{name}.npy", numpy.concatenate([one, three]))
"""


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_model("resnet18", len(CLASSES))
    for _ in range(3):
        model(torch.randn(16, 3, 32, 32))
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "best.pth"
    description = describe_run(ARGS, CLASSES, {"acc1": 62.5})
    checkpoints.save_atomically(
        {"model": model.state_dict(), "arch": "resnet18", "args": ARGS, "description": description}, path
    )
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(12):
        path = folder / CLASSES[number % 3] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return folder


def test_the_card_of_a_network_that_stands_in_no_library_names_where_it_stands(tmp_path):
    torch.manual_seed(0)
    network = build_model("resnet8", 3)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "model.safetensors")
    facts = {"architecture": "resnet8", "classes": ["ant", "bee", "cow"]}
    found = {}
    exec(
        "import safetensors.torch\n"
        + export._usage(facts, tmp_path / "model.safetensors", "safetensors").replace(
            "'model.safetensors'", repr(str(tmp_path / "model.safetensors"))
        ),
        found,
    )
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(found["model"](image), network.eval()(image))


def run(*words):
    export.main(export.parse_args([str(word) for word in words]))


def test_every_format_answers_as_the_original_where_this_project_is_not(checkpoint, model, pictures, tmp_path, capsys):
    run(checkpoint, "--format", "onnx", "--output", tmp_path / "a.onnx", "--images", pictures)
    assert "the same first class for 100.0 % of 12 images, top-1 " in capsys.readouterr().out
    run(checkpoint, "--format", "onnx", "--int8", "--output", tmp_path / "int8.onnx", "--images", pictures)
    broken = tmp_path / "some broken"
    broken.mkdir()
    for number in range(3):
        (broken / f"{number}.png").write_bytes(
            (next(pictures.rglob("*.png"))).read_bytes()[: 50 if number == 1 else None]
        )
    capsys.readouterr()
    run(checkpoint, "--format", "onnx", "--output", tmp_path / "b.onnx", "--images", broken)
    text = capsys.readouterr().out
    assert f"note: left out unreadable image {broken / '1.png'}" in text
    assert "--skip-unreadable" not in text
    assert "of 2 images" in text
    assert (tmp_path / "int8.onnx").stat().st_size < 0.3 * (tmp_path / "a.onnx").stat().st_size
    run(checkpoint, "--format", "safetensors", "--output", tmp_path / "hub", "--licence", "mit")
    content = bytearray((tmp_path / "hub" / "model.safetensors").read_bytes())
    content[-2000] ^= 0x40
    (tmp_path / "flipped.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        checkpoints.load_checkpoint(tmp_path / "flipped.safetensors")
    for form, name in (("torchscript", "a.pt"), ("torch-export", "a.pt2")):
        run(checkpoint, "--format", form, "--output", tmp_path / name)

    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8))
    images = Normalize(PRESETS["digits"].mean, PRESETS["digits"].std)(pixels).contiguous().numpy()
    np.save(tmp_path / "images.npy", images)
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    for name in ("a.onnx", "a.safetensors", "timm", "a.pt", "a.pt2"):
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), expected[[0, 0, 1, 2]], rtol=1e-3, atol=1e-4)
    rough = np.load(tmp_path / "int8.onnx.npy")
    assert np.abs(rough - expected[[0, 0, 1, 2]]).max() < 0.1 * np.abs(expected).max()

    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert (config["architecture"], config["num_classes"], config["label_names"]) == ("resnet18", 3, CLASSES)
    card = (tmp_path / "hub" / "README.md").read_text()
    assert card.startswith("---\ntags:")
    assert "license: mit" in card
    assert "62.500 % top-1" in card
    assert "`ant`, `bee`, `cow`" in card


def test_a_second_export_replaces_nothing_unasked_and_a_wrong_one_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    target = tmp_path / "a.pt"
    run(checkpoint, "--format", "torchscript", "--output", target)
    before = target.read_bytes()
    with pytest.raises(UserError, match=r"a\.pt exists; give another --output, or --overwrite"):
        run(checkpoint, "--format", "torchscript", "--output", target)
    monkeypatch.setattr(export, "open_exported", lambda *_: lambda images: np.zeros((len(images), 3), np.float32))
    with pytest.raises(UserError, match="the export is off by .* nothing was written"):
        run(checkpoint, "--format", "torchscript", "--output", target, "--overwrite")
    assert target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "a.pt.json", "a.pt.md"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--format", "onnx", "--output", "a.pt"], r"files of --format onnx end in \.onnx"),
        (["--format", "torchscript", "--output", "a.pt", "--int8"], "--int8 is for --format onnx"),
        (["--format", "onnx", "--output", "a.onnx", "--int8"], "--int8 needs --images"),
        (["--format", "onnx", "--output", "a.onnx", "--images", "/nowhere"], "no folder /nowhere"),
    ],
)
def test_a_mistake_is_one_line(checkpoint, words, line):
    with pytest.raises(UserError, match=line):
        run(checkpoint, *words)

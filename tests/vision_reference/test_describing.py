"""Checkpoints know how they are to be used: evaluation, teachers and new runs follow them, or say that they do not."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

from vision_reference.arguments import follow_description, parse_args
from vision_reference.distillation import Teacher
from vision_reference.errors import UserError
from vision_reference.images.presets import PRESETS
from vision_reference.networks import by_name, heads
from vision_reference.networks.by_name import match_classes
from vision_reference.networks.description import Description, from_checkpoint
from vision_reference.networks.teachers import read_teacher
from vision_reference.predict import Predictor

MODEL = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def run(train, tmp_path_factory):
    """A run of one epoch with smoothed labels and a moving average."""
    folder = tmp_path_factory.mktemp("run")
    ema = ["--model-ema", "--model-ema-steps", 1, "--model-ema-decay", 0.999]
    train("--model", MODEL, "--epochs", 1, "--lr", 0.01, "--label-smoothing", 0.1, *ema, "--output-dir", folder)
    return folder


def without(flags, *names):
    """``flags`` without those named and their values."""
    left = []
    skip = False
    for flag in flags:
        if skip or flag in names:
            skip = flag in names
            continue
        left.append(flag)
    return left


def result(text):
    return next(line for line in text.splitlines() if line.startswith("Test:"))


def test_evaluation_takes_network_and_preprocessing_from_the_checkpoint(train, run, metrics, monkeypatch):
    record = metrics(run)[-1]
    expected = f"Acc@1 {record['val_acc1']:.3f}  Acc@5 {record['val_acc5']:.3f}"
    monkeypatch.setattr(train, "flags", without(train.flags, "--preset"))
    text = train("--test-only", "--resume", run / "checkpoint.pth")
    assert f"images are prepared as {run / 'checkpoint.pth'} says: --preset digits" in text
    assert expected in result(text)
    text = train("--test-only", "--resume", run / "checkpoint.pth", "--label-smoothing", 0.1)
    assert f"loss {record['val_loss']:.4f}" in result(text)


def test_the_moving_average_is_evaluated_where_asked_for(train, run, metrics):
    text = train("--test-only", "--model-ema", "--resume", run / "checkpoint.pth", "--label-smoothing", 0.1)
    record = metrics(run)[-1]
    assert f"loss {record['ema_val_loss']:.4f}  Acc@1 {record['ema_val_acc1']:.3f}" in result(text)
    assert record["ema_val_loss"] != record["val_loss"]


def test_flags_given_against_the_checkpoint_are_followed_and_announced(train, run):
    text = train("--test-only", "--resume", run / "checkpoint.pth", "--val-crop-size", 24)
    assert "was trained with --val-crop-size 32, but here --val-crop-size 24 holds" in text


DIGITS = Description(
    "x.pth",
    preset="digits",
    val_resize_size=40,
    val_crop_size=36,
    interpolation="bicubic",
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
)


@pytest.mark.parametrize(
    ("flags", "description", "expected", "notes"),
    [
        ("", DIGITS, ("digits", 40, 36, "bicubic"), 1),
        ("--preset digits --val-resize-size 40 --val-crop-size 36 --interpolation bicubic", DIGITS,
         ("digits", 40, 36, "bicubic"), 0),
        ("--val-crop-size 28", DIGITS, ("digits", 40, 28, "bicubic"), 2),
        ("--preset cifar10", DIGITS, ("cifar10", 32, 32, "bicubic"), 2),  # the sizes of the preset that was given
        ("--interpolation nearest", Description("x.pth"), ("imagenet", 256, 224, "nearest"), 0),
        ("", Description("x.pth", val_crop_size=192), ("imagenet", 256, 192, "bilinear"), 1),
        ("", Description("x.pth", args={"backend": "PIL", "use_v2": False}), ("imagenet", 256, 224, "bilinear"), 0),
    ],
)  # fmt: skip
def test_what_is_not_given_comes_from_the_description(flags, description, expected, notes):
    args = parse_args(["--test-only", "--resume", "auto", *flags.split()])
    assert len(follow_description(args, description)) == notes
    assert (args.preset, args.val_resize_size, args.val_crop_size, args.interpolation) == expected


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (Description("x.pth", preset="mars"), "--preset mars, unknown here; give --preset"),
    ],
)
def test_preprocessing_that_is_unknown_here_is_refused(description, message):
    with pytest.raises(UserError, match=message):
        follow_description(parse_args(["--test-only", "--resume", "auto"]), description)


OWN = Description("x.pth", preset="digits", mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.25))
HALF, IMAGENET = ([0.5] * 3,) * 2, (list(PRESETS["imagenet"].mean), list(PRESETS["imagenet"].std))


@pytest.mark.parametrize(
    ("flags", "description", "colours", "note"),
    [
        ("", OWN, ([0.1, 0.2, 0.3], [1.0, 0.5, 0.25]), "--mean 0.1 0.2 0.3 --preset digits --std 1 0.5 0.25"),
        ("--mean 0 0 0", OWN, ([0.0] * 3, [1.0, 0.5, 0.25]), "with --mean 0.1 0.2 0.3, but here --mean 0 0 0 holds"),
        ("--preset imagenet", OWN, IMAGENET, "with --preset digits, but here --preset imagenet holds"),
        ("", DIGITS, HALF, "says: --interpolation bicubic --preset digits --val-crop-size 36"),
        ("", Description("x.pth"), IMAGENET, None),
        ("", Description("x.pth", preset="digits"), HALF, "--preset digits"),
    ],
)
def test_colours_come_from_the_weights_unless_they_are_given(flags, description, colours, note):
    args = parse_args(["--test-only", "--resume", "auto", *flags.split()])
    notes = " ".join(follow_description(args, description))
    assert (args.mean, args.std) == colours
    assert note in notes if note else not notes


def test_weights_whose_interpolation_the_loader_lacks_are_refused():
    args = parse_args(["--test-only", "--resume", "auto", "--loader", "dali"])
    with pytest.raises(UserError, match="--interpolation lanczos does not go with --loader dali, which takes bilinear"):
        follow_description(args, Description("x.pth", interpolation="lanczos"))


def test_colours_of_ones_own_are_recorded_and_followed(train, few_digits, tmp_path, metrics):
    colours = ["--mean", 0.25, 0.5, 0.75, "--std", 0.2, 0.4, 0.8]
    train(
        "--model", MODEL, "--epochs", 1, "--lr", 0.01, *colours, "--interpolation", "lanczos", "--output-dir", tmp_path
    )
    description = torch.load(tmp_path / "best.pth", weights_only=True)["description"]
    assert (description["mean"], description["std"]) == ([0.25, 0.5, 0.75], [0.2, 0.4, 0.8])
    text = train("--test-only", "--resume", tmp_path / "best.pth")
    assert "says: --interpolation lanczos --mean 0.25 0.5 0.75 --std 0.2 0.4 0.8" in text
    assert f"Acc@1 {metrics(tmp_path)[-1]['val_acc1']:.3f}" in result(text)
    (picture, *_) = sorted((few_digits / "val" / "3").iterdir())
    (found,) = Predictor.load(str(tmp_path / "best.pth")).predict([str(picture)], top=4)
    network, _ = by_name.load_network(tmp_path / "best.pth")
    with Image.open(picture) as image:  # prepared by hand
        pixels = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.LANCZOS)) / 255
    shown = (pixels - [0.25, 0.5, 0.75]) / [0.2, 0.4, 0.8]
    logits = network(torch.tensor(shown, dtype=torch.float32).permute(2, 0, 1)[None])
    expected = logits[0].double().softmax(0).sort(descending=True).values.tolist()
    assert found.probabilities == pytest.approx(expected, rel=1e-4)
    # a student with other colours: its teacher is shown its own
    text = train("--teacher", MODEL, "--teacher-weights", tmp_path / "best.pth", "--model", MODEL, "--epochs", 0,
                 "--output-dir", tmp_path / "student")  # fmt: skip
    assert "is shown pixels as it was trained on them (mean (0.25, 0.5, 0.75), std (0.2, 0.4, 0.8))" in text


def renamed(data, target, names):
    shutil.copytree(data, target)
    for split in ("train", "val"):
        for old, new in names.items():
            (target / split / old).rename(target / split / f"new-{new}")
        for new in names.values():
            (target / split / f"new-{new}").rename(target / split / new)
    return target


def test_classes_are_matched_by_name_or_refused_wherever_weights_meet_data(train, run, few_digits, tmp_path):
    named = renamed(few_digits, tmp_path / "named", {"0": "zero", "1": "one", "2": "two", "3": "three"})
    weights = run / "checkpoint.pth"
    for flags in (
        ["--test-only", "--resume", weights],
        ["--resume", weights, "--epochs", 2, "--output-dir", tmp_path / "a", "--model", MODEL],
        ["--teacher", MODEL, "--teacher-weights", weights, "--epochs", 1, "--output-dir", tmp_path / "b"],
    ):
        text = train(*flags, "--data-path", named, expect=2)
        assert "was trained on other classes than the data has (only in the data: one, three, two" in text
    text = train("--init-weights", weights, "--model", MODEL, "--epochs", 1, "--data-path", named,
                 "--output-dir", tmp_path / "c")  # fmt: skip
    assert "the head of" in text
    assert "of 4 classes (0, 1, 2, 3), is dropped" in text


def test_swapped_names_swap_the_rows_and_keep_the_accuracy(train, run, few_digits, tmp_path, metrics):
    state = torch.load(run / "checkpoint.pth", weights_only=True)
    del state["lskd_checksum"]
    order = [2, 0, 3, 1]
    state["description"]["classes"] = [str(place) for place in order]
    for name in ("fc.weight", "fc.bias"):
        state["model"][name] = state["model"][name][order]
    torch.save(state, tmp_path / "reordered.pth")
    record = metrics(run)[-1]
    text = train("--test-only", "--resume", tmp_path / "reordered.pth")
    assert "has the data's classes in another order; they are matched by name" in text
    assert f"Acc@1 {record['val_acc1']:.3f}  Acc@5 {record['val_acc5']:.3f}" in result(text)
    flags = ["--model", MODEL, "--epochs", 2, "--output-dir", tmp_path / "a"]
    text = train("--resume", tmp_path / "reordered.pth", *flags, expect=2)
    assert "another order, and its optimizer cannot be rearranged" in text


def test_class_order_is_a_permutation_or_a_refusal_that_names_the_difference():
    assert heads.class_order(["a", "b", "c"], ["a", "b", "c"], "x") is None
    assert heads.class_order(["a", "b", "c"], ["c", "a", "b"], "x") == [2, 0, 1]
    for data in (["a", "b"], ["a", "b", "c", "d"], ["a", "b", "z"]):
        with pytest.raises(UserError, match="other classes than the data"):
            heads.class_order(["a", "b", "c"], data, "x")


@pytest.mark.parametrize("layer", [nn.Linear(5, 3), nn.Linear(5, 3, bias=False), nn.Conv2d(5, 3, 1)])
def test_reordering_permutes_the_logits(layer):
    model = nn.Sequential(layer, nn.Flatten())
    x = torch.randn(2, 5, *([1, 1] if isinstance(layer, nn.Conv2d) else []))
    before = model(x)
    heads.reorder_classes(model, [2, 0, 1])
    assert torch.equal(model(x), before[:, [2, 0, 1]])


def test_names_that_cannot_be_compared_are_said_unless_all_use_the_same():
    network, words = nn.Linear(2, 2), Description("ResNet18_Weights.IMAGENET1K_V1", classes=("tench", "goldfish"))
    assert match_classes(network, words, ["n01440764", "n01443537"]) == []
    assert "does not name its classes as the data does" in match_classes(network, words, ["a", "b"])[0]
    assert "does not name its classes" in match_classes(network, Description("old.pth"), ["a", "b"])[0]
    assert "matched by name" in match_classes(network, words, ["goldfish", "tench"])[0]


def test_a_teacher_sees_pixels_as_in_its_own_training(run, few_digits):
    images = torch.rand(3, 3, 32, 32)

    def answers(preset):
        trained = read_teacher(MODEL, str(run / "best.pth"), ["0", "1", "2", "3"], PRESETS[preset], [1.0])
        mean, std = (torch.tensor(part).view(3, 1, 1) for part in (PRESETS[preset].mean, PRESETS[preset].std))
        machine = torch.device("cpu"), torch.contiguous_format, lambda: torch.autocast("cpu", enabled=False)
        teacher = Teacher(trained.network, *machine, renormalize=trained.renormalize)
        return teacher((images - mean) / std), trained.notes

    own, notes = answers("digits")
    assert notes == []
    other, notes = answers("imagenet")
    assert "pixels as it was trained on them" in notes[0]
    torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("temperature", "said"), [(1.0, False), (2.0, True)])
def test_a_smoothed_teacher_at_a_high_temperature_is_warned_about(run, temperature, said):
    trained = read_teacher(MODEL, str(run / "best.pth"), ["0", "1", "2", "3"], PRESETS["digits"], [temperature])
    assert any("--label-smoothing 0.1" in note for note in trained.notes) is said


def test_published_weights_are_evaluated_as_their_publisher_does(train, monkeypatch, digits):
    torch.manual_seed(0)
    network = resnet18(num_classes=1000)
    monkeypatch.setattr(type(ResNet18_Weights.DEFAULT), "get_state_dict", lambda *_, **__: network.state_dict())
    _, description = by_name.read_state("ResNet18_Weights.IMAGENET1K_V1", None)
    args = parse_args(["--test-only", "--weights", "ResNet18_Weights.IMAGENET1K_V1", "--preset", "imagenet"])
    assert follow_description(args, description) == []
    assert (args.val_resize_size, args.val_crop_size, args.interpolation) == (256, 224, "bilinear")
    text = train("--test-only", "--weights", "ResNet18_Weights.IMAGENET1K_V1", expect=2)
    assert "the file has 1000 classes, the model 4" in text


def test_the_average_of_the_weights_has_an_accuracy_of_its_own():
    content = {"model": {}, "description": {"accuracy": {"acc1": 50.0, "ema_acc1": 60.0}}}
    assert from_checkpoint(content, "x.pth").accuracy == 50.0
    assert from_checkpoint(content, "x.pth", ema=True).accuracy == 60.0


def test_images_that_were_trained_on_and_count_are_said():
    description = from_checkpoint({"model": {}, "args": {"split": 0.1}}, "x.pth")
    for split, is_said in (("0.1", False), ("0.05", False), ("0.5", True)):
        args = parse_args(["--test-only", "--resume", "x.pth", "--split", split])
        notes = follow_description(args, description)
        assert ["x.pth was trained with --split 0.1: of the images" in note for note in notes] == [True] * is_said

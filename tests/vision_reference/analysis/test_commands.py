"""The three commands from their command lines to their files, on real digits and untrained networks."""

import csv
import json
import shlex
import shutil
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vision_reference.analysis import diffusion_index, geometry, inspect_teacher, penultimate, subjects
from vision_reference.arguments import parse_args
from vision_reference.data import Source, list_samples
from vision_reference.errors import UserError
from vision_reference.images.pipelines import Normalize, evaluation_pipeline
from vision_reference.images.presets import PRESETS
from vision_reference.machine import Rank
from vision_reference.networks.by_name import load_network


@pytest.fixture
def flags(few_digits):
    return ["--data-path", few_digits, "--device", "cpu", "--workers", "0"]


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def network_sees(path, samples):
    """Features and logits by hand, one image at a time."""
    network, _ = load_network(path)
    preset = PRESETS["digits"]
    show = evaluation_pipeline(resize_size=32, crop_size=32)
    normalize = Normalize(preset.mean, preset.std)
    found = []
    network.fc.register_forward_hook(lambda _module, inputs, output: found.append((inputs[0][0], output[0])))
    with torch.inference_mode():
        for file, _ in samples:
            network(normalize(show(Image.open(file).convert("RGB")))[None])
    return [torch.stack(part).double().numpy() for part in zip(*found, strict=True)], network


def test_the_picture_shows_what_projection_and_components_make_of_the_features(
    command, checkpoints, flags, few_digits, tmp_path
):
    networks = ["--checkpoint", f"plain={checkpoints['plain']}", "--checkpoint", f"other={checkpoints['other']}"]
    text = command(penultimate, *networks, *flags, "--classes", "3,1,0", "--output", tmp_path)
    assert "classes 3, 1, 0" in text
    rows = table(tmp_path / "penultimate.csv")
    images = subjects.read_images(few_digits)
    shown = {(row["network"], row["split"]) for row in rows}
    assert shown == {(name, split) for name in ("plain", "other") for split in ("training", "validation")}
    training = [sample for c in (3, 1, 0) for sample in images.train if sample[1] == c]
    validation = [sample for c in (3, 1, 0) for sample in images.val if sample[1] == c]
    assert len(rows) == 2 * (len(training) + len(validation) + 6)
    for kind in ("png", "pdf", "svg"):
        assert (tmp_path / f"penultimate.{kind}").stat().st_size > 5000
    svg = (tmp_path / "penultimate.svg").read_text()
    assert ">class mean</text>" in svg  # text as text
    # By hand, in float64: the plane by pseudo-inverse instead of QR, components by the covariance's eigenvectors.
    (features, _), network = network_sees(checkpoints["plain"], training)
    (held_out, _), _ = network_sees(checkpoints["plain"], validation)
    weights = np.column_stack([network.fc.weight.detach(), network.fc.bias.detach()])[[3, 1, 0]].astype(float)

    def onto_plane(rows):
        return np.column_stack([rows, np.ones(len(rows))]) @ np.linalg.pinv(weights) @ weights

    flat = onto_plane(features)
    labels = np.array([label for _, label in training])
    cloud = np.concatenate([flat, [flat[labels == c].mean(0) for c in (3, 1, 0)]])
    directions = np.linalg.eigh(np.cov(cloud.T))[1][:, ::-1][:, :2]
    for split, points in (("training", flat), ("validation", onto_plane(held_out))):
        drawn = [row for row in rows if (row["network"], row["split"], row["kind"]) == ("plain", split, "image")]
        mine = np.array([[float(row["x"]), float(row["y"])] for row in drawn])
        np.testing.assert_allclose(np.abs(mine), np.abs((points - cloud.mean(0)) @ directions), rtol=1e-3, atol=1e-3)


def test_auto_chooses_the_most_confused_pair_and_a_class_far_from_both(command, checkpoints, flags, tmp_path):
    text = command(penultimate, "--checkpoint", f"a={checkpoints['plain']}", *flags, "--auto", "--output", tmp_path)
    assert text.splitlines()[-1].startswith("classes ")
    assert len({row["class"] for row in table(tmp_path / "penultimate.csv")}) == 3
    # Four classes on a line at 0, 1, 5, 9; two errors between 2 and 3, one between 0 and 1.
    features, labels = np.array([0.0, 1, 5, 9, 5, 0])[:, None], np.array([0, 1, 2, 3, 2, 0])
    found = np.array([0, 1, 2, 2, 3, 1])
    assert penultimate.choose_classes(np.eye(4)[found], features, labels, 4) == [2, 3, 0]
    # Without errors the probabilities decide: 0 and 1 are likeliest on each other's images.
    logits = np.eye(4)[labels] * 9
    logits[labels == 0, 1] = 3
    assert penultimate.choose_classes(logits, features, labels, 4)[:2] == [0, 1]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--classes", "3,1,nosuch"], "no class 'nosuch'"),
        (["--classes", "3,1"], "exactly three different classes"),
        (["--classes", "3,1,3"], "exactly three different classes"),
        (["--classes", "3,1,0", "--train-images", "500"], "training images, 500 were asked for"),
        (["--classes", "3,1,0", "--val-images", "0"], "'0' is not an integer from 1"),
        (["--classes", "3,1,0", "--checkpoint", "plain=x.pth"], "plain=... is given twice"),
        (["--classes", "3,1,0", "--checkpoint", "x.pth"], "is not NAME=PATH"),
        (["--classes", "3,1,0", "--checkpoint", "b=nosuch.pth"], "no checkpoint file 'nosuch.pth'"),
        ([], "one of the arguments --classes --auto is required"),
    ],
)
def test_what_the_picture_cannot_show_is_one_line(command, checkpoints, flags, tmp_path, extra, message):
    start = ["--checkpoint", f"plain={checkpoints['plain']}", *flags, "--output", tmp_path]
    assert message in command(penultimate, *start, *extra, expect=2)


def test_one_image_a_class_is_too_few(command, flags, few_digits, checkpoints, tmp_path):
    data = tmp_path / "data"
    for split in ("train", "val"):
        for label in range(4):
            (data / split / str(label)).mkdir(parents=True)
            shutil.copy(sorted((few_digits / split / str(label)).iterdir())[0], data / split / str(label))
    flags = ["--data-path", data, *flags[2:], "--output", tmp_path / "out"]
    plain = f"plain={checkpoints['plain']}"
    text = command(penultimate, "--checkpoint", plain, *flags, "--classes", "3,1,0", expect=2)
    assert "class 3 has 1 training image" in text
    students = ["--plain-teacher", checkpoints["plain"], "--reference", plain, "--student", f"plain:2={plain[6:]}"]
    assert "class 0 has one image" in command(diffusion_index, *students, *flags, expect=2)
    text = command(inspect_teacher, "--checkpoint", checkpoints["plain"], *flags)
    assert "features      not looked at" in text


def line_of_classes(places):
    """Class means on a line."""
    return np.array(places, dtype=float)[:, None]


def test_eta_of_hand_made_students_of_two_seeds():
    # Class 0's look-alike is class 1 and the other way round, 2's is 3; the farthest are 3, 3, 0.
    probabilities = np.array(
        [[0.6, 0.3, 0.08, 0.02], [0.3, 0.6, 0.08, 0.02], [0.02, 0.08, 0.6, 0.3], [0.0, 0.1, 0.2, 0.7]]
    )
    before, after = line_of_classes([0, 4, 6, 10]), line_of_classes([0, 2, 6, 10])
    index = diffusion_index.compute(
        probabilities, {"smoothed": [before, 3 * before]}, {("smoothed", 3.0): [after, 3 * before]}
    )
    assert index.count == 1
    assert index.similar[:, 0].tolist() == [1, 0, 3, 2]
    assert index.control[:, 0].tolist() == [3, 3, 0, 0]
    (cell,) = index.cells
    # Of the first seed as in test_geometry; the second did not move.
    etas = [100 * (0.6 - 1 / 3) / 0.6, 100 * (1 - 3 / 7), None, 100 * (0.6 - 6 / 11) / 0.6]
    # Class 2: distances 6, 2, 4 (mean 4) become 6, 4, 4 (mean 14 / 3): d to class 3 falls from 1 to 6 / 7.
    etas[2] = 100 * (1 - 6 / 7)
    np.testing.assert_allclose(cell.similar.per_class, np.array(etas) / 2)
    assert cell.similar.seeds == pytest.approx([np.mean(etas), 0], abs=1e-9)
    assert cell.similar.mean == pytest.approx(np.mean(etas) / 2)
    assert cell.similar.seed_sd == pytest.approx(np.std([np.mean(etas), 0], ddof=1))
    assert cell.similar.low <= cell.similar.mean <= cell.similar.high
    # Control of class 0: d to class 3 rises from 10 / (20 / 3) to 10 / 6.
    assert cell.control.per_class[0] == pytest.approx(100 * (1.5 - 10 / 6) / 1.5 / 2)


def test_students_that_cannot_be_compared_are_refused():
    similar, means = np.full((4, 4), 0.25), line_of_classes([0, 1, 2, 5])
    for references, students, message in (
        ({"a": [means]}, {("b", 2.0): [means]}, "no reference"),
        ({"a": [means]}, {("a", 2.0): [means, means]}, "1 references and 2 students"),
        ({"a": [means]}, {("a", 2.0): [means[:3]]}, "networks of 4, 3 and 4 classes"),
        ({"a": [means]}, {("a", 2.0): [means * 0]}, "the same"),
    ):
        with pytest.raises(UserError, match=message):
            diffusion_index.compute(similar, references, students)
    with pytest.raises(UserError, match="2 classes are too few"):
        diffusion_index.compute(np.eye(2), {}, {})


def test_the_diffusion_index_from_the_command_line(command, checkpoints, flags, few_digits, tmp_path):
    plain, other = checkpoints["plain"], checkpoints["other"]
    groups = tmp_path / "groups.tsv"
    groups.write_text("class\tgroup\n0\tround\n1\tlong\n2\tround\n3\tround\n")
    text = command(
        diffusion_index, *flags, "--output", tmp_path / "out", "--plain-teacher", plain, "--groups", groups,
        "--reference", f"plain={plain},{other}", "--student", f"plain:2={other},{other}",
        "--reference", f"mine={other}", "--student", f"mine:64={plain}",
    )  # fmt: skip
    assert "2 seeds" in text
    result = json.loads((tmp_path / "out" / "diffusion_index.json").read_text())
    rows = table(tmp_path / "out" / "diffusion_index.csv")
    assert len(rows) == 2 * 4
    # By hand from the networks' features.
    images = subjects.read_images(few_digits)
    labels = np.array([label for _, label in images.val])
    (before, logits), _ = network_sees(plain, images.val)
    (after, other_logits), _ = network_sees(other, images.val)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for c in range(4):
        mean = probabilities[labels == c].mean(0)
        mean[c] = -1
        assert result["similar"][str(c)] == [str(mean.argmax())]

    def d(features, c, k):
        means = [features[labels == j].mean(0) for j in range(4)]
        lengths = [np.linalg.norm(means[c] - means[j]) for j in range(4) if j != c]
        return np.linalg.norm(means[c] - means[k]) / np.mean(lengths)

    for c in range(4):
        k = int(result["similar"][str(c)][0])
        eta = 100 * (d(before, c, k) - d(after, c, k)) / d(before, c, k)
        assert float(rows[c]["eta_percent"]) == pytest.approx(eta / 2, rel=1e-2)  # the second seed is its own reference
    cells = {(cell["kind"], cell["temperature"]): cell for cell in result["errors_in_groups"]}
    wrong = [(y, z) for y, z in zip(labels, other_logits.argmax(1), strict=True) if y != z]
    assert cells["mine", 1.0]["errors"] == len(wrong)
    assert cells["mine", 1.0]["inside"] == sum((y == 1) == (z == 1) for y, z in wrong)
    for kind in ("png", "pdf", "svg"):
        assert (tmp_path / "out" / f"diffusion_index.{kind}").stat().st_size > 5000


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--reference", "a=x", "--student", "b:2=y"], "--student b:2=... has no --reference b=PATH"),
        (["--reference", "a=x,x2", "--student", "a:2=y"], "--reference a has 2 seeds, --student a:2 has 1"),
        (["--reference", "a=x", "--reference", "a=z", "--student", "a:2=y"], "--reference a=... is given twice"),
        (["--reference", "a=x", "--student", "a:2=y", "--student", "a:2=y"], "--student a:2=... is given twice"),
        (["--reference", "a=x", "--student", "a:1=y"], "at the reference's temperature"),
        (["--reference", "a=x", "--student", "a=y"], "is not KIND:T=PATH"),
        (["--reference", "a=x", "--student", "a:0=y"], "is not KIND:T=PATH"),
        (["--reference", "a=x", "--student", "a:2=y", "--groups", "f", "--clusters", "2"], "both say how"),
        (["--reference", "a=x", "--student", "a:2=y", "--groups", "nosuch"], "cannot read the groups"),
    ],
)
def test_what_cannot_be_compared_is_one_line_before_anything_is_loaded(command, flags, tmp_path, extra, message):
    start = [*flags, "--output", tmp_path, "--plain-teacher", "nosuch.pth"]
    assert message in command(diffusion_index, *start, *extra, expect=2)


def test_networks_of_other_classes_are_one_line(command, checkpoints, flags, tmp_path):
    text = command(inspect_teacher, "--checkpoint", checkpoints["three"], *flags, "--output", tmp_path, expect=2)
    assert "tells 3 classes apart" in text


def test_a_network_with_constant_features_is_one_line(command, flags, tmp_path, write_checkpoint):
    path = write_checkpoint(tmp_path / "constant.pth")
    content = torch.load(path, weights_only=True)
    content["model"]["layer3.0.bn2.weight"].zero_()
    content["model"]["layer3.0.downsample.1.weight"].zero_()
    torch.save(content, path)
    same = f"a={path}"
    output = ["--output", tmp_path / "out"]
    text = command(penultimate, "--checkpoint", same, *flags, *output, "--classes", "3,1,0", expect=2)
    assert "features of all images are the same" in text
    students = ["--plain-teacher", path, "--reference", same, "--student", f"a:2={path}"]
    assert "of all classes are the same" in command(diffusion_index, *students, *flags, *output, expect=2)
    assert "of all classes are the same" in command(inspect_teacher, "--checkpoint", path, *flags, *output, expect=2)


def test_the_line_that_distils_shows_the_student_what_the_teacher_sees():
    pixels = subjects.Pixels(48, 40, "bicubic", (0.1, 0.2, 0.3), PRESETS["digits"].std)
    recorded = {"train_crop_size": 36}
    teacher = SimpleNamespace(arch="resnet8", source="my teacher/best.pth", recorded=recorded, pixels=pixels)
    line = inspect_teacher.next_command(teacher, Path("my data"), "imagefolder", "digits", 1.0, 0.1)
    args = parse_args(shlex.split(line.replace("STUDENT", "resnet8"))[2:])
    assert (args.data_path, args.teacher_weights) == ("my data", "my teacher/best.pth")
    assert args.split == 0.1
    assert (args.train_crop_size, args.val_resize_size, args.val_crop_size) == (36, 48, 40)
    assert (args.preset, args.interpolation, args.mean) == ("digits", "bicubic", [0.1, 0.2, 0.3])
    assert "--std" not in line


def test_images_are_found_as_train_py_finds_them(few_digits, tmp_path, monkeypatch):
    (tmp_path / "train").symlink_to(few_digits / "train")
    with pytest.raises(UserError, match="no folder .*val; give --split 0.1"):
        subjects.read_images(tmp_path)
    images = subjects.read_images(tmp_path, split=0.25)
    source = Source.of(parse_args(["--data-path", str(tmp_path), "--split", "0.25"]))
    data = list_samples(source, Rank())
    assert (list(images.train), list(images.val), images.classes) == (list(data.train), list(data.val), data.classes)
    assert list(subjects.read_images(tmp_path, split=0.25, train=False).val) == list(data.val)

    mine = types.ModuleType("mine")
    mine.pictures = lambda root, split: [(str(path), path.parent.name) for path in (root / split).glob("*/*.png")]
    monkeypatch.setitem(sys.modules, "mine", mine)
    own, usual = subjects.read_images(few_digits, dataset="mine:pictures"), subjects.read_images(few_digits)
    assert (sorted(own.val), sorted(own.train), own.classes) == (sorted(usual.val), sorted(usual.train), usual.classes)
    with pytest.raises(UserError, match="--split is for --dataset imagefolder"):
        subjects.read_images(few_digits, dataset="mine:pictures", split=0.1)


def test_the_inspection_says_what_the_outputs_are(command, checkpoints, flags, few_digits, tmp_path):
    text = command(inspect_teacher, "--checkpoint", checkpoints["other"], *flags, "--output", tmp_path)
    lines = [line for line in text.splitlines() if not line.startswith(("note:", "teacher: "))]  # notes and progress
    assert len(lines) == 10
    result = json.loads((tmp_path / "inspection.json").read_text())
    assert result["text"] == lines
    images = subjects.read_images(few_digits)
    labels = np.array([label for _, label in images.val])
    (features, logits), _ = network_sees(checkpoints["other"], images.val)
    assert result["accuracy"]["top1"] == pytest.approx(100 * (logits.argmax(1) == labels).mean())
    assert result["accuracy"]["top5"] == 100
    nll = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item()
    assert result["calibration"]["negative_log_likelihood"] == pytest.approx(nll, rel=1e-4)
    assert result["features"]["ratio"] == pytest.approx(geometry.spread(features, labels, 4).ratio, rel=1e-4)
    assert result["smoothing"]["answer"] == "cannot tell"  # four classes
    assert result["smoothing"]["recorded"] == {"label_smoothing": 0.1}
    assert result["rule"]["kind"] == "smoothed"
    assert "--teacher resnet8" in lines[-1]
    assert "--preset digits" in lines[-1]
    assert result["outputs"]["64"]["entropy"] > result["outputs"]["1"]["entropy"]
    for kind in ("png", "pdf", "svg"):
        assert (tmp_path / f"inspection.{kind}").stat().st_size > 5000


def test_the_rule_of_thumb_follows_what_is_recorded_before_what_it_looks_like():
    def kind(answer, recorded):
        return inspect_teacher.rule_of_thumb({"answer": answer, "recorded": recorded})["kind"]

    assert kind("not smoothed", {"label_smoothing": 0.1}) == "smoothed"
    assert kind("smoothed", {"label_smoothing": 0.0}) == "plain"
    assert kind("smoothed", {"max_suppression": 0.1}) == "max suppression"
    assert kind("smoothed", None) == "smoothed"
    assert kind("not smoothed", None) == "plain"
    assert kind("cannot tell", None) == "unknown"
    recorded = inspect_teacher._recorded_regularizer
    assert recorded({"label_smoothing": 0.0, "max_suppression": 0.1}) == {"max_suppression": 0.1}
    assert recorded({"label_smoothing": 0.0, "kd_temperature": 1.0}) == {"label_smoothing": 0.0}
    assert recorded({"lr": 0.1}) is None


def test_a_teacher_without_errors_is_inspected_too():
    logits = np.eye(12)[np.arange(120) % 12] * 20
    result = inspect_teacher.inspect(logits, np.arange(120) % 12, [f"c{k}" for k in range(12)])
    assert result["confusions"] == []
    assert result["calibration"]["calibrating_temperature"] is None
    assert result["selective"]["area_under_risk_coverage"] == 0
    lines = inspect_teacher.sentences(result, "perfect", "run")
    assert len(lines) == 10
    assert "no temperature calibrates it" in lines[2]
    inspect_teacher.figure(result)
    with pytest.raises(UserError, match="not finite"):
        inspect_teacher.inspect(logits * np.nan, np.arange(120) % 12, ["c"] * 12)
    with pytest.raises(UserError, match="no images"):
        inspect_teacher.inspect(logits[:0], np.arange(0), ["c"] * 12)

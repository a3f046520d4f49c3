"""Soft labels stored once: the teacher's pixels, its answers, and one line for whatever does not fit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

from vision_reference import store_soft_labels
from vision_reference.analysis.stored_error import REPORTED, error_rows
from vision_reference.arguments import parse_args
from vision_reference.distillation import Teacher
from vision_reference.files import seal, unseal
from vision_reference.images.folders import image_folder
from vision_reference.images.pipelines import Normalize, training_pipeline
from vision_reference.images.presets import PRESETS
from vision_reference.images.torch_loader import ImageDataset
from vision_reference.machine import Rank
from vision_reference.soft_labels.store import FORMAT, Store
from vision_reference.soft_labels.stored_teachers import SoftLabels
from vision_reference.train import open_data

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
FILES = ("labels.bin", "manifest.json", "views.bin")


def teacher_file(path, seed, classes=4):
    """A teacher with an opinion: logits between about -5 and 5."""
    torch.manual_seed(seed)
    network = resnet18(num_classes=classes)
    network.fc.weight.data.mul_(8)
    torch.save({"model": network.state_dict(), "arch": "resnet18", "args": {"label_smoothing": 0.1}}, path)
    return ["--teacher", "resnet18", "--teacher-weights", str(path)]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return teacher_file(tmp_path_factory.mktemp("teacher") / "teacher.pth", 0)


@pytest.fixture(scope="module")
def stored(store, teacher, tmp_path_factory):
    """Two views of each image, all classes."""
    folder = tmp_path_factory.mktemp("stores") / "stored"
    text = store(*teacher, "--views", 2, "--seed", 1, "--output-dir", folder)
    return folder, text


@pytest.fixture(scope="module")
def top_two(store, teacher, stored, tmp_path_factory):
    """The same views, the two largest logits."""
    folder = tmp_path_factory.mktemp("stores") / "top2"
    store(*teacher, "--top-k", 2, "--temperatures", "1,3", "--same-views-as", stored[0], "--output-dir", folder)
    return folder


@pytest.fixture(scope="module")
def second(store, stored, tmp_path_factory):
    """Another teacher about the same views."""
    flags = teacher_file(tmp_path_factory.mktemp("teacher") / "second.pth", 5)
    folder = tmp_path_factory.mktemp("stores") / "second"
    store(*flags, "--same-views-as", stored[0], "--output-dir", folder)
    return folder


def student_batches(data, folder, epoch, *flags, rank=None):
    """What a student sees and is told in an epoch: {index: (pixels, logits)}."""
    command = ["--data-path", str(data), "--preset", "digits", "--device", "cpu", "--workers", "0", "--batch-size", "9"]
    args = parse_args([*command, "--soft-labels", str(folder), "--seed", "77", *map(str, flags)])
    loader, _, _ = open_data(args, rank or Rank(), CPU, torch.contiguous_format)
    seen = {}
    for images, labels, indices, logits in loader.epoch(epoch):
        assert len(images) == len(labels) == len(logits) == len(indices)
        seen |= {index: parts for index, *parts in zip(indices.tolist(), images, logits, strict=True)}
    return seen


AUGMENTATIONS = {
    "digits": "",
    "crops, RandAugment, erasing": "--preset imagenet --train-crop-size 32 --auto-augment ra --random-erase 0.3",
    "tensors, v2, AutoAugment": "--preset cifar10 --backend tensor --use-v2 --auto-augment cifar10",
}


@pytest.mark.parametrize("flags", AUGMENTATIONS.values(), ids=AUGMENTATIONS.keys())
def test_the_student_sees_the_very_pixels_that_the_teacher_saw_and_its_answer_to_them(
    store, teacher, few_digits, tmp_path, monkeypatch, flags
):
    seen = []

    class Recording(Teacher):
        def __call__(self, images):
            answer = super().__call__(images)
            seen.extend(zip(images.clone(), answer, strict=True))
            return answer

    monkeypatch.setattr(store_soft_labels, "Teacher", Recording)
    store(*teacher, "--views", 2, "--output-dir", tmp_path / "s", *flags.split())
    assert len(seen) == 2 * 83
    for epoch, view in ((0, 0), (1, 1), (2, 0), (5, 1)):
        shown = student_batches(few_digits, tmp_path / "s", epoch, *flags.split())
        assert sorted(shown) == list(range(83))
        for index, (pixels, logits) in shown.items():
            teachers_pixels, answer = seen[83 * view + index]
            assert torch.equal(pixels, teachers_pixels)
            assert torch.equal(logits, (answer.double() - answer.double().max()).half())


def test_every_process_gets_the_answers_to_its_own_images(few_digits, stored):
    alone = student_batches(few_digits, stored[0], 1)
    shared = [student_batches(few_digits, stored[0], 1, rank=Rank(rank, 3)) for rank in range(3)]
    assert sum(len(part) for part in shared) == 83
    for part in shared:
        for index, (pixels, logits) in part.items():
            assert torch.equal(pixels, alone[index][0])
            assert torch.equal(logits, alone[index][1])


def test_a_student_learns_from_the_store_as_from_the_teacher_itself(train, teacher, stored, tmp_path, metrics):
    # Seed 1 stored epochs 0 and 1 of a run with seed 1: the same pixels in the same order. A student without batch
    # norm, because on so few pixels that would blow float16's rounding up within a few steps.
    flags = ["--model", "squeezenet1_1", "--epochs", 2, "--kd-temperature", 2, "--kd-weight", 0.7, "--lr", 0.005]
    flags += ["--label-smoothing", 0.1, "--output-dir"]
    train(*flags, tmp_path / "online", *teacher)
    text = train(*flags, tmp_path / "stored", "--soft-labels", stored[0])
    assert "soft labels of resnet18: 2 views of each image; epoch e (from 1) shows view (e - 1) mod 2" in text
    assert "kd " in text
    for online, offline in zip(metrics(tmp_path / "online"), metrics(tmp_path / "stored"), strict=True):
        for figure in ("train_loss", "kd_loss", "ce_loss", "val_loss"):
            assert offline[figure] == pytest.approx(online[figure], rel=2e-3)


def test_a_run_from_two_stores_resumes_to_the_bit(train, stored, second, tmp_path):
    flags = ["--model", "shufflenet_v2_x0_5", "--soft-labels", f"{stored[0]},{second}", "--output-dir"]
    train(*flags, tmp_path / "straight", "--epochs", 3)
    train(*flags, tmp_path / "stopped", "--epochs", 2)
    train(*flags, tmp_path / "stopped", "--epochs", 3, "--resume", "auto")
    straight, stopped = (
        torch.load(tmp_path / name / "checkpoint.pth", weights_only=True)["model"] for name in ("straight", "stopped")
    )
    assert all(torch.equal(straight[name], stopped[name]) for name in straight)


def images_of_view(folder, store, view):
    """Normalized images (83, 3, 32, 32) of a stored view, made from its seeds alone."""
    samples, _ = image_folder(folder)
    preset = PRESETS["digits"]
    dataset = ImageDataset(samples, training_pipeline(preset, crop_size=32))
    pixels = torch.stack([dataset[index, int(store.views["seed"][view, index])][0] for index in range(len(samples))])
    return Normalize(preset.mean, preset.std)(pixels)


@pytest.mark.parametrize("tail", ["uniform", "drop"])
def test_top_k_answers_are_the_teachers_at_each_temperature(few_digits, teacher, top_two, tail):
    network = resnet18(num_classes=4).eval()
    network.load_state_dict(torch.load(teacher[-1], weights_only=True)["model"])
    with torch.no_grad():
        z = network(images_of_view(few_digits / "train", Store(top_two), 1)).double()
    for temperature in (1.0, 3.0):
        p = torch.softmax(z / temperature, dim=1)
        kept = torch.zeros_like(p, dtype=torch.bool).scatter(1, p.topk(2).indices, True)
        rest = torch.where(kept, 0, p).sum(dim=1, keepdim=True)
        expected = torch.where(kept, p, rest / 2) if tail == "uniform" else torch.where(kept, p, 0) / (1 - rest)
        answers = SoftLabels([Store(top_two)], temperature, tail).logits(7, np.arange(83))
        torch.testing.assert_close(torch.softmax(answers.double() / temperature, 1), expected, rtol=0, atol=1e-3)


def test_two_teachers_with_shared_views_are_an_ensemble(stored, second):
    stores = [Store(stored[0]), Store(second)]
    assert all((stores[0].views[name] == stores[1].views[name]).all() for name in ("seed", "box", "flip"))
    indices = np.array([5, 0, 82])
    first, other = (torch.softmax(s.logits(0, indices, 3.0, "uniform").double() / 3, dim=1) for s in stores)
    joint = torch.softmax(SoftLabels(stores, 3.0, "uniform").logits(0, indices) / 3, dim=1)
    torch.testing.assert_close(joint, (first + other) / 2)


def mean_errors(logits, k, tail):
    """In nats, at the temperatures that are reported; from the probabilities themselves."""
    means = []
    for temperature in REPORTED:
        p = torch.softmax(logits.double() / temperature, dim=1)
        kept = torch.zeros_like(p).scatter(1, p.topk(k, dim=1).indices, 1)
        rest = (p * (1 - kept)).sum(dim=1, keepdim=True) / (p.shape[1] - k)
        even, cut = torch.where(kept > 0, p, rest), p * kept / (p * kept).sum(dim=1, keepdim=True)
        one, other = (cut, p) if tail == "drop" else (p, even)
        means.append((torch.xlogy(one, one) - torch.xlogy(one, other)).sum(dim=1).mean().item())
    return means


def test_the_size_is_told_first_and_the_error_of_every_k_last(stored, top_two, store, teacher):
    text = stored[1]
    assert "resnet18 about 2 views of each of 83 images: 5.48kB in" in text
    assert text.index("5.48kB") < text.index("KL between the teacher and what a store")
    errors = json.loads((top_two / "manifest.json").read_text())["errors"]
    assert errors.keys() == {"stored uniform", "stored drop"}
    views = torch.from_numpy(Store(stored[0]).labels["logits"].reshape(2 * 83, 4).copy())
    for (k, tail), found in zip(error_rows(4, 2).values(), errors.values(), strict=True):
        assert found == pytest.approx(mean_errors(views, k, tail), rel=0.01)
    text = store(*teacher, "--top-k", 2, "--temperatures", "1,3", "--views", 2, "--seed", 1, "--output-dir", top_two)
    assert "nothing to store" in text
    assert f"stored drop     {errors['stored drop'][0]:>12.3g}" in text


def test_check_finds_good_stores_good_and_others_not(store, teacher, stored, top_two, monkeypatch):
    assert "check of 166 views" in store(*teacher, "--check", 1000, "--output-dir", stored[0])
    text = store(*teacher, "--top-k", 2, "--temperatures", "1,3", "--check", 20, "--output-dir", top_two)
    assert "0 with another crop or flip: good" in text
    monkeypatch.setattr(Teacher, "__call__", lambda self, images: torch.randn(len(images), 4))
    assert "TOO FAR OFF" in store(*teacher, "--check", 20, "--output-dir", stored[0], expect=1)


KILLED = """
import os, signal, sys
from vision_reference import store_soft_labels
from vision_reference.analysis.stored_error import REPORTED, error_rows
store_soft_labels.BLOCK = 16
calls, last, real = 0, int(sys.argv.pop(1)), os.fsync
def fsync(handle):
    global calls
    calls += 1
    if calls == last:
        os.kill(os.getpid(), signal.SIGKILL)
    real(handle)
os.fsync = fsync
store_soft_labels.main(store_soft_labels.parse_store_args(sys.argv[1:]))
"""


def test_killed_at_any_moment_and_started_again_equals_straight_byte_for_byte(store, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(store_soft_labels, "BLOCK", 16)
    flags = [*teacher, "--views", 2, "--top-k", 2, "--seed", 3]
    store(*flags, "--output-dir", tmp_path / "straight")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # When the second block has but one of its files; while the manifest is written.
    for last, progress in ((8, 1), (36, 12)):
        command = [sys.executable, "-c", KILLED, str(last), *store.flags, *flags, "--output-dir", tmp_path / "killed"]
        died = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
        assert died.returncode == -9, died.stderr
        lines = (tmp_path / "killed" / "journal-0.jsonl").read_bytes()
        assert lines.count(b"block") >= progress
        assert not (tmp_path / "killed" / "manifest.json").exists()
    with (tmp_path / "killed" / "journal-0.jsonl").open("ab") as file:
        file.write(b'{"block": 11, "checks')
    text = store(*flags, "--output-dir", tmp_path / "killed")
    assert "going on after" in text
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == list(FILES)
    for name in FILES:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_two_processes_store_what_one_does_and_train_from_it(store, train, teacher, tmp_path, metrics):
    flags = [*teacher, "--views", 3, "--seed", 4]
    store(*flags, "--output-dir", tmp_path / "one")
    store(*flags, "--output-dir", tmp_path / "two", processes=2)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    run = ["--soft-labels", tmp_path / "two", "--kd-weight", 0.5, "--model", "shufflenet_v2_x0_5", "--epochs", 1]
    train(*run, "--output-dir", tmp_path / "run", processes=2)
    (record,) = metrics(tmp_path / "run")
    assert record["train_loss"] == pytest.approx(0.5 * record["kd_loss"] + 0.5 * record["ce_loss"], rel=1e-5)
    assert record["kd_loss"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--teacher resnet18 --teacher-weights x", "--teacher does not go with --soft-labels (both say who teaches)"),
        ("--mixup-alpha 0.2", "--mixup-alpha does not go with --soft-labels (the teacher would have to see the mixed"),
        ("--cutmix-alpha 1", "--cutmix-alpha does not go with --soft-labels"),
        ("--ra-sampler", "--ra-sampler does not go with --soft-labels (an epoch shows one stored view of each image)"),
        ("--kd-tail drop", "--kd-tail is about what top-k leaves out"),
        ("--train-crop-size 28", "was stored with --train-crop-size 32, but --train-crop-size 28 is given"),
        ("--preset cifar10", "was stored with --preset digits, but --preset cifar10 is given"),
        ("--interpolation bicubic", "was stored with --interpolation bilinear, but --interpolation bicubic is given"),
        ("--std 0.2 0.4 0.5", "was stored with --std of the preset, but --std 0.2 0.4 0.5 is given"),
        ("--auto-augment ra", "was stored with --auto-augment None, but --auto-augment ra is given"),
        ("--random-erase 0.1", "was stored with --random-erase 0.0, but --random-erase 0.1 is given"),
        ("--backend tensor", "was stored with --backend pil, but --backend tensor is given"),
        ("--use-v2", "was stored with --use-v2 False, but --use-v2 True is given"),
        ("--loader dali", "was stored with --loader torchvision, but --loader dali is given"),
        ("--data-path {digits}", "is about 4 classes, --data-path has 10"),
        ("--soft-labels nowhere", "nowhere holds no soft labels (no manifest.json)"),
        ("--soft-labels ,", "--soft-labels needs the folder of a store"),
        ("--soft-labels {top}", "has the 2 largest logits at temperatures 1, 3, not at --kd-temperature 2"),
    ],
)
def test_what_does_not_fit_the_store_is_told_in_one_line(train, stored, top_two, digits, tmp_path, flags, message):
    flags = flags.format(digits=digits, top=top_two).split()
    text = train("--soft-labels", stored[0], "--kd-temperature", 2, "--output-dir", tmp_path, *flags, expect=2)
    errors = [line for line in text.splitlines() if line.startswith("train.py: error:")]
    assert len(errors) == 1, text
    assert message in errors[0]


def test_other_images_are_refused(train, stored, few_digits, tmp_path):
    shutil.copytree(few_digits, tmp_path / "data")
    victim = next((tmp_path / "data" / "train" / "2").iterdir())
    Image.open(victim).resize((40, 40)).save(victim)
    flags = ["--soft-labels", stored[0], "--output-dir", tmp_path, "--data-path", tmp_path / "data"]
    assert "is about other data: relative paths, file sizes and labels" in train(*flags, expect=2)
    victim.unlink()
    text = train(*flags, expect=2)
    assert "is about 83 images, --data-path has 82; give --unlabelled and --skip-unreadable as " in text


def test_a_moved_data_set_is_the_same_data_set(few_digits, stored, tmp_path):
    shutil.copytree(few_digits, tmp_path / "elsewhere")
    assert len(student_batches(tmp_path / "elsewhere", stored[0], 0)) == 83


def test_damage_is_refused_in_one_line(train, stored, tmp_path):
    def refused(name, change):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(stored[0], folder)
        data = bytearray((folder / name).read_bytes())
        (folder / name).write_bytes(change(data))
        text = train("--soft-labels", folder, "--output-dir", tmp_path / "out", expect=2)
        (line,) = [line for line in text.splitlines() if line.startswith("train.py: error:")]
        return line

    def flipped(place):
        def change(data):
            data[place] ^= 4
            return data

        return change

    for place in (0, 700, -1):
        view = 1 if place == -1 else int(place > 83 * 8)
        assert f"damaged: images 0 to 82 of view {view} are not as" in refused("labels.bin", flipped(place))
    assert "is damaged: images 0 to 82 of view 1" in refused("views.bin", flipped(-1))
    assert "labels.bin has 1000 bytes instead of 1328; delete" in refused("labels.bin", lambda data: data[:1000])
    assert "views.bin has 4151 bytes instead of 4150" in refused("views.bin", lambda data: data + b"x")
    assert "manifest.json is damaged" in refused("manifest.json", lambda data: data[:300])
    assert "manifest.json is damaged" in refused("manifest.json", lambda data: data.replace(b'"seed": 1', b'"seed": 2'))
    assert "manifest.json is damaged" in refused("manifest.json", lambda data: b"[]")


def test_an_unfinished_store_is_refused(train, stored, tmp_path):
    shutil.copytree(stored[0], tmp_path / "part")
    (tmp_path / "part" / "manifest.json").unlink()
    text = train("--soft-labels", tmp_path / "part", "--output-dir", tmp_path, expect=2)
    assert "part is unfinished; run store_soft_labels.py again, it goes on" in text


def test_stores_of_different_views_are_no_ensemble(train, store, teacher, stored, tmp_path):
    store(*teacher, "--views", 2, "--seed", 9, "--output-dir", tmp_path / "other")
    text = train("--soft-labels", f"{stored[0]},{tmp_path / 'other'}", "--output-dir", tmp_path, expect=2)
    assert f"hold different views (seed 1 and 9): store the second with --same-views-as {stored[0]}" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--views 3", "holds a store with views.count 2, not 3; give another --output-dir, or delete this one"),
        ("--seed 8", "holds a store with views.seed 1, not 8"),
        ("--top-k 2", "holds a store with labels.top_k None, not 2"),
        ("--train-crop-size 40", "holds a store with pixels.train_crop_size 32, not 40"),
        ("--teacher-weights {second}", "holds a store with teacher.weights_sha256"),
        ("--top-k 4", "--top-k 4 of 4 classes leaves nothing out"),
        ("--temperatures 1", "--temperatures is for --top-k"),
        ("--top-k 2 --temperatures 1,x", "argument --temperatures: 'x' is not a number from 0.01 to 1000"),
        ("--same-views-as {stored} --seed 3", "drop --views and --seed"),
        ("--same-views-as nowhere", "nowhere holds no soft labels"),
        ("--same-views-as {stored} --preset cifar10", "was stored with --preset digits, but --preset cifar10 is given"),
        ("--output-dir {data}", "holds other files ("),
        ("--mixup-alpha 1", "unrecognized arguments: --mixup-alpha 1"),
        ("--data-path {digits}", "the file has 4 classes, the model 10"),
        ("--teacher resnet34", "holds weights of resnet18, not of resnet34"),
    ],
)
def test_mistakes_in_storing_are_told_in_one_line(store, teacher, stored, digits, few_digits, tmp_path, flags, message):
    torch.save(resnet18(num_classes=4).state_dict(), tmp_path / "other.pth")
    places = {"stored": stored[0], "second": tmp_path / "other.pth", "data": few_digits, "digits": digits}
    text = store(*teacher, "--output-dir", stored[0], *flags.format(**places).split(), expect=2)
    errors = [line for line in text.splitlines() if line.startswith("store_soft_labels.py: error:")]
    assert len(errors) == 1, text
    assert message in errors[0]


def test_a_teacher_without_finite_logits_is_refused(store, tmp_path):
    flags = teacher_file(tmp_path / "t.pth", 0)
    checkpoint = torch.load(tmp_path / "t.pth", weights_only=True)
    checkpoint["model"]["fc.weight"][1] = 3e38  # a number, but not times a feature
    torch.save(checkpoint, tmp_path / "t.pth")
    assert "the teacher's logits are not finite" in store(*flags, "--output-dir", tmp_path / "s", expect=2)


def test_broken_images_are_left_out_of_both_or_of_neither(store, train, teacher, few_digits, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(few_digits, tmp_path / "data")
    next((tmp_path / "data" / "train" / "1").iterdir()).write_bytes(b"not an image")
    data = ["--data-path", tmp_path / "data"]
    assert "unreadable image" in store(*teacher, *data, "--output-dir", tmp_path / "a", expect=2)
    store(*teacher, *data, "--skip-unreadable", "--output-dir", tmp_path / "s")
    run = [
        *data,
        "--soft-labels",
        tmp_path / "s",
        "--epochs",
        1,
        "--output-dir",
        tmp_path / "o",
        "--model",
        "shufflenet_v2_x0_5",
        "--lr",
        0.001,
        "--seed",
        0,
    ]
    assert "is about 82 images, --data-path has 83" in train(*run, expect=2)
    train(*run, "--skip-unreadable")


def test_other_versions_are_noted(train, stored, tmp_path):
    shutil.copytree(stored[0], tmp_path / "s")
    manifest = unseal(tmp_path / "s" / "manifest.json", FORMAT)
    manifest["versions"]["pillow"] = "1.0"
    (tmp_path / "s" / "manifest.json").write_bytes(seal(manifest))
    flags = ["--soft-labels", tmp_path / "s", "--epochs", 0, "--output-dir", tmp_path]
    assert "was stored with other versions, pixels may differ: pillow 1.0 -> " in train(*flags)


@pytest.mark.parametrize(("temperature", "told"), [(2, True), (1, False)])
def test_the_store_of_a_smoothed_teacher_is_told_the_rule_of_thumb(train, stored, tmp_path, temperature, told):
    flags = ["--soft-labels", stored[0], "--kd-temperature", temperature, "--epochs", 0, "--output-dir", tmp_path]
    said = f"note: the teacher of {stored[0]} was trained with --label-smoothing 0.1; at a temperature of {temperature}"
    assert (said in train(*flags)) == told

"""Suggestions follow from what is in the folder, and the command lines that are printed run."""

import json
import shlex
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vision_reference import suggest
from vision_reference.arguments import parse_args
from vision_reference.data import Source, list_samples
from vision_reference.errors import UserError
from vision_reference.images import survey
from vision_reference.machine import Rank
from vision_reference.networks import pretrained
from vision_reference.suggest import Facts, choose_schedule, main


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(pretrained, "missing", lambda source: "there is no network")


@pytest.fixture
def photographs(tmp_path):
    """Coloured images of one size, by folder: {"train/cat": 3, ...}."""

    def make(counts, size=(100, 80), name="photos"):
        generator = np.random.default_rng(0)
        for folder, count in counts.items():
            (tmp_path / name / folder).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
                image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
                image.save(tmp_path / name / folder / f"{number}.png")
        return tmp_path / name

    return make


def suggested(capsys, *flags):
    main(suggest.parse_args([*map(str, flags), "--json", "--no-timing"]))
    return json.loads(capsys.readouterr().out)


def given_flags(record, role):
    words = shlex.split(record["commands"][role])
    return parse_args(words[words.index("vision_reference/train.py") + 1 :])


def test_digits_are_recognized_and_their_command_runs(few_digits, capsys, tmp_path, train, metrics):
    record = suggested(capsys, few_digits, "--output", tmp_path)
    assert record["data"]["classes"] == {"0": 21, "1": 21, "2": 21, "3": 20}
    assert record["data"]["look"]["grey"] == 1.0
    args = given_flags(record, "teacher")
    assert (args.preset, args.model, args.label_smoothing, args.split) == ("digits", "resnet56", 0.1, None)
    student = given_flags(record, "student")
    assert (student.teacher, student.teacher_weights) == ("resnet56", str(tmp_path / "teacher" / "best.pth"))
    assert student.kd_temperature == 1.0
    words = shlex.split(record["commands"]["teacher"])[2:]
    train(*words, "--model", "resnet8", "--epochs", 1, "--lr-warmup-epochs", 0)
    assert len(metrics(tmp_path / "teacher")) == 1


def test_how_long_training_takes_follows_from_a_few_timed_steps(few_digits, capsys, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(suggest.time, "perf_counter", lambda: next(clock))  # a second from beginning to end
    flags = [str(few_digits), "--teacher", "resnet14", "--model", "resnet8"]
    main(suggest.parse_args([*flags, "--json"]))
    found = json.loads(capsys.readouterr().out)["time"]
    hours = 100 * (83 + 37 / 3) / 24 / 3600  # 100 epochs, 3 steps of 8 images
    assert found == {role: {"images_per_second": 24, "hours": pytest.approx(hours)} for role in ("teacher", "student")}
    main(suggest.parse_args(flags))
    text = capsys.readouterr().out
    assert "student: resnet8; here 24 images/s (timed, without reading them), so about 0:07 h for 100 epochs" in text


def test_what_does_not_fit_a_gpu_is_a_note_and_an_unknown_network_a_line(few_digits, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(suggest, "time_training", lambda *_: None)
        main(suggest.parse_args([str(few_digits), "--json"]))
    record = json.loads(capsys.readouterr().out)
    assert record["time"] == {}
    assert "teacher: a batch of 8 for resnet56 does not fit this GPU; lower --batch-size" in record["notes"]
    with pytest.raises(UserError, match="unknown model 'resnet19'"):
        main(suggest.parse_args([str(few_digits), "--teacher", "resnet19"]))


def test_photographs_without_val_are_split_and_start_from_trained_weights(photographs, capsys, monkeypatch):
    root = photographs({"train/cat": 40, "train/dog": 30}, size=(160, 140))
    record = suggested(capsys, root)
    args = given_flags(record, "teacher")
    assert (args.split, args.val_crop_size, args.weights) == (0.2, 128, None)
    assert record["data"]["images"] == 56
    assert record["data"]["validation"] == 14
    assert any("a start from ResNet18_Weights.IMAGENET1K_V1 would help most" in note for note in record["notes"])
    data = list_samples(Source.of(parse_args(["--data-path", str(root), "--split", "0.2"])), Rank())
    assert (len(data.train), len(data.val)) == (56, 14)
    monkeypatch.setattr(pretrained, "missing", lambda source: None)
    args = given_flags(suggested(capsys, root), "student")
    assert args.weights == "ShuffleNet_V2_X1_0_Weights.IMAGENET1K_V1"
    assert args.lr < 0.01


def test_a_folder_of_classes_gets_a_train_folder_by_a_link(photographs, capsys):
    root = photographs({"cat": 10, "dog": 10})
    record = suggested(capsys, root)
    subprocess.run(["bash", "-ec", record["commands"]["prepare"]], check=True)
    args = given_flags(record, "student")
    data = list_samples(Source.of(args), Rank())
    assert (len(data.train), len(data.val), data.classes) == (16, 4, ["cat", "dog"])


def test_other_names_of_val_are_linked_and_test_is_left_alone(photographs, capsys):
    root = photographs({"train/cat": 10, "train/dog": 10, "valid/cat": 5, "valid/dog": 5})
    record = suggested(capsys, root)
    subprocess.run(["bash", "-ec", record["commands"]["prepare"]], check=True)
    assert len(list_samples(Source.of(given_flags(record, "student")), Rank()).val) == 10
    other = photographs({"train/cat": 10, "train/dog": 10, "test/cat": 5}, name="other")
    record = suggested(capsys, other)
    assert any("test/ is left for the very end" in note for note in record["notes"])
    assert given_flags(record, "student").split == 0.2


def test_what_is_odd_about_the_data_is_told(photographs, capsys):
    root = photographs({"train/cat": 60, "train/dog": 4, "val/cat": 4, "val/dog": 4})
    for file in (root / "train" / "cat").iterdir():
        if file.stem.startswith("1"):
            file.write_bytes(file.read_bytes()[:50])
    main(suggest.parse_args([str(root), "--no-timing"]))
    text = capsys.readouterr().out
    assert "'dog' has 4 images, 'cat' 60" in text
    assert "1 of 2 classes have fewer than 20 training images" in text
    assert "% of the images looked at cannot be read, such as: unreadable image" in text
    assert "--skip-unreadable: some files are broken" in text
    assert "with 8 validation images, two accuracies that differ by less than 35.4 points may differ by chance" in text


def test_birds_are_recognized(tmp_path, capsys):
    base = tmp_path / "CUB_200_2011"
    for number in (1, 2, 3, 4):
        (base / "images" / f"00{1 + number % 2}.Bird").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (300, 260), (200, 100, 0)).save(base / "images" / f"00{1 + number % 2}.Bird" / f"{number}.jpg")
    lines = {"images": "{n} 00{k}.Bird/{n}.jpg", "image_class_labels": "{n} {k}", "train_test_split": "{n} {side}"}
    for name, line in lines.items():
        rows = [line.format(n=n, k=1 + n % 2, side=int(n < 3)) for n in (1, 2, 3, 4)]
        (base / f"{name}.txt").write_text("\n".join(rows) + "\n")
    args = given_flags(suggested(capsys, base), "student")
    assert (args.dataset, args.preset, args.split) == ("cub200", "cub", None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "is not there; give a folder of images"),
        (lambda root: root.write_text(""), "is a file; give a folder"),
        (lambda root: root.mkdir(), "has no folders; sort the images into one folder per class"),
        (lambda root: (root / "train" / "cat").mkdir(parents=True), "has no images in the folder of cat"),
    ],
)
def test_folders_without_data_are_told_in_one_line(make, message, tmp_path):
    make(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        main(suggest.parse_args([str(tmp_path / "data")]))


def test_loose_images_and_classes_of_one_are_refused(photographs, tmp_path):
    root = photographs({"loose": 3})
    with pytest.raises(UserError, match="has 3 images, but no folders; sort the images into one folder per class"):
        main(suggest.parse_args([str(root / "loose")]))
    with pytest.raises(UserError, match="each class needs two images"):
        main(suggest.parse_args([str(photographs({"train/cat": 3, "train/dog": 1}, name="few"))]))


def test_unreadable_data_is_refused(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "train" / name / f"{number}.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of 4 images can be read"):
        main(suggest.parse_args([str(tmp_path)]))


LOOK = survey.Look(10, [], 200, 300, 150, 0.0, (0.5,) * 3, (0.2,) * 3)


@given(images=st.integers(2, 3_000_000), gpus=st.integers(0, 8), pretrained=st.booleans())
def test_no_process_is_left_with_one_image(images, gpus, pretrained):
    facts = Facts(images, 10, [images], LOOK, gpus=gpus)
    batch = next(int(one.value[0]) for one in choose_schedule(facts, pretrained) if one.flag == "--batch-size")
    processes = max(1, gpus)
    last = images % (batch * processes)
    assert last == 0 or last >= 2 * processes or images < 2 * processes
    assert 8 <= batch <= 140


def test_a_look_measures_sizes_and_colours(tmp_path):
    for name, size, colour in (("a", (40, 20), (255, 0, 0)), ("b", (10, 60), (0, 0, 0)), ("c", (50, 50), (9, 9, 9))):
        Image.new("RGB", size, colour).save(tmp_path / f"{name}.png")
    look = survey.look_at(sorted(map(str, tmp_path.iterdir())), threads=2)
    assert (look.shorter, look.longer, look.smallest) == (20, 50, 10)
    assert look.grey == pytest.approx(2 / 3)
    shares = np.array([[255, 0, 0], [0, 0, 0], [9, 9, 9]]) / 255
    assert look.mean == pytest.approx(shares.mean(axis=0), abs=1e-3)
    assert look.std == pytest.approx(shares.std(axis=0), abs=1e-3)

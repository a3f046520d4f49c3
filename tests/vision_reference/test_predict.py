"""predict.py against plain PyTorch on the same pictures, from nothing but the checkpoint."""

import csv
import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from vision_reference import predict
from vision_reference.errors import UserError
from vision_reference.networks import checkpoints
from vision_reference.networks.by_name import build_model
from vision_reference.networks.description import describe_run

CLASSES = ["ant", "bee", "été"]
ARGS = {
    "model": "shufflenet_v2_x0_5",
    "preset": "cifar10",
    "interpolation": "bilinear",
    "train_crop_size": 32,
    "val_resize_size": 40,
    "val_crop_size": 36,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network of random weights, with the batch-norm statistics of some noise, as train.py would save it."""
    torch.manual_seed(0)
    model = build_model(ARGS["model"], len(CLASSES))
    for _ in range(3):
        model(torch.randn(16, 3, 36, 36))
    with torch.no_grad():
        model.fc.weight.mul_(30)
    path = tmp_path_factory.mktemp("predict") / "best.pth"
    content = {"model": model.state_dict(), "arch": ARGS["model"], "args": ARGS}
    content["description"] = describe_run(ARGS, CLASSES, {"acc1": 50.0})
    checkpoints.save_atomically(content, path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number, size in enumerate([(50, 40), (36, 36), (90, 37), (40, 41), (64, 64)]):
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def by_hand(checkpoint, paths):
    """Probabilities (N, K), one picture at a time."""
    model = build_model(ARGS["model"], len(CLASSES))
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    shown = transforms.Compose(
        [
            transforms.Resize(40),
            transforms.CenterCrop(36),
            transforms.ToTensor(),
            transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ]
    )
    with torch.inference_mode():
        return torch.cat([model.eval()(shown(Image.open(path))[None]).softmax(dim=1) for path in paths])


def run(capsys, *arguments, stdin=""):
    sys_stdin, sys.stdin = sys.stdin, io.StringIO(stdin)
    try:
        failed = predict.main(predict.parse_args([str(word) for word in arguments] + ["--device", "cpu"]))
    finally:
        sys.stdin = sys_stdin
    captured = capsys.readouterr()
    return failed, captured.out, captured.err


def test_probabilities_are_those_of_plain_pytorch_in_the_order_of_the_pictures(checkpoint, pictures, capsys):
    paths = sorted(pictures.glob("*.png"))
    failed, out, err = run(capsys, checkpoint, pictures, "--format", "json", "--batch-size", 2)
    assert (failed, err) == (0, "")
    records = json.loads(out)
    assert [record["path"] for record in records] == [str(path) for path in paths]
    for record, expected in zip(records, by_hand(checkpoint, paths), strict=True):
        found = {entry["class"]: entry["probability"] for entry in record["predictions"]}
        assert found == pytest.approx(dict(zip(CLASSES, expected.tolist(), strict=True)), abs=2e-5)
        probabilities = [entry["probability"] for entry in record["predictions"]]
        assert probabilities == sorted(probabilities, reverse=True)


def test_all_forms_say_the_same(checkpoint, pictures, capsys):
    path = pictures / "0.png"
    (record,) = json.loads(run(capsys, checkpoint, path, "--format", "json", "--top", 2)[1])
    rows = list(csv.DictReader(io.StringIO(run(capsys, checkpoint, path, "--format", "csv", "--top", 2)[1])))
    assert [row["class"] for row in rows] == [entry["class"] for entry in record["predictions"]]
    assert [float(row["probability"]) for row in rows] == [entry["probability"] for entry in record["predictions"]]
    table = run(capsys, checkpoint, path, "--top", 2)[1]
    assert table.startswith(f"{path}: {record['predictions'][0]['class']} ")
    assert table.count("%") == 2


def test_a_broken_picture_is_reported_and_the_rest_goes_on(checkpoint, pictures, capsys, tmp_path):
    (tmp_path / "broken.png").write_bytes((pictures / "0.png").read_bytes()[:200])
    order = f"{pictures / '1.png'}\n{tmp_path / 'broken.png'}\n{tmp_path / 'missing.png'}\n\n{pictures / '2.png'}\n"
    failed, out, err = run(capsys, checkpoint, "-", "--format", "json", stdin=order)
    assert failed == 2
    assert [("error" in record, len(record["predictions"])) for record in json.loads(out)] == [
        (False, 3),
        (True, 0),
        (True, 0),
        (False, 3),
    ]
    assert [str(tmp_path / name) in err for name in ("broken.png", "missing.png")] == [True, True]
    assert json.loads(run(capsys, checkpoint, "-", "--format", "json", stdin="")[1]) == []


def test_confusion_counts_by_name_whatever_the_order_of_the_folders(checkpoint, pictures, capsys, tmp_path):
    paths = sorted(pictures.glob("*.png"))
    names = ["été", "ant", "été", "ant", "été"]
    for path, name in zip(paths, names, strict=True):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    guesses = [CLASSES[number] for number in by_hand(checkpoint, paths).argmax(dim=1).tolist()]
    failed, out, _ = run(capsys, checkpoint, "--confusion", tmp_path / "data", "--output", tmp_path / "out")
    assert failed == 0
    right = sum(guess == name for guess, name in zip(guesses, names, strict=True))
    assert f"accuracy {100 * right / 5:.3f} % of 5 pictures" in out
    with (tmp_path / "out" / "confusion.csv").open(newline="", encoding="utf-8") as file:
        table = {row["class"]: row for row in csv.DictReader(file)}
    for name in ("ant", "été"):
        for other in CLASSES:
            expected = sum((n, g) == (name, other) for n, g in zip(names, guesses, strict=True))
            assert int(table[name][other]) == expected
    assert (tmp_path / "out" / "confusion.png").stat().st_size > 1000

    (tmp_path / "data" / "été").rename(tmp_path / "data" / "wasp")
    with pytest.raises(UserError, match="has a class 'wasp' that the network does not know; it knows ant, bee, été"):
        run(capsys, checkpoint, "--confusion", tmp_path / "data", "--output", tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "give pictures"),
        (["--confusion", "x", "y.png"], "give pictures"),
        (["y.png", "--output", "x"], "--output is for --confusion"),
    ],
)
def test_a_mistake_in_the_flags_is_one_line(words, line):
    with pytest.raises(UserError, match=line):
        predict.parse_args(["best.pth", *words])


def test_a_folder_without_pictures_and_a_file_that_is_no_checkpoint_are_refused(checkpoint, pictures, tmp_path, capsys):
    with pytest.raises(UserError, match="holds no picture"):
        run(capsys, checkpoint, tmp_path)
    with pytest.raises(UserError, match="holds no picture"):  # and nothing is printed that would be no JSON
        run(capsys, checkpoint, pictures / "0.png", tmp_path, "--format", "json")
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="no checkpoint file"):
        run(capsys, tmp_path / "missing.pth", tmp_path)

"""The rows of mistakes, and the folder in which careless users of the image part make theirs: made once, in seconds."""

import contextlib
import copy
import io
import json
import os
import re
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vision_reference import store_soft_labels
from vision_reference import train as training
from vision_reference.arguments import parse_args, parse_store_args
from vision_reference.files import seal, unseal
from vision_reference.networks.by_name import build_model
from vision_reference.networks.checkpoints import save_atomically
from vision_reference.soft_labels.store import FORMAT

CLASSES = ("cat", "dog", "emu", "fox")
_FLAGS = ["--preset", "digits", "--device", "cpu", "--workers", "0", "-b", "8", "--seed", "1"]
_TRAINED = ["--data-path", "data", *_FLAGS, "--model", "resnet8", "--epochs", "1", "--lr", "0.01"]


@pytest.fixture(scope="session")
def read_rows():
    """Reads a file of mistakes, see ``_read_rows``."""
    return _read_rows


def _read_rows(path: Path) -> list[tuple[str, str]]:
    """(command line, part of the answer) of each row of a file of mistakes, abbreviations replaced."""
    short: dict[str, str] = {}
    rows: list[tuple[str, str]] = []

    def in_full(text: str) -> str:
        return re.sub(r"(?<!\S)[A-Z]+(?!\S)", lambda name: short.get(name[0], name[0]), text)

    for line in path.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        if defined := re.fullmatch(r"([A-Z]+) = (.+)", line):
            short[defined[1]] = in_full(defined[2])
        elif line.startswith("    "):
            rows[-1] = rows[-1][0], line.strip()
        else:
            rows.append((in_full(line), ""))
    return rows


@pytest.fixture(scope="session")
def image_world(tmp_path_factory):
    """The folder, see ``make_image_world``."""
    return make_image_world(tmp_path_factory.mktemp("images"))


def make_image_world(folder: Path) -> Path:
    """Fill ``folder`` with data, a run, a store, a study and broken ones of each; returns it."""
    before, generator = Path.cwd(), torch.get_rng_state()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            _data(folder)
            _birds(folder)
            training.main(parse_args([*_TRAINED, "--output-dir", "run", "--model-ema"]))
            stored = ["--data-path", "data", *_FLAGS, "--teacher", "resnet8", "--teacher-weights", "run/best.pth"]
            store_soft_labels.main(parse_store_args([*stored, "--views", "2", "--output-dir", "store"]))
            store_soft_labels.main(parse_store_args([*stored, "--top-k", "2", "--output-dir", "top2"]))
            _checkpoints(folder)
            _runs(folder)
            _stores(folder)
            _texts(folder)
    finally:
        os.chdir(before)
        torch.set_rng_state(generator)
    return folder


def _picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (40 * number % 256, 90, 7 * number % 256)).save(path)


def _images(root: Path, splits: dict[str, int], classes: tuple[str, ...] = CLASSES) -> Path:
    for split, count in splits.items():
        for label, name in enumerate(classes):
            for number in range(count):
                _picture(root / split / name / f"{number}.png", 4 * label + number)
    return root


def _data(folder: Path) -> None:
    both = {"train": 4, "val": 3}
    _images(folder / "data", both)
    _images(folder / "no-val", {"train": 4})
    _images(folder / "no-train", {"val": 3})
    _images(folder / "other-names", both, tuple(f"{name}s" for name in CLASSES))
    _images(folder / "three", both, CLASSES[:3])
    _images(folder / "five", both, (*CLASSES, "gnu"))
    _images(folder / "one-image", {"train": 1, "val": 1}, ("cat",))
    _images(folder / "one-each", {"train": 1, "val": 1})
    _images(folder / "grown", {"train": 5, "val": 3})
    _images(folder / "val-only-three", {"train": 4})
    _images(folder / "val-only-three", {"val": 3}, CLASSES[:3])
    _images(folder / "empty-class", both)
    shutil.rmtree(folder / "empty-class" / "train" / "cat")
    (folder / "empty-class" / "train" / "cat").mkdir()
    _images(folder / "broken", both)
    (folder / "broken" / "train" / "dog" / "0.png").write_bytes(b"no picture")
    _images(folder / "broken-class", both)
    for path in (folder / "broken-class" / "train" / "dog").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    _images(folder / "all-broken", {"train": 2})
    for path in (folder / "all-broken").rglob("*.png"):
        path.write_bytes(b"no picture")
    for name in ("tensorboard", "wandb", "mlruns"):  # files where --track makes folders
        (folder / "new-but-taken").mkdir(exist_ok=True)
        (folder / "new-but-taken" / name).touch()
    _images(folder / "float", both)
    Image.fromarray(np.zeros((32, 32), np.float32)).save(folder / "float" / "val" / "cat" / "0.tif")
    _images(folder / "train-file", {"val": 3})
    (folder / "train-file" / "train").touch()
    for split in ("train", "val"):
        for number in range(3):
            _picture(folder / "flat" / split / f"{number}.png", number)
        (folder / "no-classes" / split).mkdir(parents=True)
        (folder / "text-only" / split / "cat").mkdir(parents=True)
        (folder / "text-only" / split / "cat" / "notes.txt").write_text("a cat")
    _images(folder / "pipe", both)
    (folder / "pipe" / "train" / "cat" / "0.png").unlink()
    os.mkfifo(folder / "pipe" / "train" / "cat" / "0.png")
    (folder / "void").mkdir()
    (folder / "file").write_text("a file\n")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.txt").write_text("years of work\n")


def _birds(folder: Path) -> None:
    def lists(name: str, **changes: str) -> None:
        base = folder / name / "CUB_200_2011"
        files = [f"00{label}.Bird/{number}.jpg" for label in (1, 2) for number in range(2)]
        for number, file in enumerate(files):
            _picture(base / "images" / file, number)
        texts = {
            "images": "".join(f"{number} {file}\n" for number, file in enumerate(files, 1)),
            "image_class_labels": "1 1\n2 1\n3 2\n4 2\n",
            "train_test_split": "1 1\n2 0\n3 1\n4 0\n",
        }
        for part, text in (texts | changes).items():
            (base / f"{part}.txt").write_text(text)

    lists("birds")
    lists("birds-half", images="1 001.Bird/0.jpg\n2\n")
    lists("birds-labels", image_class_labels="1 1\n2 1\n3 2\n")
    lists("birds-split", train_test_split="1 1\n2 0\n3 1\n4 7\n")
    lists("birds-gap", image_class_labels="1 1\n2 1\n3 5\n4 5\n")
    lists("birds-mixed", image_class_labels="1 1\n2 2\n3 2\n4 2\n")
    lists("birds-up", images="1 ../0.jpg\n2 001.Bird/1.jpg\n3 002.Bird/0.jpg\n4 002.Bird/1.jpg\n")
    lists("birds-gone")
    (folder / "birds-gone" / "CUB_200_2011" / "images" / "001.Bird" / "0.jpg").unlink()


class _Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def _checkpoints(folder: Path) -> None:
    """Files ``c/NAME.pth``: the run's checkpoint with something wrong."""
    (folder / "c").mkdir()
    whole = torch.load(folder / "run" / "checkpoint.pth", weights_only=False)
    del whole[next(name for name in whole if "sha256" in name or "checksum" in name)]
    first, *_ = whole["model"]

    def save(name: str, state: object) -> None:
        save_atomically(state, folder / "c" / f"{name}.pth")

    for part, value in {
        "model": [1], "optimizer": [1], "lr_scheduler": "x", "epoch": "one", "args": [1], "best": 3, "rng": "x",
        "model_ema": [1], "scaler": 4, "description": [1],
    }.items():  # fmt: skip
        save(f"{part}-type", {**whole, part: value})
    for part in ("model", "optimizer", "lr_scheduler", "epoch", "args"):
        save(f"{part}-gone", {name: value for name, value in whole.items() if name != part})
    save("epoch-negative", {**whole, "epoch": -4})
    save("epoch-huge", {**whole, "epoch": 10**9})
    save("best-nan", {**whole, "best": {"acc1": float("nan"), "acc5": 0.0, "epoch": 0}})
    save("rng-empty", {**whole, "rng": [{}]})
    save("rng-words", {**whole, "rng": [{**whole["rng"][0], "torch": torch.zeros(3, dtype=torch.uint8)}]})
    save("rng-python", {**whole, "rng": [{**whole["rng"][0], "python": [1, 2]}]})
    save("optimizer-empty", {**whole, "optimizer": {}})
    save("optimizer-groups", {**whole, "optimizer": {**whole["optimizer"], "param_groups": []}})
    save("optimizer-state", {**whole, "optimizer": {**whole["optimizer"], "state": {0: 3}}})
    wrong = copy.deepcopy(whole["optimizer"])
    wrong["param_groups"][0]["lr"] = "fast"
    save("optimizer-lr", {**whole, "optimizer": wrong})
    save("scheduler-empty", {**whole, "lr_scheduler": {}})
    save("scheduler-type", {**whole, "lr_scheduler": {"last_epoch": "x", "_step_count": None}})
    save("args-model", {**whole, "args": {**_plain_args(whole), "model": 7}})
    save("args-preset", {**whole, **_described(whole, preset="snow")})
    save("args-size", {**whole, **_described(whole, val_crop_size="big")})
    save("args-size-huge", {**whole, **_described(whole, val_crop_size=10**6, val_resize_size=10**6)})
    save("args-size-negative", {**whole, **_described(whole, val_crop_size=-3)})
    save("mean-type", {**whole, **_described(whole, mean="grey")})
    save("mean-short", {**whole, **_described(whole, mean=[0.5], std=[0.1])})
    save("mean-nan", {**whole, **_described(whole, mean=[float("nan")] * 3)})
    save("std-zero", {**whole, **_described(whole, std=[0.0, 0.0, 0.0])})
    save("interpolation-type", {**whole, **_described(whole, interpolation="smooth")})
    save("classes-type", {**whole, **_described(whole, classes="cats")})
    save("classes-short", {**whole, **_described(whole, classes=["cat", "dog"])})
    save("classes-twice", {**whole, **_described(whole, classes=["cat", "cat", "emu", "fox"])})
    save("classes-numbers", {**whole, **_described(whole, classes=[1, 2, 3, 4])})
    save("arch-other", {**whole, "arch": "resnet14"})
    save("arch-unknown", {**whole, "arch": "resnet9000"})
    save("arch-type", {**whole, "arch": [3]})
    save("arch-function", {**whole, "arch": "os:system", "args": {**_plain_args(whole), "model": "os:system"}})
    weights = whole["model"]
    save("weights-nan", {**whole, "model": {**weights, first: torch.full_like(weights[first], float("nan"))}})
    save("weights-int8", {**whole, "model": {name: value.to(torch.int8) for name, value in weights.items()}})
    save("weights-short", {**whole, "model": dict(list(weights.items())[:4])})
    save("weights-more", {**whole, "model": {**weights, "more.weight": torch.zeros(2)}})
    save("weights-shape", {**whole, "model": {**weights, first: torch.zeros(2, 2)}})
    save("weights-text", {**whole, "model": {**weights, first: "many"}})
    save("weights-keys", {**whole, "model": {3: torch.zeros(2)}})
    save("weights-empty", {**whole, "model": {}})
    save("no-weights", {"epoch": 3})
    save("list", [1, 2])
    save("number", 7)
    torch.save(_Trap(), folder / "c" / "trap.pth")
    torch.save({**whole, "more": _Trap()}, folder / "c" / "trap-inside.pth")
    torch.save(weights, folder / "c" / "bare.pth")
    torch.save(build_model("resnet8", 3).state_dict(), folder / "c" / "bare-three.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), folder / "c" / "script.pth")
    content = (folder / "run" / "checkpoint.pth").read_bytes()
    (folder / "c" / "cut.pth").write_bytes(content[: len(content) // 2])
    (folder / "c" / "flipped.pth").write_bytes(_flipped(content))
    (folder / "c" / "empty.pth").touch()
    (folder / "c" / "text.pth").write_text("weights\n")
    (folder / "c" / "half.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    (folder / "c" / "folder.pth").mkdir()


def _plain_args(state: dict) -> dict:
    return dict(vars(state["args"])) if isinstance(state["args"], Namespace) else dict(state["args"])


def _described(state: dict, **changes: object) -> dict:
    """``args`` and ``description`` of a checkpoint with other facts."""
    return {"args": {**_plain_args(state), **changes}, "description": {**state["description"], **changes}}


def _flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 4
    return bytes(changed)


def _runs(folder: Path) -> None:
    """Folders ``r/NAME``: the run with something wrong beside its checkpoint."""
    for name, content in {
        "list": "[]\n", "words": "epoch one\n", "later": '{"epoch": 7, "val_acc1": 3}\n', "half": '{"epoch": 0, "val',
    }.items():  # fmt: skip
        shutil.copytree(folder / "run", folder / "r" / name)
        (folder / "r" / name / "metrics.jsonl").write_text(content)
    shutil.copytree(folder / "run", folder / "r" / "metrics-folder", ignore=shutil.ignore_patterns("metrics*"))
    (folder / "r" / "metrics-folder" / "metrics.jsonl").mkdir()
    shutil.copytree(folder / "run", folder / "r" / "log-folder", ignore=shutil.ignore_patterns("log*"))
    (folder / "r" / "log-folder" / "log.txt").mkdir()
    shutil.copytree(folder / "run", folder / "r" / "cut")
    (folder / "r" / "cut" / "checkpoint.pth").write_bytes((folder / "c" / "cut.pth").read_bytes())
    shutil.copytree(folder / "run", folder / "r" / "no-last", ignore=shutil.ignore_patterns("checkpoint*"))


def _stores(folder: Path) -> None:
    """Folders ``s/NAME``: the store with something wrong."""

    def store(name: str, change=None, of: str = "store") -> Path:
        shutil.copytree(folder / of, folder / "s" / name)
        manifest = folder / "s" / name / "manifest.json"
        if change is not None:
            content = unseal(manifest, FORMAT)
            change(content)
            manifest.write_bytes(seal(content))
        return folder / "s" / name

    def put(*path: str, value: object):
        def change(content: dict) -> None:
            *above, last = path
            for part in above:
                content = content[part]
            content[last] = value

        return change

    for name, (*path, value) in {
        "format": ("format", "lskd soft labels 9"),
        "data-list": ("data", [1]),
        "classes-text": ("data", "classes", "four"),
        "classes-more": ("data", "classes", 5),
        "images-negative": ("data", "images", -16),
        "images-huge": ("data", "images", 10**15),
        "names-number": ("data", "class_names", 4),
        "names-other": ("data", "class_names", ["a", "b", "c", "d"]),
        "sha-other": ("data", "sha256", "0" * 64),
        "views-list": ("views", [1]),
        "views-zero": ("views", "count", 0),
        "views-float": ("views", "count", 1.5),
        "seed-text": ("views", "seed", "one"),
        "labels-none": ("labels", None),
        "top-k-huge": ("labels", "top_k", 10**9),
        "temperatures-text": ("labels", "temperatures", "warm"),
        "block-zero": ("block", 0),
        "block-text": ("block", "big"),
        "checksums-short": ("checksums", {"views.bin": [], "labels.bin": []}),
        "checksums-other": ("checksums", {"views.bin": [1, 2], "labels.bin": [1, 2]}),
        "checksums-text": ("checksums", "x"),
        "errors-list": ("errors", [1]),
        "teacher-gone": ("teacher", {}),
        "pixels-list": ("pixels", [1]),
        "pixels-other": ("pixels", "train_crop_size", 64),
        "versions-text": ("versions", "new"),
    }.items():
        store(name, put(*path, value=value))
    store("top-temperatures-zero", put("labels", "temperatures", value=[]), of="top2")
    for name, text in {"half": '{"format"', "list": "[]", "unsealed": "{}", "deep": "[" * 10**5, "empty": ""}.items():
        (store(name) / "manifest.json").write_text(text)
    changed = store("changed") / "manifest.json"
    changed.write_text(changed.read_text().replace('"count": 2', '"count": 1'))
    for name, file in {"no-manifest": "manifest.json", "no-labels": "labels.bin", "no-views": "views.bin"}.items():
        (store(name) / file).unlink()
    cut = store("cut") / "labels.bin"
    cut.write_bytes(cut.read_bytes()[:-8])
    for file in ("labels", "views"):
        flipped = store(f"flipped-{file}") / f"{file}.bin"
        flipped.write_bytes(_flipped(flipped.read_bytes()))
    folder_inside = store("labels-folder") / "labels.bin"
    folder_inside.unlink()
    folder_inside.mkdir()


def _texts(folder: Path) -> None:
    """Records, groups, configurations of studies, and folders of studies."""
    record = {"role": "student", "model": "x", "alpha": 0.1, "temperature": 1, "acc1": 1.0, "acc5": 2.0}
    (folder / "records").mkdir()
    for name, text in {
        "words": "no record\n",
        "list": "[1]\n",
        "alone": json.dumps({name: value for name, value in record.items() if name != "alpha"}) + "\n",
        "text": json.dumps({**record, "acc1": "high"}) + "\n",
        "role": json.dumps({**record, "role": "nurse"}) + "\n",
        "nan": json.dumps({**record, "acc1": float("nan")}) + "\n",
        "percent": json.dumps({**record, "acc1": 700}) + "\n",
        "alpha": json.dumps({**record, "alpha": 4}) + "\n",
        "cold": json.dumps({**record, "temperature": -1}) + "\n",
        "deep": "[" * 10**5 + "\n",
        "good": json.dumps(record) + "\n",
    }.items():
        (folder / "records" / name).write_text(text)
    (folder / "records" / "bytes").write_bytes(b"\xff\xfe\xfa\n")
    (folder / "groups").mkdir()
    for name, text in {
        "head": "class,family\ncat,a\n", "missing": "class,group\ncat,a\ndog,a\n", "empty": "",
        "unknown": "class,group\ncat,a\ndog,a\nemu,b\nfox,b\nyak,b\n",
        "twice": "class,group\ncat,a\ncat,b\ndog,a\nemu,b\nfox,b\n",
        "alone": "class,group\ncat,a\ndog,b\nemu,c\nfox,d\n",
    }.items():  # fmt: skip
        (folder / "groups" / name).write_text(text)
    study = ("title: x\nkind: images\ndata: data\nseeds: [0]\nsettings: {preset: digits, model: x}\n").replace(
        "settings: {preset: digits, model: x}\n", "settings: {preset: digits, epochs: 1}\n"
    )
    study += "teacher: {network: resnet8}\nstudent: {network: resnet8}\n"
    study += "cells: [{teacher: {alpha: [0.0]}, student: {temperature: [1]}}]\n"
    (folder / "y").mkdir()

    def config(name: str, old: str = "", new: str = "") -> None:
        assert old in study, old
        (folder / "y" / f"{name}.yaml").write_text(study.replace(old, new, 1) if old else new or study)

    config("good")
    config("words", new="just words\n")
    config("tabs", new="title:\t- x\n  kind: y\n")
    config("list", new="[1, 2]\n")
    (folder / "y" / "nothing.yaml").touch()
    (folder / "y" / "bytes.yaml").write_bytes(b"title: \xff\xfe\n")
    config("tag", "title: x", "title: !!python/object/apply:os.mkdir [trapped]")
    config("bomb", new="a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 8)}]\n" for n in range(9)
    ))  # fmt: skip
    config("title", "title: x\n", "")
    config("kind", "kind: images", "kind: sounds")
    config("seeds-none", "seeds: [0]", "seeds: []")
    config("seeds-text", "seeds: [0]", "seeds: [one]")
    config("seeds-twice", "seeds: [0]", "seeds: [0, 0]")
    config("seeds-negative", "seeds: [0]", "seeds: [-1]")
    config("key", "seeds: [0]", "seeds: [0]\nstudnt: {epochs: 3}")
    config("flag", "epochs: 1", "epoch: 1")
    config("flag-value", "epochs: 1", "epochs: many")
    config("flag-here", "epochs: 1", "output-dir: x")
    config("network", "student: {network: resnet8}", "student: {network: resnet9000}")
    config("no-network", "student: {network: resnet8}", "student: {}")
    config("alpha", "alpha: [0.0]", "alpha: [1.5]")
    config("alpha-text", "alpha: [0.0]", "alpha: [high]")
    config("temperature", "temperature: [1]", "temperature: [0]")
    config("temperature-nan", "temperature: [1]", "temperature: [.nan]")
    config("temperature-inf", "temperature: [1]", "temperature: [.inf]")
    config("temperature-none", "temperature: [1]", "temperature: []")
    config("cells", "cells: [{teacher: {alpha: [0.0]}, student: {temperature: [1]}}]\n", "")
    config("cells-text", "cells: [{teacher: {alpha: [0.0]}, student: {temperature: [1]}}]", "cells: many")
    config("twice", "seeds: [0]", "seeds: [0]\nseeds: [1]")
    config("no-data", "data: data", "data: nowhere")
    config("answers", "seeds: [0]", "seeds: [0]\nteacher_answers: whispered")
    config("views", "seeds: [0]", "seeds: [0]\nviews: -1")
    config("teachers", "seeds: [0]", "seeds: [0]\nteachers: few")
    for name, text in {"half": "{", "list": "[]", "none": "{}", "words": '{"all_jobs": "many"}'}.items():
        (folder / "studies" / name).mkdir(parents=True)
        (folder / "studies" / name / "study.json").write_text(text)
    jobs = {"title": "x", "all_jobs": [{"job": "a", "role": "teacher"}]}
    for name, text in {"record-list": "[]", "record-half": "{"}.items():
        (folder / "studies" / name / "runs" / "a").mkdir(parents=True)
        (folder / "studies" / name / "study.json").write_text(json.dumps(jobs))
        (folder / "studies" / name / "runs" / "a" / "run.json").write_text(text)

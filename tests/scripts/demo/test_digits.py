"""The built-in digits: the same files every time, every scan once."""

import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "demo" / "digits.py"


def make(folder):
    return subprocess.run([sys.executable, str(SCRIPT), "--output", str(folder)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "new"
    assert make(folder).returncode == 0
    return folder


def test_every_scan_is_there_once_with_its_label(digits):
    scans = load_digits()
    files = sorted(digits.glob("*/*/*.png"), key=lambda file: file.name)
    assert [int(file.stem) for file in files] == list(range(1797))
    assert [int(file.parent.name) for file in files] == scans.target.tolist()


def test_images_are_the_scans_enlarged_to_32_pixels_rgb(digits):
    scans = load_digits()
    for file in list(digits.glob("*/*/*.png"))[::97]:
        image = Image.open(file)
        assert (image.mode, image.size) == ("RGB", (32, 32))
        shrunk = np.asarray(image.convert("L"), dtype=float).reshape(8, 4, 8, 4).mean(axis=(1, 3))
        assert np.corrcoef(shrunk.ravel(), scans.images[int(file.stem)].ravel())[0, 1] > 0.97


def test_a_fifth_of_each_digit_is_kept_for_validation(digits):
    per_split = {split: Counter(f.parent.name for f in digits.glob(f"{split}/*/*.png")) for split in ("train", "val")}
    assert sum(per_split["val"].values()) == 360
    for digit, count in per_split["val"].items():
        assert count / (count + per_split["train"][digit]) == pytest.approx(0.2, abs=0.01)


def test_the_same_files_come_out_every_time(digits, tmp_path):
    def fingerprint(folder):
        return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).digest() for f in folder.glob("*/*/*.png")}

    make(tmp_path / "again")
    assert fingerprint(tmp_path / "again") == fingerprint(digits)


def test_a_folder_with_other_files_is_refused_and_a_finished_one_left_alone(digits, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    refused = make(tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("digits.py: error:")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    assert "already holds the digits" in make(digits).stdout


def test_a_users_folder_that_is_in_the_way_is_never_removed_and_ones_own_half_is(tmp_path):
    partial = tmp_path / "new.partial"
    partial.mkdir()
    (partial / "notes.txt").write_text("mine")
    refused = make(tmp_path / "new")
    assert refused.returncode == 2
    assert "new.partial is in the way and was not written by this command" in refused.stderr
    assert (partial / "notes.txt").read_text() == "mine"
    (partial / ".digits-being-written").touch()  # as an interrupted run leaves it
    assert make(tmp_path / "new").returncode == 0
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["train", "val"]

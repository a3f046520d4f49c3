"""What a save folder holds beside the checkpoints."""

import os

import pytest

from fairseq_plugins.errors import UserError
from fairseq_plugins.multilingual.kept_vocabulary import keep_vocabulary


@pytest.fixture
def data(tmp_path):
    """data-bin with two dictionaries, the sentencepiece model in the folder around it."""
    folder = tmp_path / "data" / "data-bin"
    folder.mkdir(parents=True)
    for language in ("en", "de"):
        (folder / f"dict.{language}.txt").write_text(f"word.{language} 1\n")
    (folder.parent / "spm.model").write_bytes(b"pieces")
    return folder


def dictionaries(folder):
    return {language: folder / f"dict.{language}.txt" for language in ("en", "de")}


def test_dictionaries_and_model_are_copied_once(data, tmp_path):
    save_dir = tmp_path / "new" / "save"
    keep_vocabulary(data, dictionaries(data), save_dir)
    assert {path.name: path.read_bytes() for path in save_dir.iterdir()} == {
        "dict.en.txt": b"word.en 1\n",
        "dict.de.txt": b"word.de 1\n",
        "spm.model": b"pieces",
    }
    times = {path: path.stat().st_mtime_ns for path in save_dir.iterdir()}
    keep_vocabulary(data, dictionaries(data), save_dir)
    assert times == {path: path.stat().st_mtime_ns for path in save_dir.iterdir()}
    (data.parent / "spm.model").unlink()  # data of another tokenization has none
    keep_vocabulary(data, dictionaries(data), tmp_path / "without")
    assert not (tmp_path / "without" / "spm.model").exists()


def test_a_folder_of_other_data_is_refused_and_left_alone(data, tmp_path):
    keep_vocabulary(data, dictionaries(data), tmp_path / "save")
    (data / "dict.de.txt").write_text("other 1\n")
    with pytest.raises(UserError, match=r"dict.de.txt is of other data than .*; choose a new folder to save to"):
        keep_vocabulary(data, dictionaries(data), tmp_path / "save")
    assert (tmp_path / "save" / "dict.de.txt").read_text() == "word.de 1\n"


def test_what_cannot_be_copied_is_told(data, tmp_path):
    (data / "dict.de.txt").unlink()
    with pytest.raises(UserError, match=r"cannot be kept in .*: No such file or directory \(.*dict.de.txt\)"):
        keep_vocabulary(data, dictionaries(data), tmp_path / "save")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be kept in .*: File exists"):
        keep_vocabulary(data, dictionaries(data), tmp_path / "file")
    assert not [name for name in os.listdir(tmp_path / "save") if "partial" in name]

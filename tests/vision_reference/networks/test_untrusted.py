"""Strangers' files are read without running their code, trusting their sizes, or a traceback."""

import argparse
import io
import os
import pickle
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from vision_reference.errors import UserError
from vision_reference.networks import untrusted
from vision_reference.networks.checkpoints import save_atomically
from vision_reference.networks.untrusted import load_file, reader_faults

ARCH = "shufflenet_v2_x0_5"


def assert_one_line(path: Path) -> str:
    """The message of the refusal; torch's own advice, to load the file without protection, must not be in it."""
    with pytest.raises(UserError) as error:
        load_file(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    assert "weights_only" not in message
    return message


class Executes:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


class StrangersNamespace(argparse.Namespace):
    """Looks like something allowed, but is somebody's own class."""


def parameter_with(attribute) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.attribute = attribute
    return parameter


HOSTILE = {
    "in the weights": lambda evil: {"arch": ARCH, "state_dict": {"module.fc.bias": evil}},
    "instead of the weights": lambda evil: {"model": evil},
    "in a corner": lambda evil: {"model": {}, "args": argparse.Namespace(model=ARCH, hook=evil)},
    "as the file": lambda evil: evil,
    "as a tensor's attribute": lambda evil: {"model": {"fc.bias": parameter_with(evil)}},
}


@pytest.mark.parametrize("where", HOSTILE)
@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "before torch 1.6"])
def test_a_file_that_would_execute_code_is_refused_and_nothing_is_executed(where, zip_format, tmp_path):
    path, proof = tmp_path / "evil.pth.tar", tmp_path / "executed"
    torch.save(HOSTILE[where](Executes(proof)), path, _use_new_zipfile_serialization=zip_format)
    assert "refused" in assert_one_line(path)
    assert not proof.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_plain_pickle_is_refused_and_nothing_is_executed(protocol, tmp_path):
    path, proof = tmp_path / "evil.pkl", tmp_path / "executed"
    path.write_bytes(pickle.dumps({"state_dict": Executes(proof)}, protocol=protocol))
    assert_one_line(path)
    assert not proof.exists()


def test_objects_other_than_weights_and_plain_values_are_refused(tmp_path):
    path = tmp_path / "model.pth"
    for content in (
        torch.nn.Linear(2, 2),
        {"state_dict": {}, "hooks": StrangersNamespace()},
        {"model": {}, "data": np.arange(3)},
    ):
        torch.save(content, path)
        assert "allowed in a checkpoint" in assert_one_line(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_program_is_refused(tmp_path):
    path = tmp_path / "program.pth"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    assert "refused" in assert_one_line(path)


def test_a_tar_archive_of_the_first_torch_is_refused(tmp_path):
    path, proof = tmp_path / "weights.pth.tar", tmp_path / "executed"
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(Executes(proof), protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert "refused" in assert_one_line(path)
    assert not proof.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "before torch 1.6"])
def test_a_file_cut_short_anywhere_is_refused_in_one_line(suffix, zip_format, tmp_path):
    path = tmp_path / f"weights{suffix}"
    state = {"a": torch.arange(50), "b": torch.ones(5, 5)}
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=zip_format)
    whole = path.read_bytes()
    for length in [0, 1, 7, *range(10, len(whole) - 1, 61)]:
        path.write_bytes(whole[:length])
        assert_one_line(path)


@pytest.mark.parametrize("content", [b"hello", b"PK\x03\x04 no zip", b"<html>404</html>" * 99, bytes(range(256)) * 9])
@pytest.mark.parametrize("name", ["weights.pth.tar", "weights.safetensors"])
def test_what_is_no_checkpoint_is_refused_in_one_line(content, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    assert "safetensors" in assert_one_line(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    assert_one_line(tmp_path / "missing.pth")
    assert_one_line(tmp_path)


def test_numpy_numbers_of_any_type_and_byte_order_become_python_numbers(tmp_path):
    numbers = [np.dtype(code).type(3) for code in "?bBhHiIqQefd"] + [np.float64(-0.1), np.int64(-(2**62))]
    torch.save([*numbers, BigEndian()], tmp_path / "numbers.pth")
    read = load_file(tmp_path / "numbers.pth")
    assert read == [*(number.item() for number in numbers), 258]
    assert {type(number) for number in read} == {bool, int, float}


class BigEndian:
    """Pickled as numpy pickles a 16-bit 258 on a big-endian machine."""

    def __reduce__(self):
        make_number = np.int16(0).__reduce__()[0]
        return make_number, (np.dtype(">i2"), b"\x01\x02")


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"], ids=["numpy 1", "numpy 2"])
def test_numpy_numbers_are_read_whichever_numpy_wrote_them(module, tmp_path):
    written, renamed = tmp_path / "written.pth", tmp_path / "renamed.pth"
    torch.save({"best_acc1": np.float64(71.25)}, written)
    with zipfile.ZipFile(written) as source, zipfile.ZipFile(renamed, "w") as target:
        for name in source.namelist():
            target.writestr(name, re.sub(rb"numpy\._?core\.multiarray", module, source.read(name)))
    assert load_file(renamed) == {"best_acc1": 71.25}


def rebuilt(size, stride, numel=4):
    """A tensor whose pickle claims ``size`` elements over a storage of ``numel``."""

    class Claims:
        def __reduce__(self):
            storage = torch.storage.TypedStorage(wrap_storage=torch.ones(numel).untyped_storage(), dtype=torch.float32)
            return torch._utils._rebuild_tensor_v2, (storage, 0, size, stride, False, {})

    return Claims()


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_tensor_may_not_claim_more_than_its_file_holds(tmp_path):
    path = tmp_path / "wide.pth"
    torch.save({"model": {"fc.weight": rebuilt((1 << 20, 1 << 14), (0, 0))}}, path)
    assert "would grow to 68,719,476,736 in memory" in assert_one_line(path)


def test_small_zeros_are_no_bomb_and_large_compressed_ones_are(tmp_path):
    plain, packed = tmp_path / "plain.pth", tmp_path / "packed.pth"
    for name, count in (("small", 1 << 20), ("large", 18 << 20)):
        torch.save({"model": {name: torch.zeros(count)}}, plain)
        with (
            zipfile.ZipFile(plain) as source,
            zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as to,
        ):
            for entry in source.namelist():
                to.writestr(entry, source.read(entry))
        if name == "small":
            load_file(packed)
        else:
            assert "would grow to" in assert_one_line(packed)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.sparse_coo_tensor([[0]], [1.0], (1 << 30,)),
        torch.empty(1 << 40, device="meta"),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    ],
    ids=["sparse", "meta", "quantized"],
)
def test_tensors_that_are_not_plain_are_refused(tensor, tmp_path):
    torch.save({"model": {"fc.weight": tensor}}, tmp_path / "odd.pth")
    assert "refused" in assert_one_line(tmp_path / "odd.pth")


def test_containers_that_name_each_other_without_end_are_refused(tmp_path):
    doubled, looped, deep = [1], [], []
    for _ in range(60):
        doubled = [doubled, doubled]
    looped.append(looped)
    for _ in range(200):
        deep = [deep]
    for number, content in enumerate((doubled, looped, deep)):
        torch.save({"model": {}, "args": {"seed": content}}, tmp_path / f"{number}.pth")
        assert "as no checkpoint" in assert_one_line(tmp_path / f"{number}.pth")


def test_the_faults_of_torchs_reader_are_known_by_version():
    assert reader_faults("2.5.1+cpu") == ["CVE-2025-32434", "CVE-2026-24747"]
    assert reader_faults("2.9.0") == ["CVE-2026-24747"]
    assert reader_faults("2.10.0") == reader_faults("2.15.0a0+git") == []


def test_they_are_told_once_and_of_strangers_pickles_only(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(untrusted, "_told", False)
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    save_atomically({"model": {}}, tmp_path / "ours.pth")
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    torch.save({"model": {}}, tmp_path / "theirs.pth")
    load_file(tmp_path / "ours.pth")
    load_file(tmp_path / "a.safetensors")
    assert capfd.readouterr().err == ""
    for _ in range(2):
        load_file(tmp_path / "theirs.pth")
    told = capfd.readouterr().err
    assert told.count("\n") == told.count("CVE-2025-32434") == told.count("theirs.pth") == 1

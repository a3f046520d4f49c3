"""Checkpoints of every origin are read, strangers' code is never run, and saving never loses what was there."""

import argparse
import io
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch.optim.swa_utils import AveragedModel

from vision_reference.errors import UserError
from vision_reference.networks.checkpoints import (
    capture_rng,
    load_file,
    load_weights,
    prune_epoch_checkpoints,
    read_checkpoint,
    read_weights,
    resolve_resume,
    restore_rng,
    save_atomically,
)

ARCH = "shufflenet_v2_x0_5"


def network(num_classes: int = 10) -> torch.nn.Module:
    return torchvision.models.get_model(ARCH, num_classes=num_classes)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return network()


@pytest.fixture(scope="module")
def blank() -> torch.nn.Module:
    return network()


@pytest.fixture
def target(blank) -> torch.nn.Module:
    """A network of the same shape, all zeros."""
    for value in blank.state_dict().values():
        value.zero_()
    return blank


def torchvision_recipe(model) -> dict:
    """What torchvision's reference script saves, with its EMA of a DDP-wrapped run."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=2)
    main = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, main], milestones=[2])
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "epoch": 4,
        "args": argparse.Namespace(model=ARCH, lr=0.1, device="cuda", distributed=True, norm_weight_decay=None),
        "model_ema": AveragedModel(model).state_dict(),
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7},
    }


def authors(model, **entries) -> dict:
    """What the paper authors' scripts save: names as DDP gives them, accuracies as tensors or numbers."""
    return {
        "epoch": 90,
        "arch": ARCH,
        "best_acc1": torch.tensor([71.5]),
        "best_acc5": torch.tensor(90.3),
        "temperature": 1.0,
        "teacher_alpha": 0.1,
        "teacher-arch": "resnet50",
        "state_dict": OrderedDict((f"module.{key}", value) for key, value in model.state_dict().items()),
        "optimizer": torch.optim.SGD(model.parameters(), 0.1).state_dict(),
        **entries,
    }


def prefixed(model, prefix: str) -> dict:
    return {prefix + key: value for key, value in model.state_dict().items()}


FORMATS = {
    "torchvision's recipe": torchvision_recipe,
    "the authors'": authors,
    "the authors' with numpy accuracies": lambda m: authors(m, best_acc1=np.float64(71.5), best_acc5=np.float32(90)),
    "a bare state dict": lambda m: m.state_dict(),
    "a bare state dict of DDP": lambda m: prefixed(m, "module."),
    "a compiled model": lambda m: {"model": prefixed(m, "_orig_mod.")},
    "compiled, then DDP": lambda m: {"model": prefixed(m, "module._orig_mod.")},
    "DDP, then compiled": lambda m: {"model": prefixed(m, "_orig_mod.module.")},
    "args as a dict": lambda m: {"model": m.state_dict(), "args": {"model": ARCH}},
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "before torch 1.6"])
def test_weights_of_every_format_are_found_and_fit_the_model(name, zip_format, model, target, tmp_path):
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(FORMATS[name](model), path, _use_new_zipfile_serialization=zip_format)

    load_weights(target, read_weights(path, ARCH), str(path))

    for key, value in target.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_safetensors_are_read(model, target, tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(prefixed(model, "module."), path)
    load_weights(target, read_weights(path, ARCH), str(path))
    assert torch.equal(target.fc.weight, model.fc.weight)


def test_plain_weights_are_taken_unless_the_average_is_asked_for(model, tmp_path):
    path = tmp_path / "checkpoint.pth"
    checkpoint = torchvision_recipe(model)
    averaged = {key: value + 1 if "weight" in key else value for key, value in checkpoint["model_ema"].items()}
    torch.save({**checkpoint, "model_ema": averaged}, path)

    plain, average = read_weights(path, ARCH), read_weights(path, ARCH, ema=True)

    assert torch.equal(plain["fc.weight"], model.fc.weight)
    assert torch.equal(average["fc.weight"], model.fc.weight + 1)
    assert average.keys() == plain.keys() == model.state_dict().keys()
    torch.save(authors(model), path)
    with pytest.raises(UserError, match="no moving average"):
        read_weights(path, ARCH, ema=True)


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"arch": ARCH, "state_dict": {}},
        {"args": argparse.Namespace(model=ARCH), "model": {}},
        {"args": {"arch": ARCH}, "model": {}},
    ],
)
def test_weights_of_another_network_are_refused_naming_both(checkpoint, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(checkpoint, path)
    with pytest.raises(UserError) as error:
        read_weights(path, "resnet50")
    assert ARCH in str(error.value)
    assert "resnet50" in str(error.value)
    assert str(path) in str(error.value)
    assert read_weights(path, None) == {}


@pytest.mark.parametrize("content", [{"epoch": 3, "lr": 0.1}, [1, 2], {}, {"state_dict": {"fc.weight": 1.0}}])
def test_a_file_without_weights_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    assert_one_line(path)


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


def test_objects_other_than_weights_and_plain_values_are_refused(model, tmp_path):
    path = tmp_path / "model.pth"
    for content in (model, {"state_dict": {}, "hooks": StrangersNamespace()}, {"model": {}, "data": np.arange(3)}):
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


def assert_one_line(path: Path) -> str:
    """The message of the refusal; torch's own advice, to load the file without protection, must not be in it."""
    with pytest.raises(UserError) as error:
        read_weights(path, ARCH)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    assert "weights_only" not in message
    return message


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


def test_a_state_dict_of_another_class_count_is_told_as_that(model):
    with pytest.raises(UserError, match="the file has 10 classes, the model 7") as error:
        load_weights(network(7), model.state_dict(), "x.pth")
    assert "fc.weight" not in str(error.value)
    assert "missing" not in str(error.value)


def test_keys_that_do_not_fit_are_counted_and_listed_briefly_and_the_model_stays_as_it_was(model, target):
    state = model.state_dict()
    for key in [key for key in state if key.startswith("stage2")]:
        state[key.replace("stage2", "stage9")] = state.pop(key)
    state["conv1.0.weight"] = torch.zeros(24, 1, 3, 3)

    with pytest.raises(UserError) as error:
        load_weights(target, state, "x.pth")

    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    for part in ("x.pth", "stage2.0.branch1.0.weight, ", "stage9.0.branch1.0.weight, ", "...", "24, 1, 3, 3"):
        assert part in message
    assert not any(value.any() for value in target.state_dict().values())


def test_batch_norm_counters_may_be_absent_as_in_old_files(model, target):
    state = {key: value for key, value in model.state_dict().items() if "num_batches_tracked" not in key}
    load_weights(target, state, "old.pth")
    assert torch.equal(target.fc.weight, model.fc.weight)


def test_training_can_go_on_from_the_recipes_checkpoint(model, tmp_path):
    torch.save(torchvision_recipe(model), tmp_path / "checkpoint.pth")
    checkpoint = read_checkpoint(tmp_path / "checkpoint.pth")
    assert checkpoint["epoch"] == 4
    assert checkpoint["args"]["model"] == ARCH
    assert checkpoint["optimizer"]["param_groups"][0]["momentum"] == 0.9
    assert checkpoint["lr_scheduler"]["last_epoch"] == 0


@pytest.mark.parametrize("name", ["the authors'", "a bare state dict"])
def test_training_cannot_go_on_from_weights_alone_and_the_error_says_what_can_be_done(name, model, tmp_path):
    torch.save(FORMATS[name](model), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"lr_scheduler.*--test-only.*--init-weights"):
        read_checkpoint(tmp_path / "weights.pth")


def test_saving_replaces_the_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "checkpoint.pth"
    for value in (1, 2):
        save_atomically({"epoch": value}, path)
    assert load_file(path) == {"epoch": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_while_saving_leaves_the_previous_file(tmp_path):
    path = tmp_path / "checkpoint.pth"
    save_atomically({"epoch": 1}, path)
    with pytest.raises(AttributeError):
        save_atomically({"epoch": 2, "cannot be pickled": lambda: None}, path)
    assert load_file(path) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_in_the_middle_of_saving_leaves_the_previous_file_and_the_next_save_cleans_up(tmp_path):
    path = tmp_path / "checkpoint.pth"
    save_atomically({"epoch": 1}, path)
    program = """
        import os, signal, sys
        from vision_reference.networks.checkpoints import save_atomically

        class DiesHalfway:
            def __reduce__(self):
                os.kill(os.getpid(), signal.SIGKILL)

        save_atomically({"epoch": 2, "more": DiesHalfway()}, sys.argv[1])
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert load_file(path) == {"epoch": 1}
    assert len(list(tmp_path.iterdir())) == 2, "the killed process was in the middle of saving"

    save_atomically({"epoch": 3}, path)
    assert load_file(path) == {"epoch": 3}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("keep", "left"), [(0, set()), (1, {11}), (2, {10, 11}), (99, {0, 2, 9, 10, 11})])
def test_only_the_newest_epoch_files_are_kept_and_nothing_else_is_touched(keep, left, tmp_path):
    others = {"checkpoint.pth", "best.pth", "model_best.pth", "model_12.pth.partial", "xmodel_1.pth"}
    for name in others | {f"model_{epoch}.pth" for epoch in (0, 2, 9, 10, 11)}:
        (tmp_path / name).touch()
    prune_epoch_checkpoints(tmp_path, keep)
    assert {path.name for path in tmp_path.iterdir()} == others | {f"model_{epoch}.pth" for epoch in left}


def test_resume_means_nothing_the_last_checkpoint_or_a_file(tmp_path):
    assert resolve_resume("", tmp_path) is None
    assert resolve_resume("auto", tmp_path / "no folder yet") is None
    last = tmp_path / "checkpoint.pth"
    last.touch()
    assert resolve_resume("", tmp_path) is None
    assert resolve_resume("auto", tmp_path) == last
    assert resolve_resume(str(last), "elsewhere") == last
    with pytest.raises(UserError, match=r"no-such\.pth"):
        resolve_resume("no-such.pth", tmp_path)


def draws() -> list:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), *torch.randn(3).tolist()]


def test_random_numbers_go_on_exactly_after_a_restart(tmp_path):
    before = capture_rng()
    try:
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)
        draws()  # leaves half of a pair of normal numbers in store, in Python and numpy alike
        save_atomically({"rng": [capture_rng()]}, tmp_path / "checkpoint.pth")
        expected = draws()
        draws()
        restore_rng(load_file(tmp_path / "checkpoint.pth")["rng"][0])
        assert draws() == expected
    finally:
        restore_rng(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_random_numbers_of_the_gpu_go_on_exactly():
    torch.cuda.manual_seed(4)
    torch.randn(5, device="cuda")
    state = capture_rng()
    expected = torch.randn(5, device="cuda")
    restore_rng(state)
    assert torch.equal(torch.randn(5, device="cuda"), expected)

"""Checkpoints of every origin are read, strangers' code is never run, and saving never loses what was there."""

import argparse
import os
import random
import re
import signal
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch.optim.swa_utils import AveragedModel

from vision_reference.errors import UserError
from vision_reference.networks.checkpoints import (
    capture_rng,
    checksum,
    load_checkpoint,
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
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_weights(path, ARCH)


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
    for part in ("x.pth", "stage2.0.branch1.0.weight, ", "stage9.0.branch1.0.weight, ", " more", "24, 1, 3, 3"):
        assert part in message
    assert not any(value.any() for value in target.state_dict().values())


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_anywhere_in_the_weights_is_noticed(bit, model, tmp_path):
    path = tmp_path / "checkpoint.pth"
    save_atomically({"model": model.state_dict(), "arch": ARCH, "best": {"acc1": 71.5}}, path)
    load_checkpoint(path)
    whole = path.read_bytes()
    start = whole.index(model.fc.weight.detach().numpy().tobytes())
    damaged = bytearray(whole)
    damaged[start + 4 * 100 + bit % 4] ^= 1 << bit
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path)


def test_the_checksum_covers_names_types_and_order():
    a, b = torch.arange(4.0), torch.ones(2, 2)
    variants = [{"x": a, "y": b}, {"y": b, "x": a}, {"x": a}, {"x": a, "y": b.int()}, {"x": a, "y": b.flatten()}]
    variants += [{"x": [a, 1]}, {"x": [a, 1.0]}, {"x": [a, "1"]}, {"x": [a, [1]]}, {"x": [a, None]}]
    assert len({checksum(variant) for variant in variants}) == len(variants)
    assert checksum({"x": b.to(memory_format=torch.contiguous_format).t()}) == checksum({"x": b.clone()})


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "is not finite"), (float("inf"), "is not finite"), (torch.int8, "is of type torch.int8")],
)
def test_weights_that_are_no_finite_numbers_are_refused(value, message, model, target):
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    if isinstance(value, float):
        state["fc.weight"][3, 7] = value
    else:
        state["fc.weight"] = state["fc.weight"].to(value)
    with pytest.raises(UserError, match=f"fc.weight {message}"):
        load_weights(target, state, "x.pth")
    assert not any(tensor.any() for tensor in target.state_dict().values())


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
    assert load_checkpoint(path) == {"epoch": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_while_saving_leaves_the_previous_file(tmp_path):
    path = tmp_path / "checkpoint.pth"
    save_atomically({"epoch": 1}, path)
    with pytest.raises(AttributeError):
        save_atomically({"epoch": 2, "cannot be pickled": lambda: None}, path)
    assert load_checkpoint(path) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_in_the_middle_of_saving_leaves_the_previous_file_and_the_next_save_cleans_up(tmp_path):
    path = tmp_path / "checkpoint.pth"
    save_atomically({"epoch": 1}, path)

    class DiesHalfway:
        def __reduce__(self):
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        save_atomically([2, DiesHalfway()], path)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert load_checkpoint(path) == {"epoch": 1}
    assert len(list(tmp_path.iterdir())) == 2, "the killed process was in the middle of saving"

    save_atomically({"epoch": 3}, path)
    assert load_checkpoint(path) == {"epoch": 3}
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
        restore_rng(load_checkpoint(tmp_path / "checkpoint.pth")["rng"][0])
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

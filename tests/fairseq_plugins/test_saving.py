"""Checkpoints of fairseq-train: what they hold, and what a kill or a full disk in the midst of writing one leaves."""

import re
import resource

import pytest
import torch
from fairseq import checkpoint_utils, file_io

from fairseq_plugins.errors import UserError
from fairseq_plugins.files import atomic_file, remove_partials
from fairseq_plugins.inference_only.checkpoints import read_checkpoint

# fairseq-train that ends, as by SIGKILL, when it has written the first bytes of a file for the N-th time.
KILLED = """
import os, shutil, sys, torch
from fairseq_cli.train import cli_main
name, number = sys.argv.pop(1), int(sys.argv.pop(1))
module = {"save": torch, "copyfileobj": shutil}[name]
stock, calls = getattr(module, name), 0
def write(source, file, *more):
    global calls
    calls += 1
    if calls == number:
        file.write(b"PK" * 50)
        file.flush()
        os._exit(9)
    return stock(source, file, *more)
setattr(module, name, write)
cli_main()
"""


# What stock fairseq saves but neither sets nor reads.
UNSET = re.compile(r".*\.((in_proj|out_proj|fc1|fc2)_(weight|bias)|_float_tensor)")


def state_of(path):
    state = torch.load(path, weights_only=False)
    model = {name: weight for name, weight in state["model"].items() if not UNSET.fullmatch(name)}
    assert len(model) > 20
    return model, state["last_optimizer_state"]["state"], state["extra_state"]["train_iterator"]


@pytest.mark.parametrize(("write", "number"), [("save", 2), ("copyfileobj", 2)])
def test_a_training_killed_while_it_writes_a_checkpoint_goes_on_as_if_never_killed(
    toy, train, command_line, request, tmp_path, write, number
):
    argv = [toy.data, "-s", "en", "-t", "de", "--task", "translation_kd", "--teacher", toy.de, *toy.tiny, *toy.training]
    argv += [
        "--criterion",
        "label_smoothed_kd_cross_entropy",
        "--user-dir",
        request.config.rootpath / "fairseq_plugins",
    ]
    argv += ["--max-update", 6, "--save-interval-updates", 2, "--disable-validation"]
    train([*argv, "--save-dir", tmp_path / "whole"])

    argv += ["--save-dir", tmp_path / "killed"]
    killed = command_line("python", "-c", KILLED, write, number, *argv)
    assert killed.returncode == 9, killed.stdout
    (left,) = (tmp_path / "killed").glob(".*.partial")
    assert left.read_bytes() == b"PK" * 50
    assert read_checkpoint(tmp_path / "killed" / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == 2

    train(argv)
    names = [{path.name for path in (tmp_path / folder).iterdir()} for folder in ("killed", "whole")]
    assert names[0] == names[1]
    for name in ("checkpoint_last.pt", "checkpoint_1_4.pt"):
        resumed, whole = (state_of(tmp_path / folder / name) for folder in ("killed", "whole"))
        torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_files_are_those_that_stock_fairseq_writes(tmp_path):
    state = {"model": {"weight": torch.arange(6.0).view(2, 3)}, "extra_state": {"epoch": 3}}
    checkpoint_utils.torch_persistent_save(state, str(tmp_path / "ours.pt"))
    checkpoint_utils.torch_persistent_save.__wrapped__(state, str(tmp_path / "stock.pt"))
    assert checkpoint_utils.PathManager.copy(str(tmp_path / "ours.pt"), str(tmp_path / "copy.pt"), overwrite=True)
    assert file_io.PathManager.copy(str(tmp_path / "stock.pt"), str(tmp_path / "stock-copy.pt"), overwrite=True)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "checkpoint_last.pt"
    checkpoint_utils.torch_persistent_save({"model": {}}, str(path))
    before, other = path.read_bytes(), tmp_path / "other.pt"
    other.write_bytes(bytes(100_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # as a disk with so much room for a file
    try:
        with pytest.raises(UserError, match=rf"cannot write to {tmp_path} .*make room .* --save-dir"):
            checkpoint_utils.torch_persistent_save({"model": {"weight": torch.zeros(100_000)}}, str(path))
        with pytest.raises(UserError, match="cannot write"):
            checkpoint_utils.PathManager.copy(str(other), str(path), overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {"checkpoint_last.pt", "other.pt"}


def test_partials_of_the_killed_go_and_those_of_the_living_stay(tmp_path):
    for name in (".checkpoint2.pt.x1.partial", ".checkpoint_last-shard0.pt.x2.partial", ".mine.x3.partial"):
        (tmp_path / name).write_text("half")
    with atomic_file(tmp_path / "checkpoint_best.pt") as file:
        file.write(b"new")
        remove_partials(tmp_path, "checkpoint*.pt")
        assert len(list(tmp_path.glob(".checkpoint_best.pt.*.partial"))) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint_best.pt", ".mine.x3.partial"}
    assert (tmp_path / "checkpoint_best.pt").read_bytes() == b"new"

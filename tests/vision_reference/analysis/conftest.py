"""Checkpoints of untrained networks on a few digits: what the commands do with them needs no training."""

import contextlib
import io

import pytest
import torch

from vision_reference.errors import run_command
from vision_reference.networks.by_name import build_model

ARGS = {"preset": "digits", "label_smoothing": 0.0, "model": "resnet8"}


def _write_checkpoint(path, *, classes=4, seed=0, model="resnet8", args=ARGS):
    """A checkpoint of a randomly initialized network, as the paper's authors or older versions wrote them."""
    torch.manual_seed(seed)
    network = build_model(model, classes)
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(0.25)  # so that features spread
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"arch": model, "model": network.state_dict(), "args": dict(args)}, path)
    return path


@pytest.fixture(scope="session")
def write_checkpoint():
    """Writes a checkpoint of a randomly initialized network."""
    return _write_checkpoint


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Three files: plain, other, and one of three classes."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "plain": _write_checkpoint(folder / "plain.pth"),
        "other": _write_checkpoint(folder / "other.pth", seed=1, args={**ARGS, "label_smoothing": 0.1}),
        "three": _write_checkpoint(folder / "three.pth", classes=3),
    }


@pytest.fixture(scope="session")
def command():
    """Runs a command in this process: its text, and how it ended."""

    def run(module, *flags, expect=0):
        output = io.StringIO()
        generator = torch.get_rng_state()
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                run_command("command", lambda: module.main(module.parse_args([str(flag) for flag in flags])))
            status = 0
        except SystemExit as stop:
            status = stop.code
        finally:
            torch.set_rng_state(generator)
        text = output.getvalue()
        assert status == expect, text
        if expect:
            lines = [line for line in text.strip().splitlines() if not line.startswith("note:")]
            assert len([line for line in lines if ", ETA " not in line]) == 1, text  # but for how far it had come
        return text

    return run

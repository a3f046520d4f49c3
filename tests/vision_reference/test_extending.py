"""Networks, losses and larger steps of one's own, through the real command line."""

import pytest
import torch

MODULE = """
import torch

def tiny(num_classes):
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(192, num_classes))

def nothing(num_classes):
    return None

def halved(student_logits, teacher_logits, targets, temperature, share=0.5):
    return share * (student_logits - teacher_logits.detach()).square().mean()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_things.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_things:tiny"


def weights(folder):
    return torch.load(folder / "checkpoint.pth", weights_only=True)["model"]


def test_a_network_of_ones_own_trains_teaches_and_is_never_imported_because_a_file_names_it(train, own, tmp_path):
    train("--model", own, "--epochs", 1, "--output-dir", tmp_path / "teacher")
    checkpoint = tmp_path / "teacher" / "checkpoint.pth"
    teacher = ("--teacher", own, "--teacher-weights", checkpoint, "--kd-loss", "own_things:halved:share=0.1")
    train("--model", own, "--epochs", 1, *teacher, "--output-dir", tmp_path / "student")
    train("--model", own, "--test-only", "--resume", checkpoint)
    assert f"give --model {own}" in train("--test-only", "--resume", checkpoint, expect=2)
    said = train("--model", "own_things:nothing", "--output-dir", tmp_path / "no", expect=2)
    assert "returned NoneType, not a torch.nn.Module" in said


@pytest.mark.parametrize("torchrun", [None, 2])
def test_accumulated_batches_are_one_large_batch(train, own, tmp_path, monkeypatch, torchrun):
    """83 images: updates of 32, 32, 19 against 16 + 16, 16 + 16, 16 + 3."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # as a user makes a module of their own known
    flags = ("--model", own, "--epochs", 1, "--seed", 5, "--clip-grad-norm", 0.5)
    train(*flags, "-b", 32, "--output-dir", tmp_path / "large")
    own_batch = 16 // (torchrun or 1)
    train(*flags, "-b", own_batch, "--accumulate", 2, "--output-dir", tmp_path / "small", torchrun=torchrun)
    train(*flags, "-b", 16, "--output-dir", tmp_path / "other")
    large, small, other = (weights(tmp_path / name) for name in ("large", "small", "other"))
    for name, value in large.items():
        torch.testing.assert_close(small[name], value, rtol=1e-5, atol=1e-6)
    assert any(not torch.allclose(other[name], value, rtol=1e-3) for name, value in large.items())


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--kd-loss", "dkd"], "--kd-loss was given without --teacher"),
        (["--teacher", "resnet18", "--teacher-weights", "x", "--kd-loss", "dkd:gamma=1"], "the loss has alpha, beta"),
        (["--kd-loss", ""], "is empty"),
        (["--soft-labels", "x", "--kd-loss", "ttm", "--kd-tail", "bucket"], "which --kd-loss kl alone knows of"),
        (["--model", "no_such_module:net"], "cannot import no_such_module"),
        (["--accumulate", "0"], "is not an integer from 1"),
    ],
)
def test_a_mistake_is_one_line(train, tmp_path, flags, line):
    said = train(*flags, "--output-dir", tmp_path, expect=2)
    assert [line in text for text in said.splitlines() if "error:" in text] == [True]

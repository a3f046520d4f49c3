"""The ResNets for 32x32 images against published sizes and a computation of their own."""

import pytest
import torch
import torch.nn.functional as F

from vision_reference.networks import cifar_resnets
from vision_reference.networks.by_name import build_model

# Millions of parameters with 100 classes, as published beside the benchmark (Tian et al. 2020 and its successors).
MILLIONS = {
    "resnet8": 0.08,
    "resnet14": 0.18,
    "resnet20": 0.28,
    "resnet32": 0.47,
    "resnet44": 0.67,
    "resnet56": 0.86,
    "resnet110": 1.74,
    "resnet8x4": 1.23,
    "resnet32x4": 7.43,
}


def counted(depth: int, widths: tuple[int, int, int, int], classes: int) -> int:
    """Parameters by the formula: weights of convolutions, two numbers a channel of a batch norm, the linear layer."""
    first, *stages = widths
    total, incoming = 27 * first + 2 * first, first
    for number, width in enumerate(stages):
        for block in range((depth - 2) // 6):
            before = incoming if block == 0 else width
            total += 9 * before * width + 2 * width + 9 * width * width + 2 * width
            if block == 0 and (number > 0 or before != width):
                total += before * width + 2 * width
        incoming = width
    return total + incoming * classes + classes


@pytest.mark.parametrize("name", cifar_resnets.NAMES)
def test_sizes_are_the_published_ones(name):
    parameters = sum(parameter.numel() for parameter in cifar_resnets.build(name, 100).parameters())
    depth = int(name.removeprefix("resnet").removesuffix("x4"))
    assert parameters == counted(depth, (32, 64, 128, 256) if name.endswith("x4") else (16, 16, 32, 64), 100)
    assert parameters / 1e6 == pytest.approx(MILLIONS[name], abs=0.006)


def test_a_forward_pass_is_what_the_paper_draws():
    """He et al. 2016, section 4.2, written once more with nothing but functions of a state dict."""
    model = build_model("resnet14", 7).double().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2), module.weight.data.normal_()
    state = model.state_dict()

    def norm(x, name):
        mean, var, weight, bias = (
            state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        shape = (1, -1, 1, 1)
        return (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * weight.view(shape) + bias.view(shape)

    images = torch.randn(2, 3, 32, 32, dtype=torch.double)
    x = norm(F.conv2d(images, state["conv1.weight"], padding=1), "bn1").clamp(min=0)
    for stage in (1, 2, 3):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(norm(y, f"{name}.bn1").clamp(min=0), state[f"{name}.conv2.weight"], padding=1)
            if stride == 2:
                x = norm(F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=2), f"{name}.downsample.1")
            x = (norm(y, f"{name}.bn2") + x).clamp(min=0)
    assert x.shape == (2, 64, 8, 8)
    logits = x.mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    torch.testing.assert_close(model(images), logits)

"""Folded batch norms: the same answers from every family of networks, the network itself untouched."""

import copy

import pytest
import torch
from torch import nn

from vision_reference.networks.by_name import build_model
from vision_reference.networks.folding import fold_batch_norms

# One small network per family of torchvision: those with batch norms, then those without.
FAMILIES = {
    "densenet121": 64, "efficientnet_b0": 64, "efficientnet_v2_s": 64, "googlenet": 64, "inception_v3": 96,
    "maxvit_t": 224, "mnasnet0_5": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "regnet_x_400mf": 64,
    "regnet_y_400mf": 64, "resnet18": 64, "resnet50": 64, "resnext50_32x4d": 64, "shufflenet_v2_x0_5": 64,
    "vgg11_bn": 32,
    "alexnet": 96, "convnext_tiny": 64, "squeezenet1_1": 64, "swin_t": 64, "swin_v2_t": 64, "vit_b_32": 224,
}  # fmt: skip


def with_lived_in_norms(network):
    """Batch norms as training leaves them: all four numbers of a channel away from their beginnings."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.8, 1.2),
                (module.bias, -0.1, 0.1),
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.7, 1.4),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return network.eval()


def count(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(("name", "size"), FAMILIES.items())
def test_every_family_answers_the_same_with_folded_batch_norms(name, size):
    torch.manual_seed(0)
    network = with_lived_in_norms(build_model(name, 10))
    folded = fold_batch_norms(network)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected, answer = network(images), folded(images)
    assert (answer - expected).abs().max() <= 1e-4 * expected.abs().max()
    if name in ("densenet121", "maxvit_t"):
        assert 0 < count(folded) < count(network)
    else:
        assert count(folded) == 0


def test_the_network_itself_stays_as_it_was():
    network = with_lived_in_norms(build_model("resnet18", 10))
    before = copy.deepcopy(network.state_dict())
    fold_batch_norms(network)
    assert count(network) == 20
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_network_that_cannot_be_traced_is_used_as_it_is():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

        def forward(self, images):
            return self.layers(images) if images.sum() > 0 else self.layers(-images)

    network = Branching().eval()
    folded = fold_batch_norms(network)
    images = torch.randn(1, 3, 8, 8)
    assert folded is not network
    assert torch.equal(folded(images), network(images))

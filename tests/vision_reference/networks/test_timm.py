"""``timm:NAME`` stands for timm's networks, if timm is installed."""

import sys
import types

import pytest
import torch
from torch import nn
from torchvision.models import ResNet50_Weights

from vision_reference.errors import UserError
from vision_reference.networks.by_name import build_filled, build_model, saved_classes
from vision_reference.networks.pretrained import fetch_weights


@pytest.fixture
def timm(monkeypatch):
    """A stand-in with the two functions of timm that are used."""
    module = types.ModuleType("timm")
    module.is_model = lambda name: name == "tiny"
    module.create_model = lambda name, num_classes: nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))
    monkeypatch.setitem(sys.modules, "timm", module)


def test_a_network_of_timm_is_built_and_filled(timm):
    source = build_model("timm:tiny", 7)
    assert source[1].out_features == 7
    assert saved_classes("timm:tiny", source.state_dict(), "file") == 7
    model = build_filled("timm:tiny", 7, source.state_dict(), "file")
    assert torch.equal(model[1].weight, source[1].weight)


def test_what_timm_does_not_have_is_told_in_one_line(timm):
    with pytest.raises(UserError, match="timm has no model 'huge'"):
        build_model("timm:huge", 7)
    with pytest.raises(UserError, match="are torchvision's, not weights of timm:tiny"):
        fetch_weights(ResNet50_Weights.IMAGENET1K_V1, "timm:tiny")


def test_without_timm_the_user_is_told_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="'timm:tiny' needs timm, which is not installed"):
        build_model("timm:tiny", 7)

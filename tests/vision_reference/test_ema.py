"""The moving average of the weights decays as torchvision's recipe makes it decay."""

import argparse

import pytest
import torch
from torch import nn

from vision_reference.ema import adjusted_decay, build_ema


def test_decay_is_adjusted_by_processes_batch_steps_and_epochs():
    # ResNet-50 on 8 GPUs, batch 128, every 32 steps, 600 epochs: 1 - 2e-5 * 8 * 128 * 32 / 600
    decay = adjusted_decay(0.99998, batch_size=128, world_size=8, steps=32, epochs=600)
    assert decay == pytest.approx(1 - 2e-5 * 54.61333333, rel=1e-9)


def test_decay_is_never_negative():
    assert adjusted_decay(0.9, batch_size=256, world_size=8, steps=32, epochs=1) == 0.0


def test_the_average_follows_weights_and_batch_norm_statistics_but_keeps_the_first_as_they_are():
    args = argparse.Namespace(model_ema_decay=0.999, model_ema_steps=5, batch_size=10, epochs=2)  # 1 - 0.001 * 50
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = build_ema(model, args, world_size=2)
    values = [1.0, 2.0, 4.0]
    for value in values:
        with torch.no_grad():
            model[0].weight.fill_(value)
            model[1].running_mean.fill_(10 * value)
        ema.update_parameters(model)
    expected = (1.0 * 0.95 + 2.0 * 0.05) * 0.95 + 4.0 * 0.05
    torch.testing.assert_close(ema.module[0].weight.data, torch.full((2, 2), expected))
    torch.testing.assert_close(ema.module[1].running_mean, torch.full((2,), 10 * expected))
    assert model[0].weight[0, 0] == 4.0

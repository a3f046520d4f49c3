"""Odd last batches of a compiled network: the same answers, and nothing compiled for them."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from vision_reference.networks.full_batches import FullBatches


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_every_batch_is_answered_as_if_alone_by_one_program(memory_format):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    network = nn.Sequential(*layers).to(memory_format=memory_format).eval()
    torch._dynamo.reset()
    programs = CompileCounter()
    full = FullBatches(torch.compile(network, backend=programs))
    with torch.inference_mode():
        for size in (6, 6, 5, 1, 6, 2):
            images = torch.rand(size, 3, 8, 8).to(memory_format=memory_format)
            torch.testing.assert_close(full(images), network(images))
    assert programs.frame_count == 1

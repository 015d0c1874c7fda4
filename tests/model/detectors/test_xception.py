"""Xception: its size, its blocks against a direct computation, and images of any size."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from npr_model.detectors.layers.xception import BLOCKS, Plan, Xception, XceptionBlock


def test_the_signal_reaches_the_end_of_the_whole_network():
    torch.manual_seed(0)
    model = Xception()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 20_806_952 and f"{count:,} parameters" in inspect.getdoc(Xception)
    with torch.no_grad():
        features = model(torch.randn(2, 3, 71, 71))
    assert features.shape == (2, 2048, 3, 3) and model.channels == 2048
    assert features.min() == 0 and 0.3 < features.std() < 3


@pytest.mark.parametrize(
    ("plan", "relu_first"), [(Plan((6, 6), 2), False), (Plan((4, 6), 2), True), (Plan((4,), 1), True)]
)
def test_a_block_rectifies_convolves_pools_and_adds_the_shortcut(plan, relu_first):
    torch.manual_seed(0)
    block = XceptionBlock(4, plan, relu_first).double()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    kept, y = x.clone(), x
    norms = [module for module in block.body if isinstance(module, nn.BatchNorm2d)]
    convolutions = [module.weight for module in block.body if isinstance(module, nn.Conv2d)]
    for number, norm in enumerate(norms):
        y = F.relu(y) if number or relu_first else y
        y = F.conv2d(y, convolutions[2 * number], padding=1, groups=y.shape[1])
        y = F.batch_norm(F.conv2d(y, convolutions[2 * number + 1]), None, None, norm.weight, norm.bias, training=True)
    shortcut = x
    if plan.stride == 2:
        y = F.max_pool2d(y, 3, 2, padding=1)
        shortcut = F.batch_norm(F.conv2d(x, block.shortcut[0].weight, stride=2), None, None, training=True)
    torch.testing.assert_close(block(x), y + shortcut)
    torch.testing.assert_close(x, kept)  # the ReLU does not write into its input


@pytest.mark.parametrize("blocks", [1, 4, None])
def test_sizes(blocks, narrow_xception):
    strides = [plan.stride for plan in BLOCKS[:blocks]]
    for height, width in ((7, 8), (40, 7), (97, 66)):
        rows, columns = ((side - 3) // 2 + 1 - 2 for side in (height, width))
        for stride in strides:
            rows, columns = -(-rows // stride), -(-columns // stride)
        model = Xception(blocks=blocks).eval()
        assert model(torch.randn(1, 3, height, width)).shape == (1, model.channels, rows, columns)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (33, 50)])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_padded_stem_takes_every_size(size, stride, narrow_xception):
    model = Xception(5, stride=stride, padding=1).eval()
    assert model(torch.randn(1, 5, *size)).shape[2:] == tuple(-(-side // (16 * stride)) for side in size)

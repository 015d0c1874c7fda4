"""Residual blocks of ResNet-50, which several detectors use."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """Residual block of ResNet-50: 1x1, 3x3 (with the stride), 1x1.

    (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, width: int, stride: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + shortcut)


def resnet_stage(
    in_channels: int, width: int, blocks: int, stride: int, out_channels: int | None = None
) -> nn.Sequential:
    """A stage of ResNet-50: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

    ``out_channels`` is four times the width unless it is given.
    """
    out_channels = 4 * width if out_channels is None else out_channels
    first = Bottleneck(in_channels, width, stride, out_channels)
    return nn.Sequential(first, *(Bottleneck(out_channels, width, 1, out_channels) for _ in range(blocks - 1)))

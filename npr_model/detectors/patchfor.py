"""Patchfor: Chai et al., "What makes fake images detectable? Understanding properties that generalize" (ECCV 2020)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from npr_model.detectors.base import PixelNetwork


class BasicBlock(nn.Module):
    """Residual block of ResNet-18 with stride 1: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + x)


class Patchfor(PixelNetwork):
    """A ResNet-18 truncated after its first stage, with one logit for each 43x43 patch, 4 pixels apart.

    Each patch is trained on its own; an image's logit is their mean. 157,569 parameters. The authors also truncate
    Xception, and choose the depth by validation.
    """

    detector, paper_name = "patchfor", "Patchfor"

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = nn.Sequential(BasicBlock(64), BasicBlock(64))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.fc = nn.Conv2d(64, 1, 1)

    def patches(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, P) logits, patches in row order."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(self.normalised(images)))))
        return self.fc(self.layer1(x)).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images)
        return patches if self.training else patches.mean(1, keepdim=True)

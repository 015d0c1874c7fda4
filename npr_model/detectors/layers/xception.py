"""Xception (Chollet, CVPR 2017) without its classifier, whole or cut off after a block, which several detectors use."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from torch import Tensor, nn


class Plan(NamedTuple):
    """A block: the channels after each of its separable convolutions, and its stride."""

    widths: tuple[int, ...]
    stride: int


STEM = (32, 64)  # channels
BLOCKS = (
    *(Plan((width, width), 2) for width in (128, 256, 728)),
    *(Plan((728, 728, 728), 1) for _ in range(8)),
    Plan((728, 1024), 2),
)
TAIL = (1536, 2048)  # channels


class XceptionBlock(nn.Module):
    """Separable convolutions with batch norm, each after a ReLU, then max-pooling if there is a stride; and a shortcut.

    (N, in_channels, H, W) -> (N, plan.widths[-1], ceil(H / stride), ceil(W / stride)). ``relu_first``: whether the
    first ReLU is there. The result is not rectified.
    """

    def __init__(self, in_channels: int, plan: Plan, relu_first: bool = True) -> None:
        super().__init__()
        body = _separable_convolutions((in_channels, *plan.widths))
        body = body if relu_first else body[1:]
        self.body = nn.Sequential(*body, *([nn.MaxPool2d(3, plan.stride, padding=1)] if plan.stride != 1 else []))
        self.shortcut: nn.Module = nn.Identity()
        if plan.stride != 1 or in_channels != plan.widths[-1]:
            convolution = nn.Conv2d(in_channels, plan.widths[-1], 1, plan.stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(plan.widths[-1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class Xception(nn.Module):
    """A stem of two convolutions, 12 blocks, and a tail of two separable convolutions: (N, C, H, W) -> (N, 2048, ...).

    Layers and channels are those of the paper's figure 5, in the form of the PyTorch version by tstandley, which both
    F3-Net and Patchfor use. The weights are random. A whole network for RGB images has 20,806,952 parameters.

    Args:
        in_channels: Channels of the images.
        stride: Stride of the first convolution.
        padding: Zeros around the maps before each convolution of the stem; 0 in the paper, where H and W must be at
            least 7. With 1, every size works, and H and W of the result are those of the images divided by 16 times
            the stride, rounded up.
        blocks: Leave out the blocks after this one, and the tail. Default: the whole network.

    Attributes:
        channels: Of the result.
    """

    def __init__(self, in_channels: int = 3, *, stride: int = 2, padding: int = 0, blocks: int | None = None) -> None:
        super().__init__()
        first, second = STEM
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, first, 3, stride, padding, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, padding=padding, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(),
        )
        channels = second, *(plan.widths[-1] for plan in BLOCKS[:blocks])
        plans = enumerate(zip(channels, BLOCKS[:blocks], strict=False))
        self.blocks = nn.ModuleList(XceptionBlock(before, plan, number > 0) for number, (before, plan) in plans)
        self.tail: nn.Module = nn.Identity()
        self.channels = channels[-1]
        if blocks is None:
            self.tail = nn.Sequential(*_separable_convolutions((self.channels, *TAIL))[1:], nn.ReLU())
            self.channels = TAIL[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # By the number of inputs: torch counts the outputs of a depthwise convolution as if it were dense.
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.tail(x)


def _separable_convolutions(channels: tuple[int, ...]) -> list[nn.Module]:
    """Between each two of ``channels``: ReLU, a 3x3 convolution of each channel, a 1x1 convolution, batch norm."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(channels):
        depthwise = nn.Conv2d(before, before, 3, padding=1, groups=before, bias=False)
        layers += [nn.ReLU(), depthwise, nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after)]
    return layers

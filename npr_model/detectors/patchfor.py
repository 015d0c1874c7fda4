"""Patchfor: Chai et al., "What makes fake images detectable? Understanding properties that generalize" (ECCV 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npr_model.detectors.base import PixelNetwork
from npr_model.detectors.depths import DEFAULT_DEPTH, DEPTHS
from npr_model.detectors.layers.mirroring import mirrored
from npr_model.detectors.layers.xception import Xception

_LEAST = 7  # pixels on a side, for the unpadded stem of Xception


class BasicBlock(nn.Module):
    """Residual block of ResNet-18: (N, in_channels, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            convolution = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Patchfor(PixelNetwork):
    """A ResNet-18 or Xception that is cut off after a stage or block, with one logit for each patch of the image.

    (N, 3, H, W) -> (N, 1). Each patch is trained on its own. An image's probability is the mean of the probabilities
    of its patches, which the authors' tables and heat maps show (``avg_after_softmax`` of their ``test.py``); its logit
    is the logit of this mean. A patch is what one position of the last map sees:

    ==================  ==========  ===================  ==========
    ``depth``           patch       pixels between them  parameters
    ==================  ==========  ===================  ==========
    resnet18-layer1     43 x 43     4                    157,569
    resnet18-layer2     99 x 99     8                    683,201
    resnet18-layer3     211 x 211   16                   2,783,041
    xception-block1     19 x 19     4                    54,881
    xception-block2     43 x 43     8                    191,073
    xception-block3     91 x 91     16                   1,107,489
    xception-block4     187 x 187   16                   2,721,465
    xception-block5     283 x 283   16                   4,335,441
    ==================  ==========  ===================  ==========

    The layers are those of the authors' ``customnet.py``, which also takes other stages, other ResNets and all blocks
    of Xception. Their scripts train the first stage of ResNet-18 and all five blocks of Xception. Block 2 of Xception
    is the one of the examples in their README, so it is the default here.

    Departures from the authors: One logit for each patch, not two scores, which is the same model. Images are
    normalised by ImageNet's statistics, not by 0.5, and are not resized to 299 or 224 pixels. Sides shorter than 7
    pixels are extended by mirroring. Convolutions start from normal weights by the number of their inputs or outputs,
    where the authors' start from ``xavier`` with a gain of 0.02. The accuracy that ``npr train`` shows takes the mean
    of the logits. This was written with the authors' code, without the paper's text.

    Args:
        depth: One of :data:`npr_model.detectors.depths.DEPTHS`.

    Raises:
        ValueError: ``depth`` is none of them.
    """

    detector, paper_name = "patchfor", "Patchfor"
    architecture = ("depth",)

    def __init__(self, depth: str = DEFAULT_DEPTH) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth must be one of {', '.join(DEPTHS)}, not {depth!r}")
        self.depth, parts = depth, int(depth[-1])
        self.backbone: nn.Module
        if depth.startswith("xception"):
            self.backbone = Xception(blocks=parts)
            channels = self.backbone.channels
        else:
            self.backbone = _resnet_18(parts)
            channels = _resnet_18_channels(parts)
        self.fc = nn.Conv2d(channels, 1, 1)

    def patches(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, P) logits, patches in row order."""
        return self.fc(self.backbone(mirrored(self.normalised(images), _LEAST))).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images)
        return patches if self.training else logit_of_mean(patches.to(self.pixel_mean.dtype))


def logit_of_mean(logits: Tensor) -> Tensor:
    """The logit of the mean probability: (N, P) logits -> (N, 1). Finite also where the mean rounds to 0 or 1."""
    generated, real = (torch.logsumexp(F.logsigmoid(sign * logits), 1, keepdim=True) for sign in (1, -1))
    return generated - real


def _resnet_18(stages: int) -> nn.Sequential:
    """A ResNet-18 up to one of its stages: (N, 3, H, W) -> (N, _resnet_18_channels(stages), ...)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, padding=1))
    channels = 64
    for stage in range(1, stages + 1):
        before, channels = channels, _resnet_18_channels(stage)
        layers += [BasicBlock(before, channels, channels // before), BasicBlock(channels, channels, 1)]
    network = nn.Sequential(*layers)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _resnet_18_channels(stage: int) -> int:
    return 32 << stage

"""The detector of Tan et al. (CVPR 2024, section 4.1): NPR, then the first two stages of a ResNet-50."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npr_kernels import NPRConv2d, stem_forward

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Bottleneck(nn.Module):
    """The residual block of ResNet-50: 1x1, 3x3 (which carries the stride), 1x1 to four times the width.

    (N, in_channels, H, W) -> (N, 4 * width, ceil(H / stride), ceil(W / stride)).
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = width * self.expansion
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


def resnet_stage(in_channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    """A stage of ResNet-50: (N, in_channels, H, W) -> (N, 4 * width, ceil(H / stride), ceil(W / stride))."""
    first = Bottleneck(in_channels, width, stride)
    rest = (Bottleneck(width * Bottleneck.expansion, width) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


class NPRDetector(nn.Module):
    """Logits that an image was generated: (N, 3, H, W) -> (N, 1); the sigmoid of a logit is the probability.

    Floating point images are taken as already normalised; uint8 images as raw pixels, which need no normalisation but
    the division by ``pixel_std`` (the mean cancels in NPR). Odd sizes are trimmed to whole cells; the smallest image
    is one cell. 1,437,761 parameters, with the state-dict names of the authors' network (``conv1``, ``bn1``,
    ``layer1``, ``layer2``, ``fc1``). ``grid_size`` and ``anchor`` as in the paper's Table 7; ``backend`` as in
    :func:`npr_kernels.npr_conv2d`.
    """

    detector, in_the_paper, fitted = "npr", "NPR", False

    def __init__(
        self,
        *,
        grid_size: int = 2,
        anchor: int | str = 0,
        scale: float = 2 / 3,
        pixel_std: Sequence[float] = IMAGENET_STD,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = NPRConv2d(
            3, 64, 3, grid_size=grid_size, anchor=anchor, scale=scale, pixel_std=pixel_std, backend=backend
        )
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = resnet_stage(64, 64, blocks=3, stride=1)
        self.layer2 = resnet_stage(256, 128, blocks=4, stride=2)
        self.fc1 = nn.Linear(512, 1)
        self.activation_steps: dict[str, Tensor] = {}  # of npr_model.quantisation, for scoring in int8
        for module in self.modules():
            if isinstance(module, nn.Conv2d | NPRConv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def grid_size(self) -> int:
        return self.conv1.grid_size

    @property
    def anchor(self) -> int | str:
        return self.conv1.anchor

    @property
    def scale(self) -> float:
        return self.conv1.scale

    @property
    def pixel_std(self) -> tuple[float, ...]:
        return self.conv1.pixel_std

    @property
    def backend(self) -> str | None:
        return self.conv1.backend

    def forward(self, images: Tensor) -> Tensor:
        x = stem_forward(images, self.conv1, self.bn1)
        x = self.layer2(self.layer1(x))
        return self.fc1(x.mean((2, 3)))

    @classmethod
    def from_pretrained(cls, name_or_path: str = "preview") -> NPRDetector:
        """The network of a bundled checkpoint, or of a .safetensors or .pth file, in evaluation mode."""
        from npr_model import checkpoints

        return checkpoints.load(name_or_path).model

    def for_inference(self, dtype: torch.dtype | None = None, compile: bool = False) -> nn.Module:
        """A frozen copy that scores as fast as this machine can: see :class:`npr_model.inference.InferenceDetector`."""
        from npr_model.inference import InferenceDetector

        return InferenceDetector(self, dtype=dtype, compile=compile)

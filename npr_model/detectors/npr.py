"""NPR, then residual blocks of a ResNet: the detector of Tan et al. (CVPR 2024, section 4.1), and a faster one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from npr_kernels import NPRConv2d, stem_forward
from npr_model.detectors.base import IMAGENET_STD, DetectorNetwork
from npr_model.detectors.layers.resnet import Bottleneck, resnet_stage
from npr_model.detectors.sizes import SIZES


class NPRDetector(DetectorNetwork):
    """The paper's network: (N, 3, H, W) -> (N, 1) logits; the sigmoid of a logit is the probability of "generated".

    uint8 images are raw pixels; float images are already normalised. Odd sizes are trimmed to whole cells; the smallest
    image is one cell. 1,437,761 parameters, with the state-dict names of the authors' network: ``conv1``, ``bn1``,
    ``layer1``, ``layer2``, ``fc1``. With ``size="fast"`` there are fewer and narrower blocks behind the same stem,
    and 350,273 parameters.

    Args:
        size: "paper" or "fast", see :data:`npr_model.detectors.sizes.SIZES`.
        grid_size: Side of the NPR cells, in pixels.
        anchor: Pixel that is subtracted in each cell: 0 .. grid_size ** 2 - 1, "mean" or "max", as in the paper's Table
            7.
        scale: Factor of the NPR map.
        pixel_std: Standard deviation per channel, which raw pixels are divided by. The means cancel in NPR.
        backend: As in :func:`npr_kernels.npr_conv2d`.
    """

    detector, paper_name = "npr", "NPR"
    architecture = ("size", "grid_size", "anchor", "scale", "pixel_std")

    def __init__(
        self,
        *,
        size: str = "paper",
        grid_size: int = 2,
        anchor: int | str = 0,
        scale: float = 2 / 3,
        pixel_std: Sequence[float] = IMAGENET_STD,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"size must be {' or '.join(SIZES)}, not {size!r}")
        self.size = size
        self.conv1 = NPRConv2d(
            3, 64, 3, grid_size=grid_size, anchor=anchor, scale=scale, pixel_std=pixel_std, backend=backend
        )
        self.bn1 = nn.BatchNorm2d(64)
        side, (first, second) = SIZES[size]
        self.pool = nn.Identity() if side == 1 else nn.AvgPool2d(side, ceil_mode=True)
        self.layer1 = resnet_stage(64, first.width, first.blocks, first.stride, first.channels)
        self.layer2 = resnet_stage(first.channels, second.width, second.blocks, second.stride, second.channels)
        self.fc1 = nn.Linear(second.channels, 1)
        self.activation_steps: Mapping[str, Tensor] = {}  # measured by npr_model.inference.quantisation
        for module in self.modules():
            if isinstance(module, nn.Conv2d | NPRConv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def grid_size(self) -> int:  # type: ignore[override]  # cannot be set
        return self.conv1.grid_size

    @property
    def anchor(self) -> int | str:
        return self.conv1.anchor

    @property
    def scale(self) -> float:
        return cast(float, self.conv1.scale)  # one for all channels

    @property
    def pixel_std(self) -> tuple[float, ...] | None:
        return self.conv1.pixel_std

    @property
    def backend(self) -> str | None:
        return self.conv1.backend

    @backend.setter
    def backend(self, name: str | None) -> None:
        self.conv1.backend = name

    def set_activation_steps(self, steps: Mapping[str, Tensor]) -> None:
        check_steps(self, steps)
        self.activation_steps = steps

    def forward(self, images: Tensor) -> Tensor:
        return self.fc1(self.maps(images).mean((2, 3)))

    def maps(self, images: Tensor) -> Tensor:
        """Return the output of the last block, whose averages the last layer sees: (N, C, H', W')."""
        return self.layer2(self.layer1(self.pool(stem_forward(images, self.conv1, self.bn1))))


def blocks(detector: NPRDetector) -> dict[str, Bottleneck]:
    """Return the residual blocks in order, by their names in the state dict."""
    stages = {"layer1": detector.layer1, "layer2": detector.layer2}
    return {f"{name}.{i}": cast(Bottleneck, block) for name, stage in stages.items() for i, block in enumerate(stage)}


def expected_steps(detector: NPRDetector) -> dict[str, int]:
    """Return the names of the quantisation scales (``BLOCK.first``, ``.second``, ``.out``) and their channel counts.

    A network that averages the stem's output has ``pool.out``, too, and its first block is quantised like the others.
    """
    names = list(blocks(detector))
    averages = isinstance(detector.pool, nn.AvgPool2d)
    sizes = {"pool.out": detector.conv1.out_channels} if averages else {}
    for name, block in blocks(detector).items():
        if averages or name != names[0]:
            sizes |= {f"{name}.first": block.conv1.out_channels, f"{name}.second": block.conv2.out_channels}
        if name != names[-1]:
            sizes[f"{name}.out"] = block.conv3.out_channels
    return sizes


def check_steps(detector: NPRDetector, steps: Mapping[str, Tensor]) -> None:
    """Raise ValueError if the quantisation scales do not fit this network or are not positive and finite."""
    expected = expected_steps(detector)
    if steps.keys() != expected.keys():
        raise ValueError(f"activation steps of {', '.join(sorted(steps.keys() ^ expected.keys())[:3])}")
    for name, step in steps.items():
        fits = step.shape == (expected[name],) and step.dtype == torch.float32
        if not (fits and step.isfinite().all() and step.min() > 0):
            raise ValueError(f"activation steps {name} are not {expected[name]} positive float32 numbers")

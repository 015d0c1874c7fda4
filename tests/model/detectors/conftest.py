from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from npr_model.detectors import cnndetection
from npr_model.detectors.layers import xception
from npr_model.detectors.layers.resnet import resnet_stage
from tests.model.detectors.small import shrink_efficientnet


@pytest.fixture(autouse=True)
def every_encoder_is_small(small_encoder: Path) -> None:
    """No test of a detector needs the package with the encoder."""


@pytest.fixture
def narrow_resnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage of a whole ResNet-50 is one narrow block, which trains in seconds instead of minutes."""

    def stage(in_channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        return resnet_stage(in_channels, width // 16, 1, stride, out_channels=4 * width)

    monkeypatch.setattr(cnndetection, "resnet_stage", stage)


@pytest.fixture
def narrow_xception(monkeypatch: pytest.MonkeyPatch) -> None:
    """Xception has all its blocks, and the wide ones behind the second have few channels."""

    def narrow(plan: xception.Plan) -> xception.Plan:
        return plan._replace(widths=tuple(width if width <= 256 else width // 32 for width in plan.widths))

    monkeypatch.setattr(xception, "BLOCKS", tuple(map(narrow, xception.BLOCKS)))
    monkeypatch.setattr(xception, "TAIL", (32, 48))


@pytest.fixture
def small_efficientnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """EfficientNet-B4 is two narrow blocks, and GANDetection has three of them and small patches."""
    shrink_efficientnet(monkeypatch.setattr)

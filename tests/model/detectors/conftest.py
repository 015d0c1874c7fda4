from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from npr_model.detectors import cnndetection
from npr_model.detectors import encoder as encoders
from npr_model.detectors.layers.resnet import resnet_stage
from tests.model.detectors.encoders import write
from tests.model.detectors.small import shrink_efficientnet


@pytest.fixture(autouse=True)
def small_encoder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The detector ojha uses a small random encoder, which needs no package."""
    path = write(tmp_path_factory.mktemp("encoder") / "small.onnx")
    monkeypatch.setenv(encoders.FILE_VARIABLE, str(path))
    return path


@pytest.fixture
def narrow_resnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage of a whole ResNet-50 is one narrow block, which trains in seconds instead of minutes."""

    def stage(in_channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        return resnet_stage(in_channels, width // 16, 1, stride, out_channels=4 * width)

    monkeypatch.setattr(cnndetection, "resnet_stage", stage)


@pytest.fixture
def small_efficientnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """EfficientNet-B4 is two narrow blocks, and GANDetection has three of them and small patches."""
    shrink_efficientnet(monkeypatch.setattr)

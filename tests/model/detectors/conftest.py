from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from npr_model.detectors import cnndetection, gandetection
from npr_model.detectors import encoder as encoders
from npr_model.detectors.layers import efficientnet, xception
from npr_model.detectors.layers.resnet import resnet_stage
from tests.model.detectors.encoders import write


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
def narrow_xception(monkeypatch: pytest.MonkeyPatch) -> None:
    """Xception has all its blocks, and the wide ones behind the second have few channels."""

    def narrow(plan: xception.Plan) -> xception.Plan:
        return plan._replace(widths=tuple(width if width <= 256 else width // 32 for width in plan.widths))

    monkeypatch.setattr(xception, "BLOCKS", tuple(map(narrow, xception.BLOCKS)))
    monkeypatch.setattr(xception, "TAIL", (32, 48))


@pytest.fixture
def small_efficientnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """EfficientNet-B4 is two narrow blocks, and GANDetection has three of them and small patches."""
    monkeypatch.setattr(gandetection, "MEMBERS", 3)
    monkeypatch.setattr(gandetection, "PATCH", 16)
    monkeypatch.setattr(
        efficientnet,
        "B4",
        {
            "width_coefficient": 0.5,
            "depth_coefficient": 1.0,
            "hidden_dim": 640,
            "batch_norm_momentum": 0.1,
            "num_block_repeats": [1, 1],
            "in_channels": [32, 16],
            "out_channels": [16, 24],
            "kernel_sizes": [3, 3],
            "strides": [1, 2],
            "expand_ratios": [1, 4],
        },
    )

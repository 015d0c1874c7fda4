from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from npr_model import checkpoints
from npr_model.checkpoints import Metadata
from npr_model.detectors import cnndetection
from npr_model.detectors import encoder as encoders
from npr_model.detectors.layers import xception
from npr_model.detectors.layers.resnet import resnet_stage
from npr_model.detectors.ojha import Ojha
from npr_model.detectors.pair import Pair
from npr_model.imaging.views import View
from tests.model.conftest import make_detector
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


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A pair with its parts beside it."""
    clip = Ojha()
    clip.fit(np.random.default_rng(0).normal(size=(20, clip.width)), np.arange(20) % 2)
    clip.fc.weight.mul_(1000)  # the embeddings of all images of noise are similar
    folder = tmp_path / "weights"
    folder.mkdir()
    parts = []
    for name, model in {"traces": make_detector(), "content": clip.eval()}.items():
        checkpoints.save(folder / f"{name}.safetensors", model, Metadata(name=name))
        parts.append(checkpoints.load(folder / f"{name}.safetensors"))
    pair = Pair(*(part.model for part in parts), *(part.model_id for part in parts), detail=256)
    pair.combine.weight.copy_(torch.tensor([[0.3, 2.0]]))
    pair.combine.bias.fill_(-0.5)
    checkpoints.save(folder / "both.safetensors", pair, Metadata(name="both", view=View("sample", 16, 2)))
    return folder / "both.safetensors"

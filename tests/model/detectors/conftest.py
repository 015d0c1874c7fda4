from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from npr_model import checkpoints
from npr_model.checkpoints import Metadata
from npr_model.detectors import cnndetection, gandetection
from npr_model.detectors import encoder as encoders
from npr_model.detectors.layers import efficientnet, xception
from npr_model.detectors.layers.resnet import resnet_stage
from npr_model.detectors.ojha import Ojha
from npr_model.detectors.pair import Pair
from npr_model.imaging.views import View
from tests.model.conftest import make_detector
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

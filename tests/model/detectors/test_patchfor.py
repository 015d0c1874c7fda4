"""Patchfor: what its patches see at each depth, how their logits are joined, and where the depth is stored."""

from __future__ import annotations

import inspect
import json
import re

import pytest
import torch
from torch import nn

from npr_model import checkpoints
from npr_model.checkpoints import CheckpointError, Metadata
from npr_model.detectors.depths import DEFAULT_DEPTH, DEPTHS
from npr_model.detectors.patchfor import Patchfor, logit_of_mean
from npr_model.errors import InputError
from npr_model.training import loop
from npr_model.training.config import TrainConfig
from npr_model.training.distributed import Process
from npr_model.training.trainer import Trainer

_ROW = re.compile(r"^(\w+-\w+) +(\d+) x \2 +(\d+) +([\d,]+)$", re.MULTILINE)
TABLE = {
    depth: (int(patch), int(apart), count) for depth, patch, apart, count in _ROW.findall(inspect.getdoc(Patchfor))
}


def test_the_table_names_all_depths():
    assert tuple(TABLE) == DEPTHS and DEFAULT_DEPTH in DEPTHS


@pytest.mark.parametrize("depth", DEPTHS)
def test_parameters(depth):
    with torch.device("meta"):
        model = Patchfor(depth)
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,}" == TABLE[depth][2]


@pytest.mark.parametrize("depth", DEPTHS)
def test_patches(depth, narrow_xception):
    """The pixels with a gradient, in a network that lets every gradient through."""
    patch, apart, _ = TABLE[depth]
    model = Patchfor(depth).eval()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.01)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(3, child.stride, padding=1))
    height = patch + 4 * apart
    pixels = torch.ones(1, 3, height, 9, dtype=torch.float64, requires_grad=True)
    maps = model.double().backbone(pixels)
    middle = maps.shape[2] // 2
    rows = [
        torch.autograd.grad(maps[0, 0, at].sum(), pixels, retain_graph=True)[0][0, 0].sum(1)
        for at in (middle, middle + 1)
    ]
    here, below = (row.nonzero().flatten() for row in rows)
    assert here[-1] - here[0] + 1 == patch and below[0] - here[0] == apart


@pytest.mark.parametrize("depth", ["resnet18-layer2", "xception-block2"])
def test_an_images_probability_is_the_mean_of_its_patches(depth, narrow_xception):
    torch.manual_seed(0)
    model = Patchfor(depth).double().eval()
    images = torch.randn(2, 3, 64, 80, dtype=torch.float64)
    patches = model.patches(images)
    assert patches.shape[1] > 40
    torch.testing.assert_close(model(images).sigmoid(), patches.sigmoid().mean(1, keepdim=True))
    torch.testing.assert_close(model.train()(images).shape, patches.shape)  # each patch is trained


def test_the_logit_of_a_certain_image_is_finite():
    logits = torch.tensor([[200.0, 300.0], [-200.0, -300.0], [-40.0, 40.0], [1.0, 1.0]])
    expected = torch.tensor([[200.7], [-200.7], [0.0], [1.0]])
    torch.testing.assert_close(logit_of_mean(logits), expected, rtol=0, atol=0.01)


def test_a_checkpoint_stores_the_depth(tmp_path, labelled):
    path = tmp_path / "patches.safetensors"
    config = TrainConfig().overridden(["detector=patchfor", "depth=xception-block1", "device=cpu"])
    model = Trainer(config, Process(torch.device("cpu"))).network.eval()
    checkpoints.save(path, model, Metadata(name="patches"))
    loaded = checkpoints.load(path).model
    assert loaded.depth == "xception-block1"
    pixels = torch.randint(256, (2, 3, 30, 40), dtype=torch.uint8)
    torch.testing.assert_close(loaded(pixels), model(pixels))
    root = labelled({"train/0_real": 4, "train/1_fake": 4})
    other = TrainConfig(folders=(str(root / "train"),), detector="patchfor", start=str(path), device="cpu")
    with pytest.raises(InputError, match="has depth xception-block1, not xception-block2: set depth=xception-block1"):
        loop.train(other, tmp_path / "run")


def test_a_checkpoint_with_an_unknown_depth_is_refused(tmp_path):
    path = tmp_path / "patches.safetensors"
    model = Patchfor("xception-block1")
    model.depth = "xception-block9"
    checkpoints.save(path, model, Metadata())
    with pytest.raises(
        CheckpointError, match=r"bad architecture in its metadata: depth must be one of .*xception-block9"
    ):
        checkpoints.load(path)


def test_only_the_recipe_of_patchfor_has_a_depth():
    assert "depth" not in json.dumps(TrainConfig().recipe())
    assert TrainConfig(detector="patchfor").recipe()["depth"] == DEFAULT_DEPTH

"""EfficientNet-B4 from transformers: its initial weights, small images, and the message if it is missing."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from npr_model import checkpoints, cli
from npr_model.checkpoints import Metadata
from npr_model.detectors import detector_class
from npr_model.detectors.layers.efficientnet import EfficientNet
from npr_model.detectors.layers.mirroring import mirrored
from npr_model.errors import InputError

HINT = "EfficientNet-B4 needs transformers: pip install 'npr-kernels[detectors]'"


def test_the_signal_reaches_the_end_of_the_whole_network():
    torch.manual_seed(0)
    model = EfficientNet()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.weight.eq(1).all() and norm.momentum == 0.1 for norm in norms)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = model(images)
        assert logits.shape == (2, 1) and logits.isfinite().all() and (logits[0] - logits[1]).abs() > 1e-3
        assert model.eval()(images[:, :, :1, :3]).shape == (2, 1)


def test_small_images_are_mirrored():
    row = torch.tensor([1.0, 2.0, 3.0]).expand(1, 3, 1, 3)
    assert mirrored(row, 8)[0, 0].tolist() == [[1, 2, 3, 3, 2, 1, 1, 2]] * 8
    assert mirrored(row, 3).shape == (1, 3, 3, 3) and mirrored(row, 1) is row


def test_without_transformers_one_line_says_what_to_install(
    small_efficientnet, labelled, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "blends.safetensors"
    checkpoints.save(path, detector_class("selfbland")(), Metadata(name="blends"))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError) as caught:
        checkpoints.load(path)
    assert HINT in str(caught.value) and "\n" not in str(caught.value)
    root = labelled({"train/0_real": 6, "train/1_fake": 6})
    arguments = ["train", str(root / "train"), "-o", str(tmp_path / "run"), "--set", "detector=selfbland"]
    assert cli.main([*arguments, "--set", "batch_size=4", "--set", "device=cpu"]) == 2
    assert capsys.readouterr().err.strip().splitlines() == [f"npr: error: {HINT}"]
    assert not (tmp_path / "run").exists()

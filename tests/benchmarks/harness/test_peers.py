"""Peers compute what our operators compute."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks.harness import inputs, peers
from benchmarks.harness.runner import Unavailable
from npr_kernels import reference
from npr_kernels.testing import error
from npr_model.detectors.npr import NPRDetector


@pytest.mark.parametrize("anchor", [0, 1, 2, 3, "mean"])
@pytest.mark.parametrize("size", [(2, 2), (8, 8), (7, 9), (13, 18), (6, 31)])
def test_composed_convolution_is_exact(anchor, size):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    pixels = torch.randint(0, 256, image.shape, generator=generator, dtype=torch.uint8)
    weight = torch.randn(8, 3, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(8, generator=generator, dtype=torch.float64)
    for x, scale in ((image, (2 / 3,)), (pixels, (0.1, 0.2, 0.3))):
        expected = reference.npr_conv2d(x, weight, bias, anchor=anchor, scale=scale)
        composed = peers.composed_conv2d(x, peers.compose(weight, anchor, scale), bias)
        assert error(composed, expected) < 1e-13
        grad = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
        gradients = [torch.autograd.grad(y, weight, grad)[0] for y in (composed, expected)]
        assert error(*gradients) < 1e-13


def test_authors_layers_are_the_detector():
    detector, pixels = inputs.random_detector(), inputs.random_pixels(2, 33)
    with torch.no_grad():
        truth = NPRDetector().double().eval()
        truth.load_state_dict(detector.state_dict())
        assert error(peers.AuthorsDetector(detector, torch.float64)(pixels), truth(pixels)) < 1e-12
        assert error(peers.AuthorsDetector(detector)(pixels), truth(pixels)) < 1e-5


def test_missing_engines_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(Unavailable, match="pip install --group benchmark"):
        peers.openvino(b"", torch.zeros(1), "f32")

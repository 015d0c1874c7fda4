"""The layers: what they compute in each mode, and the replacement of a network's first convolution."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import npr_kernels
from npr_kernels import reference
from npr_kernels.testing import Case, error

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_conv_of_bytes_equals_conv_of_the_normalised_image():
    conv = npr_kernels.NPRConv2d(3, 8, pixel_std=STD, bias=True)
    image = torch.randint(0, 256, (2, 3, 16, 18), dtype=torch.uint8)
    normalised = (image / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    assert error(conv(image), conv(normalised)) < 1e-5


def test_conv_initialises_and_prints_like_conv2d():
    torch.manual_seed(3)
    ours = npr_kernels.NPRConv2d(3, 8, 5, bias=True)
    torch.manual_seed(3)
    theirs = nn.Conv2d(3, 8, 5, bias=True)
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
    assert "grid_size=2, anchor=0" in repr(ours)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_stem_equals_its_layers(dtype, training):
    stem = npr_kernels.NPRStem(3, 16, pixel_std=STD, bias=True)
    nn.init.normal_(stem.bn.weight)
    nn.init.normal_(stem.bn.bias)
    stem.bn.running_mean.normal_()
    stem.bn.running_var.uniform_(0.5, 2)
    stem.train(training)
    layers = copy.deepcopy(stem)
    x, *_ = Case(dtype=dtype, height=21, width=30).tensors()
    options = {k: v for k, v in stem.conv.options(x).items() if k not in ("edge", "backend")}
    options["scale"] = options["scale"] if dtype == torch.uint8 else (options["scale"],)
    y = reference.npr_conv2d(x, layers.conv.weight, layers.conv.bias, **options)
    expected = F.max_pool2d(F.relu(layers.bn(y)), 3, 2, 1)
    assert error(stem(x), expected) < 1e-5
    assert error(stem.bn.running_mean, layers.bn.running_mean) < 1e-5
    assert error(stem.bn.running_var, layers.bn.running_var) < 1e-5


def test_modules_can_be_copied_pickled_and_cast():
    stem = npr_kernels.NPRStem(3, 4).eval()
    x, *_ = Case().tensors()
    assert torch.equal(pickle.loads(pickle.dumps(stem))(x), stem(x))
    assert copy.deepcopy(stem).bfloat16()(x.bfloat16()).dtype == torch.bfloat16


class ResNetLike(nn.Module):
    """A 7x7 stride-2 convolution first, deep in a sub-module, as ResNets have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 12, 7, 2, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.body = nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.body(x)).mean((2, 3)))


class PatchTransformer(nn.Module):
    """Non-overlapping 4x4 patches as tokens, as vision transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.encoder(self.patches(x).flatten(2).mT).mean(1))


def mobile_like() -> nn.Module:
    """A 3x3 convolution with padding "same", then depthwise ones."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same"), nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.Hardswish(), nn.Conv2d(8, 2, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


@pytest.mark.parametrize("make", [ResNetLike, PatchTransformer, mobile_like])
@pytest.mark.parametrize(("grid_size", "anchor"), [(2, 0), (2, "max"), (4, 5)])
def test_replace_first_conv(make, grid_size, anchor):
    """The new network on an image equals the old one on the image's NPR map, and it trains."""
    model = make().eval()
    replaced = npr_kernels.replace_first_conv(model, grid_size=grid_size, anchor=anchor, scale=0.5)
    assert not any(isinstance(m, npr_kernels.NPRConv2d) for m in model.modules())
    assert list(replaced.state_dict()) == list(model.state_dict())
    x = torch.randn(2, 3, 32, 48)
    assert error(replaced(x), model(0.5 * reference.npr(x, grid_size, anchor))) < 1e-5
    replaced.train()(x).sum().backward()
    assert all(p.grad is not None for p in replaced.parameters())


def test_replace_first_conv_when_the_model_is_one():
    conv = nn.Conv2d(3, 4, 3, 2, 1)
    assert isinstance(npr_kernels.replace_first_conv(conv), npr_kernels.NPRConv2d)

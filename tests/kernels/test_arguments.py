"""Bad input: one clear message that names the argument and its value, before anything is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import npr_kernels

IMAGE = torch.zeros(1, 3, 8, 8)
WEIGHT = torch.zeros(4, 3, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"grid_size": 1}, ValueError, r"grid_size must be at least 2 .*, got 1"),
        ({"grid_size": 2.0}, TypeError, r"grid_size must be an int, got 2.0"),
        ({"anchor": 4}, ValueError, r"anchor must be in 0 .. 3 .*, got 4"),
        ({"anchor": -1}, ValueError, r"anchor must be in 0 .. 3 .*, got -1"),
        ({"anchor": "median"}, ValueError, r"anchor must be an index, \"mean\" or \"max\", got 'median'"),
        ({"anchor": 1.5}, TypeError, r"anchor must be an index"),
        ({"edge": "pad"}, ValueError, r"edge must be \"trim\" or \"error\", got 'pad'"),
        (
            {"x": torch.zeros(1, 3, 9, 8), "edge": "error"},
            ValueError,
            r"x is 9x8 pixels, not a multiple of grid_size 2",
        ),
        ({"x": torch.zeros(1, 3, 1, 8)}, ValueError, r"x is 1x8 pixels, smaller than one cell of 2x2"),
        ({"x": torch.zeros(1, 3, 3, 3), "grid_size": 4}, ValueError, r"x is 3x3 pixels, smaller than one cell of 4x4"),
        ({"x": torch.zeros(3, 8, 8)}, ValueError, r"x must have the shape \(N, C, H, W\), got \(3, 8, 8\)"),
        ({"x": IMAGE.int()}, TypeError, r"x must be uint8 .* or floating point of at least 16 bits, got torch.int32"),
        ({"x": IMAGE.numpy()}, TypeError, r"x must be a tensor, got ndarray"),
        ({"x": torch.zeros(1, 4, 8, 8)}, ValueError, r"weight expects 3 channels, x has 4"),
        ({"x": IMAGE.double()}, TypeError, r"x is torch.float64 and weight is torch.float32"),
        ({"weight": WEIGHT.to("meta")}, ValueError, r"weight is on meta, x on cpu"),
        ({"weight": WEIGHT[0]}, ValueError, r"weight must have the shape \(O, C, KH, KW\)"),
        ({"weight": WEIGHT.int()}, TypeError, r"weight must be floating point, got torch.int32"),
        ({"weight": torch.zeros(0, 3, 3, 3)}, ValueError, r"weight must not be empty"),
        (
            {"weight": torch.zeros(4, 3, 11, 3)},
            ValueError,
            r"weight's kernel of 11x3 does not fit into an NPR map of 8x8",
        ),
        ({"bias": torch.zeros(3)}, ValueError, r"bias must have the shape \(4,\), got \(3,\)"),
        ({"bias": torch.zeros(4).half()}, TypeError, r"bias is torch.float16 and weight is torch.float32"),
        ({"bias": torch.zeros(4, device="meta")}, ValueError, r"bias is on meta, x on cpu"),
        ({"stride": 0}, ValueError, r"stride must be an int or a pair of ints of at least 1, got 0"),
        ({"stride": (1, 2, 3)}, ValueError, r"stride must be an int or a pair"),
        ({"padding": -1}, ValueError, r"padding must be an int or a pair of ints of at least 0, got -1"),
        ({"scale": (1.0, 2.0)}, ValueError, r"scale must be one factor or one per channel \(3\), got 2"),
        ({"scale": float("nan")}, ValueError, r"scale must be finite, got nan"),
        ({"scale": torch.ones(3)}, TypeError, r"scale must be a float or a sequence of floats, got a tensor"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("operator", [npr_kernels.npr_conv2d, npr_kernels.npr_stem])
def test_operators_refuse(operator, arguments, error, message):
    with pytest.raises(error, match=message):
        operator(**{"x": IMAGE, "weight": WEIGHT, **arguments})


def test_npr_refuses_too():
    with pytest.raises(ValueError, match="grid_size must be at least 2"):
        npr_kernels.npr(IMAGE, 1)
    with pytest.raises(ValueError, match="x is 1x1 pixels, smaller than one cell"):
        npr_kernels.npr(torch.zeros(1, 3, 1, 1, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid_size": 1}, "grid_size must be at least 2"),
        ({"anchor": 9}, "anchor must be in 0 .. 3"),
        ({"edge": "reflect"}, "edge must be"),
        ({"kernel_size": 0}, "kernel_size must be"),
        ({"pixel_std": (1.0, 0.0, 1.0)}, "pixel_std must be 3 positive numbers"),
        ({"pixel_std": (1.0,)}, "pixel_std must be 3 positive numbers"),
    ],
)
def test_modules_refuse_when_made(arguments, message):
    for module in (npr_kernels.NPRConv2d, npr_kernels.NPRStem):
        with pytest.raises(ValueError, match=message):
            module(3, 8, **arguments)


def test_replace_first_conv_refuses():
    for layer, message in (
        (nn.Linear(3, 3), "Linear has no Conv2d to replace"),
        (nn.Conv2d(4, 4, 3, groups=2), "has groups=2"),
        (nn.Conv2d(3, 4, 3, dilation=2), r"has dilation=\(2, 2\)"),
        (nn.Conv2d(3, 4, 3, padding_mode="reflect", padding=1), "has padding_mode='reflect'"),
        (nn.Conv2d(3, 4, 2, padding="same"), "even kernel"),
    ):
        with pytest.raises(ValueError, match=message):
            npr_kernels.replace_first_conv(layer)


def test_fold_batch_norm_needs_statistics():
    with pytest.raises(ValueError, match="keeps no running statistics"):
        npr_kernels.fold_batch_norm(WEIGHT, None, nn.BatchNorm2d(4, track_running_stats=False))


@pytest.mark.parametrize(
    "change", [{"weight": WEIGHT[:, :2]}, {"stride": [0, 1]}, {"anchor": 7}, {"scale": [1.0, 2.0]}]
)
def test_raw_operators_guard_the_memory(change):
    """torch.ops can be called past the Python checks."""
    if npr_kernels.available_backends()["cpu"]:
        pytest.skip("needs the compiled extension")
    arguments = {
        "x": IMAGE, "weight": WEIGHT, "bias": None, "stride": [2, 2], "padding": [1, 1], "grid_size": 2, "anchor": 0,
        "scale": [1.0], "dtype": torch.float32, **change,
    }  # fmt: skip
    with pytest.raises(RuntimeError):
        torch.ops.npr_kernels.npr_stem(**arguments)


def test_integers_of_any_kind():
    conv = npr_kernels.NPRConv2d(
        3, 8, np.int64(3), stride=np.int32(2), padding=(np.uint8(1), 1), grid_size=np.int64(2), anchor=np.int16(1)
    )
    assert conv.stride == (2, 2) and type(conv.grid_size) is type(conv.anchor) is int
    x = torch.rand(1, 3, 8, 8)
    expected = npr_kernels.npr_conv2d(x, conv.weight, anchor=1, scale=0.5)
    options = {"stride": np.int64(2), "anchor": np.int64(1), "scale": np.float32(0.5)}
    assert torch.equal(npr_kernels.npr_conv2d(x, conv.weight, **options), expected)
    assert torch.equal(npr_kernels.npr_conv2d(x, conv.weight, anchor=1, scale=np.full(3, 0.5)), expected)
    assert torch.equal(npr_kernels.npr(x, np.int64(2), np.int8(3)), npr_kernels.npr(x, 2, 3))
    for stride in (True, 2.0, "2", (1, 2, 3), None):
        with pytest.raises(ValueError, match="stride must be an int or a pair of ints"):
            npr_kernels.npr_conv2d(x, conv.weight, stride=stride)


@pytest.mark.parametrize("x", [[1, 2], None, np.zeros((1, 3, 8, 8))])
def test_what_is_no_tensor_is_refused(x):
    conv = npr_kernels.NPRConv2d(3, 8)
    for function in (npr_kernels.npr, conv, npr_kernels.NPRStem(3, 8)):
        with pytest.raises(TypeError, match="x must be a tensor, got"):
            function(x)
    for weight in (None, conv.weight.detach().numpy()):
        with pytest.raises(TypeError, match="weight must be a tensor, got"):
            npr_kernels.npr_conv2d(torch.rand(1, 3, 8, 8), weight)


def test_sparse_and_eight_bit_images_are_refused():
    x = torch.rand(1, 3, 8, 8)
    with pytest.raises(TypeError, match=r"dense tensor, got torch\.sparse_coo"):
        npr_kernels.npr(x.to_sparse())
    with pytest.raises(TypeError, match=r"at least 16 bits, got torch\.float8_e4m3fn"):
        npr_kernels.npr(x.to(torch.float8_e4m3fn))

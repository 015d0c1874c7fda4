"""The specification against loops written straight from the paper, and against the authors' own formulation."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from npr_kernels import reference
from npr_kernels.testing import GRIDS, Case


def npr_by_loops(x: torch.Tensor, grid_size: int, anchor: int | str) -> torch.Tensor:
    """Equation 4, pixel by pixel: in every cell W = {w_1 .. w_(l*l)} each w_i becomes w_i - w_j, j = anchor + 1."""
    n, channels, height, width = x.shape
    rows, columns = height // grid_size, width // grid_size
    out = torch.empty(n, channels, rows * grid_size, columns * grid_size, dtype=x.dtype)
    for image, channel, row, column in itertools.product(range(n), range(channels), range(rows), range(columns)):
        positions = [(row * grid_size + i, column * grid_size + j) for i in range(grid_size) for j in range(grid_size)]
        cell = [x[image, channel, i, j].item() for i, j in positions]
        w_j = {"mean": sum(cell) / len(cell), "max": max(cell)}[anchor] if isinstance(anchor, str) else cell[anchor]
        for w_i, (i, j) in zip(cell, positions, strict=True):
            out[image, channel, i, j] = w_i - w_j
    return out


@pytest.mark.parametrize(("grid_size", "anchor"), [*GRIDS, (5, 24), (5, "mean")])
def test_npr_equals_equation_4(grid_size, anchor):
    x, *_ = Case(dtype=torch.float64, height=11, width=13).tensors()
    torch.testing.assert_close(reference.npr(x, grid_size, anchor), npr_by_loops(x, grid_size, anchor))


@settings(max_examples=60, deadline=None)
@given(
    grid=st.sampled_from(GRIDS),
    size=st.tuples(*[st.integers(4, 19)] * 2),
    layout=st.sampled_from(["contiguous", "channels_last", "sliced", "permuted"]),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.bfloat16]),
)
def test_npr_of_any_shape(grid, size, layout, dtype):
    x, *_ = Case(dtype=dtype, height=size[0], width=size[1], layout=layout, batch=1).tensors()
    truth = npr_by_loops(x.double(), *grid)
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(reference.npr(x, *grid).double(), truth, atol=tolerance, rtol=tolerance)


def test_differences_of_bytes_are_exact_in_every_type():
    x, *_ = Case(dtype=torch.uint8, height=64, width=64).tensors()
    truth = reference.npr(x.double())
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(reference.npr(x, dtype=dtype).double(), truth)


def test_authors_formulation():
    """The published code subtracts the image scaled down and up again by nearest neighbour, and multiplies by 2/3."""
    x, weight, _ = Case(dtype=torch.float64).tensors()
    down = F.interpolate(x, scale_factor=0.5, mode="nearest", recompute_scale_factor=True)
    up = F.interpolate(down, scale_factor=2.0, mode="nearest", recompute_scale_factor=True)
    expected = F.conv2d((x - up) * 2.0 / 3.0, weight, stride=2, padding=1)
    torch.testing.assert_close(reference.npr_conv2d(x, weight), expected)


def test_bytes_with_a_factor_per_channel_equal_normalised_images():
    x, weight, _ = Case(dtype=torch.uint8).tensors()
    mean, std = torch.tensor([0.5, 0.4, 0.3]).double(), torch.tensor([0.2, 0.25, 0.3]).double()
    normalised = (x.double() / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    factors = [2 / 3 / (255 * s) for s in std.tolist()]
    torch.testing.assert_close(
        reference.npr_conv2d(x, weight.double(), scale=factors), reference.npr_conv2d(normalised, weight.double())
    )

"""Launches Triton kernels on the current stream of the tensors' device.

Each kernel has a fixed tile size for each kind of arithmetic. There is no autotuning. So a result depends only on the
call and the device, and the first call compiles one program. The tile sizes come from counting machine instructions.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, NamedTuple

import torch
import triton

from npr_kernels.triton_runtime import GRID_LIMIT

# New values of these arguments cause no new compilation, because images come in many sizes and a compilation takes
# seconds. If a kernel is faster for certain strides, a constant says so (Geometry.layout, ALIGNED, CHANNELS_LAST).
SIZES = (
    *(f"{name}stride_{dimension}" for name in ("", "grad_", "out_") for dimension in "nochw"),
    *(f"{name}{side}" for name in ("", "out_", "pooled_") for side in ("height", "width")),
    *("cell_rows", "cell_columns", "tiles", "programs"),
)
kernel = functools.partial(triton.jit, do_not_specialize=SIZES)


class Tile(NamedTuple):
    """Numbers of positions and output channels of a tile, and of warps of a program."""

    positions: int
    outputs: int
    warps: int


def launch(
    kernel: Any, device: torch.device, warps: int, grid: tuple[int, ...], *arguments: Any, **constants: Any
) -> None:
    """Run ``kernel`` on ``device`` with ``warps`` warps per program. Raises ValueError if the grid is too large."""
    if grid[0] > GRID_LIMIT:
        raise ValueError(f"x is too large for one launch: {grid[0]} tiles, at most {GRID_LIMIT} are possible")
    # No software pipelining, because it would copy single words to shared memory. Resident programs hide latency.
    options = {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True}
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*arguments, **constants, **options)

"""Launches: on the tensors' device and its current stream.

Each kernel has one tile for each kind of arithmetic, chosen by counting the instructions of the machine code. Nothing
is timed: the bits of a result depend on the call and the device alone, and the first call compiles one program.
"""

from __future__ import annotations

import contextlib
import functools
import os
from typing import NamedTuple

import torch
import triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GRID_LIMIT = 2**31 - 1

# Arguments for whose values nothing is compiled anew: images come in many sizes, and a compilation takes seconds. What
# a kernel gains from knowing a stride, its constants say (Geometry.layout, ALIGNED, CHANNELS_LAST).
SIZES = (
    *(f"{name}stride_{dimension}" for name in ("", "grad_", "out_") for dimension in "nochw"),
    *(f"{name}{side}" for name in ("", "out_", "pooled_") for side in ("height", "width")),
    *("cell_rows", "cell_columns", "tiles", "programs"),
)
kernel = functools.partial(triton.jit, do_not_specialize=SIZES)


class Tile(NamedTuple):
    """Positions of a tile, output channels of a tile, warps of a program."""

    positions: int
    outputs: int
    warps: int


def launch(kernel, device: torch.device, warps: int, grid: tuple[int, ...], *arguments, **constants) -> None:
    """Run ``kernel`` in programs of ``warps`` warps."""
    if grid[0] > GRID_LIMIT:
        raise ValueError(f"x is too large for one launch: {grid[0]} tiles, at most {GRID_LIMIT} are possible")
    # No software pipelining: it would stage single words through shared memory. Resident programs hide latency.
    options = {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True}
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*arguments, **constants, **options)

"""Adds the partial sums of programs in float64 and in a fixed order, and applies the scale of the NPR map.

There are a few hundred partial sums with some thousand numbers each. Reading these few MiB from the L2 cache takes one
or two microseconds.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from npr_kernels.backends.triton.launch import Tile, kernel, launch
from npr_kernels.backends.triton.patches import Geometry, channel_factor
from npr_kernels.backends.triton.specialisation import is_plain, output_block

WARPS = 2112  # warps of a sum over the batch on every device: 16 per multiprocessor of an H100 or H200


@kernel
def partial_sums_kernel(
    partials,  # (programs, rows, columns), contiguous
    out,  # (rows, K), contiguous
    last,  # (rows,): the sums of column K, with LAST
    programs,
    partial_rows,  # number of rows of out, or one more
    GEOMETRY: tl.constexpr,
    SQUARE: tl.constexpr,  # whether rows are also patch elements, which are scaled
    LAST: tl.constexpr,  # whether there are K + 1 columns instead of K
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Add a block of columns of one row."""
    ELEMENTS: tl.constexpr = GEOMETRY.channels * GEOMETRY.kernel_height * GEOMETRY.kernel_width
    TAPS: tl.constexpr = GEOMETRY.kernel_height * GEOMETRY.kernel_width
    COLUMNS: tl.constexpr = ELEMENTS + 1 if LAST else ELEMENTS
    row = tl.program_id(0)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_K,), tl.float64)
    for first in range(0, programs, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        offsets = ((p.to(tl.int64) * partial_rows + row) * COLUMNS)[:, None] + k[None, :]
        there = (p < programs)[:, None] & (k < COLUMNS)[None, :]
        total += tl.sum(tl.load(partials + offsets, mask=there, other=0.0).to(tl.float64), 0)
    factor = channel_factor(k // TAPS, GEOMETRY, tl.float64) * GEOMETRY.scale
    total = tl.where(k < ELEMENTS, total * factor, total)
    if SQUARE:
        own = channel_factor(row // TAPS + tl.zeros((BLOCK_K,), tl.int32), GEOMETRY, tl.float64) * GEOMETRY.scale
        total = total * own
    tl.store(out + (row.to(tl.int64) * ELEMENTS + k), total, mask=k < ELEMENTS)
    if LAST:
        tl.store(last + row + tl.zeros((BLOCK_K,), tl.int32), total, mask=k == ELEMENTS)


def sum_tile(arithmetic: dict, out_channels: int, warps: int = 4) -> Tile:
    """Return the tile of a sum. It is the same on every device, because the order of the sum depends on it.

    Without tensor cores it is small, because a product then unrolls its positions.
    """
    if is_plain(arithmetic):
        return Tile(32, output_block(out_channels, 32), 1)
    return Tile(32 * warps, output_block(out_channels, 64), warps)


def partials_like(like: Tensor, tile: Tile, tiles: int, *shape: int) -> Tensor:
    """Return uninitialised partial sums, one per program. Their number is the same on every device."""
    return like.new_empty((min(tiles, WARPS // tile.warps), *shape))


def add_partials(partials: Tensor, out: Tensor, last: Tensor | None, geometry: Geometry, square: bool) -> None:
    grid = (len(out), triton.cdiv(partials.shape[2], 32))
    launch(
        partial_sums_kernel, out.device, 4, grid, partials, out, out if last is None else last, *partials.shape[:2],
        GEOMETRY=geometry, SQUARE=square, LAST=last is not None, BLOCK_P=64, BLOCK_K=32,
    )  # fmt: skip

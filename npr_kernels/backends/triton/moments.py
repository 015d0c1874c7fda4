"""npr_moments: sums of the patches and of their outer products. The batch-norm statistics follow from them.

A constant 1 follows each patch, so that one product P^T P, (K + 1) x (K + 1), has both sums. A program multiplies each
of its tiles in float32, which is exact for uint8 images because their differences are integers, and adds the products
in float64. The partial sums of programs are added in a fixed order, so the result is bit-identical in every run.

Reading the image limits the speed: 192 KiB (256x256, uint8) take 0.06 us at 3 TB/s. The 2 * 32 * 32 * 128 * 128 =
34 MFLOP per image take 0.05 us on tensor cores.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from npr_kernels import arguments
from npr_kernels.backends.triton.launch import kernel, launch
from npr_kernels.backends.triton.library import CONVOLUTION, operator
from npr_kernels.backends.triton.partial_sums import add_partials, partials_like, sum_tile
from npr_kernels.backends.triton.patches import (
    cell_patch,
    cell_row,
    gather_patches,
    image_start,
    multiply,
    tile_positions,
    weight_index,
)
from npr_kernels.backends.triton.specialisation import (
    arithmetic_of,
    blocks_of,
    element_block,
    geometry_of,
    tile_count,
    trimmed,
)


@triton.jit
def _with_one(patch, first, inside, ELEMENTS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Set element number ELEMENTS of each patch that is inside to the constant 1."""
    k = first + tl.arange(0, BLOCK_K)
    return tl.where(inside[:, None] & (k == ELEMENTS)[None, :], 1.0, patch)


@kernel
def npr_moments_kernel(
    x,  # (N, C, H, W), any strides
    partials,  # (programs, K + 1, K + 1), contiguous, float64
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    height,
    width,
    out_height,
    out_width,
    tiles,
    GEOMETRY: tl.constexpr,
    T: tl.constexpr,
    PATCH: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Sum one block of P^T P over every num_programs-th tile, without scale."""
    ELEMENTS: tl.constexpr = GEOMETRY.channels * GEOMETRY.kernel_height * GEOMETRY.kernel_width
    first_row = tl.program_id(1) * BLOCK_K
    first_column = tl.program_id(2) * BLOCK_K
    total = tl.zeros((BLOCK_K, BLOCK_K), tl.float64)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        if GEOMETRY.paper:
            n, rows, pairs, inside = tile_positions(tile, out_height, tl.cdiv(out_width, 2), BLOCK_Y, BLOCK_X)
            image = image_start(x, n, stride_n, GEOMETRY)
            upper = cell_row(image, stride_c, stride_h, stride_w, rows - 1, pairs, inside, height, width, GEOMETRY, T)
            lower = cell_row(image, stride_c, stride_h, stride_w, rows, pairs, inside, height, width, GEOMETRY, T)
            for side in tl.static_range(2):
                there = inside & (2 * pairs + side < out_width)
                patch = cell_patch(upper, lower, 2 + side, tl.where(there, 1.0, 0.0).to(T), PATCH)
                patch = tl.where(there[:, None], patch, 0.0)
                total += multiply(tl.trans(patch), patch, T, SPLIT)
        else:
            n, rows, columns, inside = tile_positions(tile, out_height, out_width, BLOCK_Y, BLOCK_X)
            image = image_start(x, n, stride_n, GEOMETRY)
            left = gather_patches(
                image,
                stride_c,
                stride_h,
                stride_w,
                rows,
                columns,
                inside,
                first_row,
                height,
                width,
                GEOMETRY,
                T,
                BLOCK_K,
            )
            right = gather_patches(
                image,
                stride_c,
                stride_h,
                stride_w,
                rows,
                columns,
                inside,
                first_column,
                height,
                width,
                GEOMETRY,
                T,
                BLOCK_K,
            )
            left = tl.trans(_with_one(left, first_row, inside, ELEMENTS, BLOCK_K)).to(PATCH)
            right = _with_one(right, first_column, inside, ELEMENTS, BLOCK_K).to(PATCH)
            total += multiply(left, right, T, SPLIT)
    k = tl.arange(0, BLOCK_K)
    row = first_row + k
    column = first_column + k
    there = (row <= ELEMENTS)[:, None] & (column <= ELEMENTS)[None, :]
    row = tl.where(row < ELEMENTS, weight_index(row, GEOMETRY), row)
    column = tl.where(column < ELEMENTS, weight_index(column, GEOMETRY), column)
    start = partials + tl.program_id(0).to(tl.int64) * (ELEMENTS + 1) * (ELEMENTS + 1)
    tl.store(start + (row * (ELEMENTS + 1))[:, None] + column[None, :], total, mask=there)


def _npr_moments_results(x, kernel, stride, padding, grid_size, anchor, scale):
    elements = x.shape[1] * math.prod(kernel)
    return x.new_empty(elements, dtype=torch.float64), x.new_empty((elements, elements), dtype=torch.float64)


def _npr_moments(results, x, kernel, stride, padding, grid_size, anchor, scale):
    first, second = results
    geometry = geometry_of(x, kernel, stride, padding, grid_size, anchor, scale)
    height, width = trimmed(x, grid_size)
    rows = arguments.output_size(height, kernel[0], stride[0], padding[0])
    columns = arguments.output_size(width, kernel[1], stride[1], padding[1])
    across = triton.cdiv(columns, 2) if geometry.paper else columns
    arithmetic = arithmetic_of(x, torch.float32, anchor)
    arithmetic["SPLIT"] = False  # this product takes fewer instructions without splitting float32 numbers
    del arithmetic["FACTOR"]
    tile = sum_tile(arithmetic, 0)
    blocks = blocks_of(tile, across)
    count = tile_count(x.shape[0], rows, across, blocks)
    partials = partials_like(first, tile, count, len(first) + 1, len(first) + 1)
    block = element_block(geometry, arithmetic)
    side = triton.cdiv(len(first) + 1, block)
    sizes = (*x.stride(), height, width, rows, columns, count)
    if count:
        launch(
            npr_moments_kernel, x.device, tile.warps, (len(partials), side, side), x, partials, *sizes,
            GEOMETRY=geometry, **arithmetic, **blocks, BLOCK_K=block,
        )  # fmt: skip
    add_partials(partials, second, first, geometry, square=True)


operator(
    f"npr_moments(Tensor x, int[] kernel, {CONVOLUTION}) -> (Tensor, Tensor)",
    _npr_moments_results,
    _npr_moments,
)

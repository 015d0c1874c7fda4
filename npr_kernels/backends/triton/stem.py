"""npr_stem: NPR, convolution, bias, ReLU and a 3x3 max-pool with stride 2 in one pass, with or without the argmax.

A tile is BLOCK_Y x BLOCK_X pooled positions. For each of the nine positions in the window, the convolution is computed
for the whole tile, and the maximum is kept. So no value moves between threads. A position of the convolution belongs to
2.25 windows on average and is computed for each of them. Scale and bias are applied after the maximum, which is allowed
because they are monotone (the scale is positive).

For a 256x256 image, reading 192 KiB of uint8 and writing 512 KiB of bfloat16 take 0.23 us at 3 TB/s. The nine products
have 151 MFLOP, which take 0.15 to 0.25 us on tensor cores. According to the machine code, issuing instructions limits
the speed: about 0.6 us per image with blocks of 64 channels, or 0.9 us with 32, because patches are computed for every
block. The maxima are a third of it, and moving patches through shared memory in half words is a quarter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from npr_kernels import arguments
from npr_kernels.backends.triton.launch import Tile, kernel, launch
from npr_kernels.backends.triton.library import CONVOLUTION, operator
from npr_kernels.backends.triton.patches import (
    cell_patch,
    cell_row,
    gather_patches,
    image_start,
    multiply,
    tile_positions,
    weight_tile,
)
from npr_kernels.backends.triton.specialisation import (
    arithmetic_of,
    blocks_of,
    element_block,
    empty,
    geometry_of,
    is_plain,
    parameters_of,
    tile_count,
    tile_of,
    trimmed,
)

# One thread per position (fewer threads would load more each, more threads would repeat loads), and as many channels as
# fit into registers. On sm_90, a pooled position of 64 channels, uint8 to bfloat16, takes 96 warp instructions (143 in
# tiles of 32 channels), or 224 with the argmax (193 in tiles of 64 channels, which spill 360 bytes).
STEM_TILE, ARGMAX_TILE = Tile(128, 64, 4), Tile(128, 32, 4)
PLAIN_TILE = Tile(128, 16, 4)  # without tensor cores


@triton.jit
def _maximum(best, place, values, CODE, ARGMAX: tl.constexpr):
    """Return the larger of best and values, and its place. The first of equal values wins; NaN is the largest."""
    if ARGMAX:
        place = tl.where((values > best) | (values != values), CODE, place)
    return tl.maximum(best, values, propagate_nan=tl.PropagateNan.ALL), place


@kernel
def npr_stem_kernel(
    x,  # (N, C, H, W), any strides
    weight,  # (O, K), contiguous
    bias,  # (O,), any tensor without HAS_BIAS
    out,  # (N, PH, PW, O), contiguous
    argmax,  # the same shape in uint8; any tensor without ARGMAX
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    height,
    width,
    out_height,  # size of the convolution's output
    out_width,
    pooled_height,
    pooled_width,
    out_channels,
    GEOMETRY: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ARGMAX: tl.constexpr,
    T: tl.constexpr,  # type of sums
    PATCH: tl.constexpr,  # type of patches in products
    FACTOR: tl.constexpr,  # type of weights in products
    SPLIT: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    outputs = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    n, rows, columns, inside = tile_positions(tl.program_id(0), pooled_height, pooled_width, BLOCK_Y, BLOCK_X)
    image = image_start(x, n, stride_n, GEOMETRY)
    best = tl.full((BLOCK_Y * BLOCK_X, BLOCK_O), float("-inf"), T)
    place = tl.full((BLOCK_Y * BLOCK_X, BLOCK_O) if ARGMAX else (1, 1), 9, tl.int32)
    if GEOMETRY.paper:
        OUTSIDE: tl.constexpr = 6e4 if PATCH == tl.float16 else 1e18
        weights = weight_tile(weight, 0, outputs, out_channels, GEOMETRY, T, FACTOR, BLOCK_K)
        weights = tl.where((tl.arange(0, BLOCK_K) == 27)[:, None], -OUTSIDE, weights.to(T)).to(FACTOR)
        upper = cell_row(image, stride_c, stride_h, stride_w, 2 * rows - 2, columns, inside, height, width, GEOMETRY, T)
        for i in range(3):
            y = 2 * rows - 1 + i
            lower = cell_row(image, stride_c, stride_h, stride_w, y, columns, inside, height, width, GEOMETRY, T)
            for j in tl.static_range(3):
                column = 2 * columns - 1 + j
                there = (y >= 0) & (y < out_height) & (column >= 0) & (column < out_width)
                patch = cell_patch(upper, lower, 1 + j, tl.where(there, 0.0, OUTSIDE).to(T), PATCH)
                values = multiply(patch, weights, T, SPLIT)
                best, place = _maximum(best, place, values, 3 * i + j, ARGMAX)
            upper = lower
    else:
        ELEMENTS: tl.constexpr = GEOMETRY.channels * GEOMETRY.kernel_height * GEOMETRY.kernel_width
        for code in range(9):
            y = 2 * rows - 1 + code // 3
            x_ = 2 * columns - 1 + code % 3
            there = inside & (y >= 0) & (y < out_height) & (x_ >= 0) & (x_ < out_width)
            values = tl.zeros((BLOCK_Y * BLOCK_X, BLOCK_O), T)
            for first in range(0, ELEMENTS, BLOCK_K):
                patch = gather_patches(
                    image, stride_c, stride_h, stride_w, y, x_, there, first, height, width, GEOMETRY, T, BLOCK_K
                )
                weights = weight_tile(weight, first, outputs, out_channels, GEOMETRY, T, FACTOR, BLOCK_K)
                values += multiply(patch.to(PATCH), weights, T, SPLIT)
            values = tl.where(there[:, None], values, float("-inf"))
            best, place = _maximum(best, place, values, code, ARGMAX)
    best = best * GEOMETRY.scale
    if HAS_BIAS:
        best += tl.load(bias + outputs, mask=outputs < out_channels, other=0.0).to(T)[None, :]
    there = inside[:, None] & (outputs < out_channels)[None, :]
    start = ((n * pooled_height + rows) * pooled_width + columns) * out_channels
    offsets = start[:, None] + outputs[None, :]
    tl.store(out + offsets, tl.where(best <= 0, 0.0, best), mask=there)  # NaN stays NaN
    if ARGMAX:
        rounded = best.to(out.dtype.element_ty).to(T)  # a small positive value may become zero
        tl.store(argmax + offsets, tl.where(rounded > 0, place, 9).to(tl.uint8), mask=there)


def _pooled_shape(x, weight, stride, padding, grid_size):
    size = arguments.convolution_output_size(x, weight.shape[2:], stride, padding, grid_size)
    return (x.shape[0], weight.shape[0], *(arguments.output_size(n, 3, 2, 1) for n in size))


def _npr_stem_results(x, weight, bias, stride, padding, grid_size, anchor, scale):
    return empty(x, _pooled_shape(x, weight, stride, padding, grid_size), weight.dtype, True)


def _npr_stem_argmax_results(x, weight, bias, stride, padding, grid_size, anchor, scale):
    out = _npr_stem_results(x, weight, bias, stride, padding, grid_size, anchor, scale)
    return out, torch.empty_like(out, dtype=torch.uint8)


def _npr_stem(out, *args):
    _stem(out, None, *args)


def _npr_stem_argmax(results, *args):
    _stem(*results, *args)


def _stem(out, argmax, x, weight, bias, stride, padding, grid_size, anchor, scale):
    if out.numel() == 0:
        return
    images, out_channels, rows, columns = out.shape
    geometry = geometry_of(x, weight.shape[2:], stride, padding, grid_size, anchor, scale)
    arithmetic = arithmetic_of(x, weight.dtype, anchor)
    if is_plain(arithmetic):
        geometry = geometry._replace(paper=False)  # cell_patch would need too many registers
    convolution_size = arguments.convolution_output_size(x, weight.shape[2:], stride, padding, grid_size)
    tile = tile_of(out_channels, arithmetic, STEM_TILE if argmax is None else ARGMAX_TILE, PLAIN_TILE)
    blocks = blocks_of(tile, columns)
    grid = (tile_count(images, rows, columns, blocks), triton.cdiv(out_channels, tile.outputs))
    tensors = (x, *parameters_of(weight, bias, out), out, out if argmax is None else argmax)
    sizes = (*x.stride(), *trimmed(x, grid_size), *convolution_size, rows, columns, out_channels)
    launch(
        npr_stem_kernel, x.device, tile.warps, grid, *tensors, *sizes,
        GEOMETRY=geometry, HAS_BIAS=bias is not None, ARGMAX=argmax is not None, **arithmetic, **blocks,
        BLOCK_O=tile.outputs, BLOCK_K=element_block(geometry, arithmetic),
    )  # fmt: skip


operator(
    f"npr_stem(Tensor x, Tensor weight, Tensor? bias, {CONVOLUTION}) -> Tensor",
    _npr_stem_results,
    _npr_stem,
)
operator(
    f"npr_stem_argmax(Tensor x, Tensor weight, Tensor? bias, {CONVOLUTION}) -> (Tensor, Tensor)",
    _npr_stem_argmax_results,
    _npr_stem_argmax,
)

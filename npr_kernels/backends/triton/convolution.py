"""npr_conv2d: NPR and the convolution in one pass over the image.

Memory limits the speed. A 256x256 image in uint8 has 192 KiB, and the result, 64 channels of 128x128 in bfloat16, has 2
MiB. Writing the result takes 0.7 us at 3 TB/s, or 1.4 us in float32. The 2 * 64 * 32 * 128 * 128 = 67 MFLOP per image
take 0.1 us on tensor cores. float32 results need three times as many for uint8 images and six times for float32 images.
Neighbouring tiles share a border of one cell, which comes from the L1 and L2 caches, because tiles of one image row run
one after another.
"""

from __future__ import annotations

import triton
import triton.language as tl

from npr_kernels import arguments
from npr_kernels.backends.triton.launch import Tile, kernel, launch
from npr_kernels.backends.triton.library import CONVOLUTION, operator
from npr_kernels.backends.triton.patches import (
    cell_patch,
    cell_row,
    dense_offsets,
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
    parameters_of,
    tile_count,
    tile_of,
    trimmed,
)

# One thread per position (fewer threads would load more each, more threads would repeat loads), and as many channels as
# fit into registers.
CONVOLUTION_TILE = Tile(128, 64, 4)
PLAIN_TILE = Tile(64, 32, 2)  # without tensor cores


@kernel
def npr_conv2d_kernel(
    x,  # (N, C, H, W), any strides
    weight,  # (O, K), contiguous
    bias,  # (O,), any tensor without HAS_BIAS
    out,  # (N, O, OH, OW), dense
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    height,
    width,
    out_height,
    out_width,
    out_channels,
    GEOMETRY: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,  # memory format of out
    T: tl.constexpr,  # type of sums
    PATCH: tl.constexpr,  # type of patches in products
    FACTOR: tl.constexpr,  # type of weights in products
    SPLIT: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute a tile of positions (pairs of columns in the paper's case) and a block of output channels."""
    outputs = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    if HAS_BIAS:
        offset = tl.load(bias + outputs, mask=outputs < out_channels, other=0.0).to(T)
    else:
        offset = tl.zeros((BLOCK_O,), T)
    if GEOMETRY.paper:
        n, rows, pairs, inside = tile_positions(tl.program_id(0), out_height, tl.cdiv(out_width, 2), BLOCK_Y, BLOCK_X)
        image = image_start(x, n, stride_n, GEOMETRY)
        upper = cell_row(image, stride_c, stride_h, stride_w, rows - 1, pairs, inside, height, width, GEOMETRY, T)
        lower = cell_row(image, stride_c, stride_h, stride_w, rows, pairs, inside, height, width, GEOMETRY, T)
        weights = weight_tile(weight, 0, outputs, out_channels, GEOMETRY, T, FACTOR, BLOCK_K)
        for side in tl.static_range(2):
            patch = cell_patch(upper, lower, 2 + side, tl.zeros_like(upper[0]), PATCH)
            total = multiply(patch, weights, T, SPLIT) * GEOMETRY.scale + offset[None, :]
            columns = 2 * pairs + side
            there = (inside & (columns < out_width))[:, None] & (outputs < out_channels)[None, :]
            offsets = dense_offsets(n, rows, columns, outputs, out_height, out_width, out_channels, CHANNELS_LAST)
            tl.store(out + offsets, total, mask=there)
    else:
        n, rows, columns, inside = tile_positions(tl.program_id(0), out_height, out_width, BLOCK_Y, BLOCK_X)
        image = image_start(x, n, stride_n, GEOMETRY)
        ELEMENTS: tl.constexpr = GEOMETRY.channels * GEOMETRY.kernel_height * GEOMETRY.kernel_width
        total = tl.zeros((BLOCK_Y * BLOCK_X, BLOCK_O), T)
        for first in range(0, ELEMENTS, BLOCK_K):
            patch = gather_patches(
                image, stride_c, stride_h, stride_w, rows, columns, inside, first, height, width, GEOMETRY, T, BLOCK_K
            )
            weights = weight_tile(weight, first, outputs, out_channels, GEOMETRY, T, FACTOR, BLOCK_K)
            total += multiply(patch.to(PATCH), weights, T, SPLIT)
        total = total * GEOMETRY.scale + offset[None, :]
        offsets = dense_offsets(n, rows, columns, outputs, out_height, out_width, out_channels, CHANNELS_LAST)
        tl.store(out + offsets, total, mask=inside[:, None] & (outputs < out_channels)[None, :])


def _npr_conv2d_results(x, weight, bias, stride, padding, grid_size, anchor, scale, channels_last):
    size = arguments.convolution_output_size(x, weight.shape[2:], stride, padding, grid_size)
    return empty(x, (x.shape[0], weight.shape[0], *size), weight.dtype, channels_last)


def _npr_conv2d(out, x, weight, bias, stride, padding, grid_size, anchor, scale, channels_last):
    if out.numel() == 0:
        return
    images, out_channels, rows, columns = out.shape
    geometry = geometry_of(x, weight.shape[2:], stride, padding, grid_size, anchor, scale)
    arithmetic = arithmetic_of(x, weight.dtype, anchor)
    across = triton.cdiv(columns, 2) if geometry.paper else columns
    tile = tile_of(out_channels, arithmetic, CONVOLUTION_TILE, PLAIN_TILE)
    blocks = blocks_of(tile, across)
    grid = (tile_count(images, rows, across, blocks), triton.cdiv(out_channels, tile.outputs))
    sizes = (*x.stride(), *trimmed(x, grid_size), rows, columns, out_channels)
    launch(
        npr_conv2d_kernel, x.device, tile.warps, grid, x, *parameters_of(weight, bias, out), out, *sizes,
        GEOMETRY=geometry, HAS_BIAS=bias is not None, CHANNELS_LAST=channels_last, **arithmetic, **blocks,
        BLOCK_O=tile.outputs, BLOCK_K=element_block(geometry, arithmetic),
    )  # fmt: skip


operator(
    f"npr_conv2d(Tensor x, Tensor weight, Tensor? bias, {CONVOLUTION}, bool channels_last) -> Tensor",
    _npr_conv2d_results,
    _npr_conv2d,
)

"""npr_conv2d: NPR and the convolution in one pass over the image.

Memory bound: a 256x256 image in uint8 is 192 KiB in, and 64 channels at 128x128 in bfloat16 are 2 MiB out, so the time
is the output's (0.7 us at 3 TB/s; 1.4 us in float32). Operations: 2 * 64 * 32 * 128 * 128 = 67 MFLOP an image on tensor
cores, 0.1 us; float32 takes three times as many from uint8 images and six times from float32 ones. Neighbouring tiles
share a halo of one cell, which L1 and L2 serve: tiles of one image row follow one another.
"""

from __future__ import annotations

import triton.language as tl

from npr_kernels.backends.triton.launch import kernel
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


@kernel
def npr_conv2d_kernel(
    x,  # (N, C, H, W), any strides
    weight,  # (O, K), contiguous
    bias,  # (O,), any tensor where there is none
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
    CHANNELS_LAST: tl.constexpr,  # how out lies in memory
    T: tl.constexpr,  # of sums
    PATCH: tl.constexpr,  # of patches in products
    FACTOR: tl.constexpr,  # of what they are multiplied with
    SPLIT: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of positions (pairs of columns in the paper's case) times a block of output channels."""
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

"""npr_conv2d_grad_weight: the gradient of npr_conv2d in the weight.

It is the sum over positions of (output gradient) x (patch); patches are computed from the image. A program sums its
tiles in registers and writes a partial sum. The partial sums are added in a fixed order and without atomics, so the
result is bit-identical in every run. Reading the gradient limits the speed: 2 MiB (bfloat16, 64 channels, a 256x256
image) take 0.7 us at 3 TB/s. The 67 MFLOP per image take 0.1 us on tensor cores.
"""

from __future__ import annotations

import triton
import triton.language as tl

from npr_kernels.backends.triton.launch import kernel, launch
from npr_kernels.backends.triton.library import CONVOLUTION, operator
from npr_kernels.backends.triton.partial_sums import add_partials, partials_like, sum_tile
from npr_kernels.backends.triton.patches import (
    cell_patch,
    cell_row,
    channel_offsets,
    gather_patches,
    image_start,
    multiply,
    tile_positions,
    weight_index,
)
from npr_kernels.backends.triton.specialisation import (
    accumulated,
    arithmetic_of,
    blocks_of,
    element_block,
    geometry_of,
    gradient_strides,
    tile_count,
    trimmed,
)


@kernel
def npr_conv2d_grad_weight_kernel(
    grad,  # (N, O, OH, OW), any strides
    x,  # (N, C, H, W), any strides
    partials,  # (programs, O, K), contiguous, of type T
    grad_stride_n,
    grad_stride_o,
    grad_stride_h,
    grad_stride_w,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    height,
    width,
    out_height,
    out_width,
    out_channels,
    tiles,
    GEOMETRY: tl.constexpr,
    GRAD_UNIT: tl.constexpr,  # see channel_offsets
    T: tl.constexpr,
    PATCH: tl.constexpr,
    FACTOR: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Sum one block of output channels and patch elements over every num_programs-th tile, without scale."""
    ELEMENTS: tl.constexpr = GEOMETRY.channels * GEOMETRY.kernel_height * GEOMETRY.kernel_width
    outputs = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    first = tl.program_id(2) * BLOCK_K
    total = tl.zeros((BLOCK_K, BLOCK_O), T)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        if GEOMETRY.paper:
            n, rows, pairs, inside = tile_positions(tile, out_height, tl.cdiv(out_width, 2), BLOCK_Y, BLOCK_X)
            image = image_start(x, n, stride_n, GEOMETRY)
            upper = cell_row(image, stride_c, stride_h, stride_w, rows - 1, pairs, inside, height, width, GEOMETRY, T)
            lower = cell_row(image, stride_c, stride_h, stride_w, rows, pairs, inside, height, width, GEOMETRY, T)
            for side in tl.static_range(2):
                columns = 2 * pairs + side
                there = (inside & (columns < out_width))[:, None] & (outputs < out_channels)[None, :]
                start = n * grad_stride_n + rows.to(tl.int64) * grad_stride_h + columns.to(tl.int64) * grad_stride_w
                offsets = channel_offsets(start, outputs, grad_stride_o, GRAD_UNIT)
                gradient = tl.load(grad + offsets, mask=there, other=0.0).to(FACTOR)
                patch = cell_patch(upper, lower, 2 + side, tl.zeros_like(upper[0]), PATCH)
                total += multiply(tl.trans(patch), gradient, T, SPLIT)
        else:
            n, rows, columns, inside = tile_positions(tile, out_height, out_width, BLOCK_Y, BLOCK_X)
            image = image_start(x, n, stride_n, GEOMETRY)
            patch = gather_patches(
                image, stride_c, stride_h, stride_w, rows, columns, inside, first, height, width, GEOMETRY, T, BLOCK_K
            )
            there = inside[:, None] & (outputs < out_channels)[None, :]
            start = n * grad_stride_n + rows.to(tl.int64) * grad_stride_h + columns.to(tl.int64) * grad_stride_w
            offsets = channel_offsets(start, outputs, grad_stride_o, GRAD_UNIT)
            gradient = tl.load(grad + offsets, mask=there, other=0.0).to(FACTOR)
            total += multiply(tl.trans(patch.to(PATCH)), gradient, T, SPLIT)
    k = first + tl.arange(0, BLOCK_K)
    there = (k < ELEMENTS)[:, None] & (outputs < out_channels)[None, :]
    start = (tl.program_id(0).to(tl.int64) * out_channels + outputs) * ELEMENTS
    tl.store(partials + (start[None, :] + weight_index(k, GEOMETRY)[:, None]), total, mask=there)


def grad_weight_results(grad, x, kernel, stride, padding, grid_size, anchor, scale):
    return x.new_empty((grad.shape[1], x.shape[1], *kernel), dtype=accumulated(grad, x))


def _grad_weight(out, grad, x, kernel, stride, padding, grid_size, anchor, scale):
    geometry = geometry_of(x, kernel, stride, padding, grid_size, anchor, scale)
    images, out_channels, rows, columns = grad.shape
    across = triton.cdiv(columns, 2) if geometry.paper else columns
    arithmetic = arithmetic_of(x, grad.dtype, anchor)
    tile = sum_tile(arithmetic, out_channels)
    blocks = blocks_of(tile, across)
    count = tile_count(images, rows, across, blocks)
    elements = out[0].numel()
    partials = partials_like(out, tile, count, out_channels, elements)
    block = element_block(geometry, arithmetic)
    grid = (len(partials), triton.cdiv(out_channels, tile.outputs), triton.cdiv(elements, block))
    strides, unit = gradient_strides(grad)
    sizes = (*strides, *x.stride(), *trimmed(x, grid_size), rows, columns, out_channels, count)
    if count:
        launch(
            npr_conv2d_grad_weight_kernel, x.device, tile.warps, grid, grad, x, partials, *sizes,
            GEOMETRY=geometry, GRAD_UNIT=unit, **arithmetic, **blocks, BLOCK_O=tile.outputs, BLOCK_K=block,
        )  # fmt: skip
    add_partials(partials, out.flatten(1), None, geometry, square=False)


operator(
    f"npr_conv2d_grad_weight(Tensor grad, Tensor x, int[] kernel, {CONVOLUTION}) -> Tensor",
    grad_weight_results,
    _grad_weight,
)

"""npr_stem_grad_weight: the stem's gradient in the weight, from the pooled gradient and the argmax.

Nothing of the size of the convolution's output is written. A tile is BLOCK_Y x BLOCK_X windows, as in the stem. For
each of the nine positions in a window, the gradients with this argmax are multiplied by the patches; the others count
as zero. So gradient and argmax are read once, and a position that is the maximum of several windows needs no sum before
the product. The partial sums are added in a fixed order, so the result is bit-identical in every run.

Memory limits the speed: the pooled gradient (512 KiB in bfloat16 for 64 channels of a 256x256 image), the argmax (256
KiB) and the uint8 image (192 KiB) take 0.3 us at 3 TB/s. The nine products have 151 MFLOP, which take 0.15 to 0.25 us
on tensor cores.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from npr_kernels import arguments
from npr_kernels.backends.triton.grad_weight import grad_weight_results
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
    arithmetic_of,
    blocks_of,
    element_block,
    geometry_of,
    gradient_strides,
    is_plain,
    tile_count,
    trimmed,
)


@kernel
def npr_stem_grad_weight_kernel(
    grad,  # (N, O, PH, PW), any strides
    argmax,  # (N, PH, PW, O), contiguous, uint8
    x,  # (N, C, H, W), any strides
    partials,  # (programs, O, K + 1), contiguous, of type T: products, then the sum
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
    out_height,  # size of the convolution's output
    out_width,
    pooled_height,
    pooled_width,
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
        n, rows, columns, inside = tile_positions(tile, pooled_height, pooled_width, BLOCK_Y, BLOCK_X)
        image = image_start(x, n, stride_n, GEOMETRY)
        there = inside[:, None] & (outputs < out_channels)[None, :]
        start = n * grad_stride_n + rows.to(tl.int64) * grad_stride_h + columns.to(tl.int64) * grad_stride_w
        gradient = tl.load(grad + channel_offsets(start, outputs, grad_stride_o, GRAD_UNIT), mask=there, other=0.0)
        start = ((n * pooled_height + rows) * pooled_width + columns) * out_channels
        place = tl.load(argmax + (start[:, None] + outputs[None, :]), mask=there, other=9)
        if GEOMETRY.paper:
            upper = cell_row(
                image, stride_c, stride_h, stride_w, 2 * rows - 2, columns, inside, height, width, GEOMETRY, T
            )
            one = tl.full(upper[0].shape, 1.0, T)
            for i in range(3):
                y = 2 * rows - 1 + i
                lower = cell_row(image, stride_c, stride_h, stride_w, y, columns, inside, height, width, GEOMETRY, T)
                for j in tl.static_range(3):
                    patch = tl.trans(cell_patch(upper, lower, 1 + j, one, PATCH))
                    chosen = tl.where(place == 3 * i + j, gradient, 0.0).to(FACTOR)
                    total += multiply(patch, chosen, T, SPLIT)
                upper = lower
        else:
            for code in range(9):
                y = 2 * rows - 1 + code // 3
                x_ = 2 * columns - 1 + code % 3
                seen = inside & (y >= 0) & (y < out_height) & (x_ >= 0) & (x_ < out_width)
                patch = gather_patches(
                    image, stride_c, stride_h, stride_w, y, x_, seen, first, height, width, GEOMETRY, T, BLOCK_K
                )
                patch = tl.where((first + tl.arange(0, BLOCK_K) == ELEMENTS)[None, :], 1.0, patch).to(PATCH)
                chosen = tl.where(place == code, gradient, 0.0).to(FACTOR)
                total += multiply(tl.trans(patch), chosen, T, SPLIT)
    k = first + tl.arange(0, BLOCK_K)
    there = (k <= ELEMENTS)[:, None] & (outputs < out_channels)[None, :]
    k = tl.where(k < ELEMENTS, weight_index(k, GEOMETRY), k)
    start = (tl.program_id(0).to(tl.int64) * out_channels + outputs) * (ELEMENTS + 1)
    tl.store(partials + (start[None, :] + k[:, None]), total, mask=there)


def _stem_grad_weight_results(grad, argmax, x, kernel, stride, padding, grid_size, anchor, scale):
    products = grad_weight_results(grad, x, kernel, stride, padding, grid_size, anchor, scale)
    return products, products.new_empty(grad.shape[1])


def _stem_grad_weight(results, grad, argmax, x, kernel, stride, padding, grid_size, anchor, scale):
    products, sums = results
    geometry = geometry_of(x, kernel, stride, padding, grid_size, anchor, scale)
    images, out_channels, rows, columns = grad.shape
    height, width = trimmed(x, grid_size)
    argmax = argmax.contiguous(memory_format=torch.channels_last)
    arithmetic = arithmetic_of(x, grad.dtype, anchor)
    if is_plain(arithmetic):
        geometry = geometry._replace(paper=False)  # cell_patch would need too many registers
    tile = sum_tile(arithmetic, min(out_channels, 32), warps=2)  # more would not fit into registers
    blocks = blocks_of(tile, columns)
    count = tile_count(images, rows, columns, blocks)
    elements = products[0].numel()
    partials = partials_like(products, tile, count, out_channels, elements + 1)
    block = element_block(geometry, arithmetic)
    grid = (len(partials), triton.cdiv(out_channels, tile.outputs), triton.cdiv(elements + 1, block))
    size = (
        arguments.output_size(height, kernel[0], stride[0], padding[0]),
        arguments.output_size(width, kernel[1], stride[1], padding[1]),
    )
    strides, unit = gradient_strides(grad)
    sizes = (*strides, *x.stride(), height, width, *size, rows, columns, out_channels, count)
    if count:
        launch(
            npr_stem_grad_weight_kernel, x.device, tile.warps, grid, grad, argmax, x, partials, *sizes,
            GEOMETRY=geometry, GRAD_UNIT=unit, **arithmetic, **blocks, BLOCK_O=tile.outputs, BLOCK_K=block,
        )  # fmt: skip
    add_partials(partials, products.flatten(1), sums, geometry, square=False)


operator(
    f"npr_stem_grad_weight(Tensor grad, Tensor argmax, Tensor x, int[] kernel, {CONVOLUTION}) -> (Tensor, Tensor)",
    _stem_grad_weight_results,
    _stem_grad_weight,
)

"""The stem's weight gradient from the pooled gradient and the argmax: nothing of the convolution's size is written.

A tile is BLOCK_Y x BLOCK_X pooled positions (p, q), which own the convolution positions (2p + a, 2q + b), a and b in
0, 1. Such a position lies in 1 window (a = b = 0), 2 or 4; it takes the gradient of those whose argmax names it. The four
gradients are rebuilt in registers and multiplied with the four patches. Partial sums are added in a fixed order.

Bound by memory: pooled gradient (512 KiB in bfloat16 for 64 channels of a 256x256 image), argmax (256 KiB) and uint8
image (192 KiB) are 0.3 us at 3 TB/s; neighbouring windows are read again from L1. 67 MFLOP are 0.1 us on tensor cores.
"""

from __future__ import annotations

import triton
import triton.language as tl

from npr_kernels.backends.triton.patches import (
    cell_patch,
    cell_row,
    gather_patches,
    image_start,
    multiply,
    tile_positions,
    weight_index,
)


@triton.jit
def _sent_to(
    grad,
    argmax,
    grad_stride_n,
    grad_stride_o,
    grad_stride_h,
    grad_stride_w,
    n,
    rows,
    columns,
    inside,
    A: tl.constexpr,
    B: tl.constexpr,
    outputs,
    out_channels,
    pooled_height,
    pooled_width,
    T: tl.constexpr,
):
    """The gradient at convolution positions (2 * rows + A, 2 * columns + B): (M, O) of type T."""
    total = tl.zeros((rows.shape[0], outputs.shape[0]), T)
    for i in tl.static_range(1 + A):
        for j in tl.static_range(1 + B):
            p = rows + i
            q = columns + j
            there = (inside & (p < pooled_height) & (q < pooled_width))[:, None] & (outputs < out_channels)[None, :]
            offset = n * grad_stride_n + p.to(tl.int64) * grad_stride_h + q.to(tl.int64) * grad_stride_w
            offset = offset[:, None] + (outputs.to(tl.int64) * grad_stride_o)[None, :]
            place = ((n * pooled_height + p) * pooled_width + q) * out_channels
            place = tl.load(argmax + (place[:, None] + outputs[None, :]), mask=there, other=9)
            value = tl.load(grad + offset, mask=there, other=0.0).to(T)
            # window p covers rows 2p - 1 .. 2p + 1, so that row 2 * (p - i) + A is its row 1 + A - 2 * i
            total += tl.where(place == 3 * (1 + A - 2 * i) + 1 + B - 2 * j, value, 0.0)
    return total


@triton.jit
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
    out_height,  # of the convolution
    out_width,
    pooled_height,
    pooled_width,
    out_channels,
    tiles,
    GEOMETRY: tl.constexpr,
    T: tl.constexpr,
    PRODUCT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One block of output channels and patch elements over every num_programs-th tile, without scale factors."""
    ELEMENTS: tl.constexpr = GEOMETRY.channels * GEOMETRY.kernel_height * GEOMETRY.kernel_width
    outputs = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    first = tl.program_id(2) * BLOCK_K
    total = tl.zeros((BLOCK_K, BLOCK_O), T)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        n, rows, columns, inside = tile_positions(tile, pooled_height, pooled_width, BLOCK_Y, BLOCK_X)
        image = image_start(x, n, stride_n, GEOMETRY)
        if GEOMETRY.paper:
            upper = cell_row(
                image, stride_c, stride_h, stride_w, 2 * rows - 1, columns, inside, height, width, GEOMETRY, T, PRODUCT
            )
            for a in tl.static_range(2):
                lower = cell_row(
                    image,
                    stride_c,
                    stride_h,
                    stride_w,
                    2 * rows + a,
                    columns,
                    inside,
                    height,
                    width,
                    GEOMETRY,
                    T,
                    PRODUCT,
                )
                for b in tl.static_range(2):
                    gradient = _sent_to(
                        grad,
                        argmax,
                        grad_stride_n,
                        grad_stride_o,
                        grad_stride_h,
                        grad_stride_w,
                        n,
                        rows,
                        columns,
                        inside,
                        a,
                        b,
                        outputs,
                        out_channels,
                        pooled_height,
                        pooled_width,
                        T,
                    )
                    patch = cell_patch(upper, lower, 2 + b, tl.full(upper[0].shape, 1.0, PRODUCT))
                    total = multiply(tl.trans(patch), gradient.to(PRODUCT), total, PRECISION)
                upper = lower
        else:
            for a in tl.static_range(2):
                for b in tl.static_range(2):
                    gradient = _sent_to(
                        grad,
                        argmax,
                        grad_stride_n,
                        grad_stride_o,
                        grad_stride_h,
                        grad_stride_w,
                        n,
                        rows,
                        columns,
                        inside,
                        a,
                        b,
                        outputs,
                        out_channels,
                        pooled_height,
                        pooled_width,
                        T,
                    )
                    y = 2 * rows + a
                    x_ = 2 * columns + b
                    there = inside & (y < out_height) & (x_ < out_width)
                    patch = gather_patches(
                        image, stride_c, stride_h, stride_w, y, x_, there, first, height, width, GEOMETRY, T, BLOCK_K
                    )
                    k = first + tl.arange(0, BLOCK_K)
                    patch = tl.where((k == ELEMENTS)[None, :], 1.0, patch)
                    total = multiply(tl.trans(patch.to(PRODUCT)), gradient.to(PRODUCT), total, PRECISION)
    k = first + tl.arange(0, BLOCK_K)
    there = (k <= ELEMENTS)[:, None] & (outputs < out_channels)[None, :]
    k = tl.where(k < ELEMENTS, weight_index(k, GEOMETRY), k)
    start = (tl.program_id(0).to(tl.int64) * out_channels + outputs) * (ELEMENTS + 1)
    tl.store(partials + (start[None, :] + k[:, None]), total, mask=there)

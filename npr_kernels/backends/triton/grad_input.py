"""npr_conv2d_grad_input: the gradient of npr_conv2d in the image.

A transposed convolution gives the gradient in the NPR map, and npr_backward continues to the image. A program has
pixels of one residue class modulo the stride. They see the same taps of the kernel, so no tap is computed that falls
between output positions. Memory limits the speed: the gradient of the output has 2 MiB (bfloat16, 64 channels, a
256x256 image), and the float32 map is written and read once (1.5 MiB).
"""

from __future__ import annotations

import triton
import triton.language as tl

from npr_kernels.backends.triton.launch import Tile, kernel, launch
from npr_kernels.backends.triton.library import CONVOLUTION, operator
from npr_kernels.backends.triton.npr_map import npr_backward_into
from npr_kernels.backends.triton.patches import channel_factor, channel_offsets, multiply, tile_positions
from npr_kernels.backends.triton.specialisation import (
    accumulated,
    arithmetic_of,
    blocks_of,
    empty,
    geometry_of,
    gradient_strides,
    output_block,
    tile_count,
    trimmed,
)


@kernel
def npr_conv2d_grad_map_kernel(
    grad,  # (N, O, OH, OW), any strides
    weight,  # (O, K), contiguous
    out,  # (N, H, W, C), contiguous, of type T
    grad_stride_n,
    grad_stride_o,
    grad_stride_h,
    grad_stride_w,
    height,
    width,
    out_height,
    out_width,
    out_channels,
    GEOMETRY: tl.constexpr,
    GRAD_UNIT: tl.constexpr,  # see channel_offsets
    T: tl.constexpr,
    FACTOR: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    CHANNELS: tl.constexpr = GEOMETRY.channels
    KERNEL_HEIGHT: tl.constexpr = GEOMETRY.kernel_height
    KERNEL_WIDTH: tl.constexpr = GEOMETRY.kernel_width
    TAPS: tl.constexpr = KERNEL_HEIGHT * KERNEL_WIDTH
    STRIDE_HEIGHT: tl.constexpr = GEOMETRY.stride_height
    STRIDE_WIDTH: tl.constexpr = GEOMETRY.stride_width
    channels = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    factor = channel_factor(channels, GEOMETRY, T)
    n, rows, columns, _ = tile_positions(
        tl.program_id(0), tl.cdiv(height, STRIDE_HEIGHT), tl.cdiv(width, STRIDE_WIDTH), BLOCK_Y, BLOCK_X
    )
    residue_y = tl.program_id(1) // STRIDE_WIDTH + GEOMETRY.padding_height
    residue_x = tl.program_id(1) % STRIDE_WIDTH + GEOMETRY.padding_width
    total = tl.zeros((BLOCK_Y * BLOCK_X, BLOCK_C), T)
    for ky in range(residue_y % STRIDE_HEIGHT, KERNEL_HEIGHT, STRIDE_HEIGHT):
        y = rows + (residue_y - ky) // STRIDE_HEIGHT  # an exact division, also for negative numbers
        for kx in range(residue_x % STRIDE_WIDTH, KERNEL_WIDTH, STRIDE_WIDTH):
            x = columns + (residue_x - kx) // STRIDE_WIDTH
            inside = (y >= 0) & (y < out_height) & (x >= 0) & (x < out_width)
            start = n * grad_stride_n + y.to(tl.int64) * grad_stride_h + x.to(tl.int64) * grad_stride_w
            for first in range(0, out_channels, BLOCK_O):
                outputs = first + tl.arange(0, BLOCK_O)
                offsets = channel_offsets(start, outputs, grad_stride_o, GRAD_UNIT)
                there = inside[:, None] & (outputs < out_channels)[None, :]
                gradient = tl.load(grad + offsets, mask=there, other=0.0).to(FACTOR)
                offsets = (outputs.to(tl.int64) * CHANNELS)[:, None] + channels[None, :]
                there = (outputs < out_channels)[:, None] & (channels < CHANNELS)[None, :]
                weights = tl.load(weight + (offsets * TAPS + ky * KERNEL_WIDTH + kx), mask=there, other=0.0)
                weights = (weights.to(T) * factor[None, :]).to(FACTOR)
                total += multiply(gradient, weights, T, SPLIT)
    i = rows * STRIDE_HEIGHT + (residue_y - GEOMETRY.padding_height)
    j = columns * STRIDE_WIDTH + (residue_x - GEOMETRY.padding_width)
    there = ((i < height) & (j < width))[:, None] & (channels < CHANNELS)[None, :]
    start = ((n * height + i) * width + j) * CHANNELS
    tl.store(out + (start[:, None] + channels[None, :]), total * GEOMETRY.scale, mask=there)


def _grad_input_results(grad, x, weight, stride, padding, grid_size, anchor, scale, channels_last):
    return empty(x, x.shape, x.dtype, channels_last)


def _grad_input(out, grad, x, weight, stride, padding, grid_size, anchor, scale, channels_last):
    geometry = geometry_of(x, weight.shape[2:], stride, padding, grid_size, anchor, scale)
    height, width = trimmed(x, grid_size)
    images, out_channels, rows, columns = grad.shape
    dtype = accumulated(grad, x, weight)
    gradient = empty(x, (images, x.shape[1], height, width), dtype, True)
    arithmetic = arithmetic_of(x, weight.dtype, anchor)
    del arithmetic["PATCH"]
    tile = Tile(64, output_block(out_channels, 32), 4)
    size = triton.cdiv(height, stride[0]), triton.cdiv(width, stride[1])
    blocks = blocks_of(tile, size[1])
    grid = (tile_count(images, *size, blocks), stride[0] * stride[1], triton.cdiv(x.shape[1], 16))
    strides, unit = gradient_strides(grad)
    sizes = (*strides, height, width, rows, columns, out_channels)
    if gradient.numel():
        launch(
            npr_conv2d_grad_map_kernel, x.device, tile.warps, grid, grad, weight.contiguous(), gradient, *sizes,
            GEOMETRY=geometry, GRAD_UNIT=unit, **arithmetic, **blocks,
            BLOCK_O=tile.outputs, BLOCK_C=16,
        )  # fmt: skip
    npr_backward_into(out, gradient, x, grid_size, anchor, channels_last)


operator(
    f"npr_conv2d_grad_input(Tensor grad, Tensor x, Tensor weight, {CONVOLUTION}, bool channels_last) -> Tensor",
    _grad_input_results,
    _grad_input,
)

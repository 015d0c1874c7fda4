"""The gradient of npr_conv2d to the NPR map, a transposed convolution; npr_backward takes it on to the image.

A program has pixels of one residue class modulo the stride: they see the same taps of the kernel, and no tap is
computed that falls between output positions. Bound by memory: the output's gradient (2 MiB in bfloat16 for 64 channels
of a 256x256 image), the map in float32 written once and read once (1.5 MiB).
"""

from __future__ import annotations

import triton.language as tl

from npr_kernels.backends.triton.launch import kernel
from npr_kernels.backends.triton.patches import channel_factor, channel_offsets, multiply, tile_positions


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
        y = rows + (residue_y - ky) // STRIDE_HEIGHT  # exact; negative numbers too
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

"""Bottlenecks by csrc/cuda/bottleneck.cu, for GPUs of compute capability 9.0 and bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor

from npr_kernels.backends import cuda
from npr_kernels.backends.devices import capability

STEP = 32  # channels of the result that the kernel computes at a time
# What it is compiled for: channels inside, stride, channels of x where the shortcut has a convolution (else 0), every
# so many-th row and column that is kept (0: sums instead), channels of the next block's first convolution (or 0).
KINDS = {
    (64, 1, 64, 1, 64),
    (64, 1, 0, 1, 64),
    (64, 1, 0, 2, 128),
    (128, 2, 256, 1, 128),
    (128, 1, 0, 1, 128),
    (128, 1, 0, 0, 0),
}


def refusal(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why ``device`` has no such bottleneck of ``dtype``; None if it has."""
    if dtype != torch.bfloat16:
        return f"it has no kernel for {dtype}"
    if device.type != "cuda" or capability(device) != (9, 0):
        return "it needs a GPU of compute capability 9.0"
    if cuda.MISSING:
        return cuda.MISSING
    if "9.0a" not in cuda.ARCHITECTURES:
        return f"it needs an extension built for 9.0a, this one is built for {cuda.ARCHITECTURES.replace(';', ', ')}"
    return None


def run(
    middle: Tensor,
    x: Tensor,
    weights: Tensor,
    bias2: Tensor,
    bias3: Tensor,
    next_bias: Tensor | None,
    stride: int,
    kept: int,
) -> tuple[Tensor, Tensor]:
    """All of a block behind its first convolution, and the first convolution of the next one.

    Args:
        middle: (N, H, W, channels inside) bfloat16, contiguous: the first convolution's result.
        x: (N, H', W', channels) bfloat16, contiguous: the block's input; with stride 2 every second row and column.
        weights: see :func:`pack`.
        bias2: (channels inside,) float32, of the 3x3 convolution.
        bias3: (channels of the result,) float32, of the third, with that of the shortcut's convolution.
        next_bias: (channels,) float32, of the next block's first convolution.
        stride: 1 or 2.
        kept: every so many-th row and column of the result is given, or, for 0, sums over pixels.

    Returns:
        What is kept, (N, H'', W'', channels) bfloat16, or (N, sums, channels) float32; and the first convolution of the
        next block, (N, H', W', channels) bfloat16, empty without ``next_bias``.
    """
    return torch.ops.npr_kernels.hopper_bottleneck(middle, x, weights, bias2, bias3, next_bias, stride, kept)


def pack(weight2: Tensor, weight3: Tensor, shortcut: Tensor | None, next_weight: Tensor | None) -> Tensor:
    """The weights in the order in which the kernel reads them, flat: those of the 3x3 convolution, then for each STEP
    channels of the result their columns of the third and of the shortcut's, and their rows of the next block's first.

    All are matrices (inputs, outputs); the 3x3 convolution's has the inputs of one tap after another. Each part becomes
    blocks of 8 inputs by all outputs. The result's channels, x's and the next block's are in
    :func:`order_of_channels`.
    """
    channels = weight3.shape[1]
    order = order_of_channels(channels)
    parts = [_blocks(weight2)]
    weight3 = weight3[:, order]
    if shortcut is not None:
        shortcut = shortcut[order_of_channels(shortcut.shape[0])][:, order]
    if next_weight is not None:
        next_weight = next_weight[order][:, order_of_channels(next_weight.shape[1])]
    for first in range(0, channels, STEP):
        step = slice(first, first + STEP)
        parts.append(_blocks(weight3[:, step]))
        if shortcut is not None:
            parts.append(_blocks(shortcut[:, step]))
        if next_weight is not None:
            parts.append(_blocks(next_weight[step]))
    return torch.cat(parts)


def order_of_channels(channels: int) -> Tensor:
    """The channel of each column of a product, such that a thread has 8 neighbours of each 32.

    Of columns 8 j to 8 j + 7 the thread t, of four, has 2 t and 2 t + 1; these are channels 8 t + 2 j and the next.
    """
    t, j, e = (index.flatten() for index in torch.meshgrid(*map(torch.arange, (4, 4, 2)), indexing="ij"))
    order = torch.empty(32, dtype=torch.long)
    order[8 * j + 2 * t + e] = 8 * t + 2 * j + e
    return (torch.arange(0, channels, 32)[:, None] + order).flatten()


def _blocks(matrix: Tensor) -> Tensor:
    inputs, outputs = matrix.shape
    return matrix.reshape(inputs // 8, 8, outputs).transpose(1, 2).flatten()

"""Residual bottlenecks in CUDA C++ (csrc/cuda/bottleneck.cu), for bfloat16 and compute capability 9.0."""

from __future__ import annotations

import torch
from torch import Tensor

from npr_kernels import extension
from npr_kernels.capabilities import gpu_capability

STEP = 32  # channels of the result that the kernel computes at a time
# The compiled kernels. Their results have four times the inner channels.
# Inner channels; stride; channels of x if the shortcut is a convolution, else 0; k if every k-th
# row and column of the result is kept, or 0 for sums instead; channels of the next block's first convolution, or 0.
KINDS = {
    (64, 1, 64, 1, 64),
    (64, 1, 0, 1, 64),
    (64, 1, 0, 2, 128),
    (128, 2, 256, 1, 128),
    (128, 1, 0, 1, 128),
    (128, 1, 0, 0, 0),
}


def unsupported_reason(dtype: torch.dtype, device: torch.device) -> str | None:
    """Return why ``device`` cannot run these kernels in ``dtype``, else None."""
    if dtype != torch.bfloat16:
        return f"it has no kernel for {dtype}"
    if device.type != "cuda" or gpu_capability(device) != (9, 0):
        return "it needs a GPU of compute capability 9.0"
    if extension.CUDA_ERROR:
        return extension.CUDA_ERROR
    if "9.0a" not in extension.CUDA_ARCHITECTURES:
        built = extension.CUDA_ARCHITECTURES.replace(";", ", ")
        return f"it needs an extension built for 9.0a, this one is built for {built}"
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
    """Compute the rest of a block after its first convolution, and the first convolution of the next block.

    Args:
        middle: (N, H, W, inner channels) bfloat16, contiguous: the result of the first convolution.
        x: (N, H', W', channels) bfloat16, contiguous: the block's input; with stride 2, every second row and column.
        weights: From :func:`pack`.
        bias2: (inner channels,) float32: bias of the 3x3 convolution.
        bias3: (channels of the result,) float32: bias of the third convolution plus that of the shortcut.
        next_bias: (channels,) float32: bias of the next block's first convolution; None without a next block.
        stride: 1 or 2.
        kept: Return every ``kept``-th row and column of the result; 0 returns sums over pixels instead.

    Returns:
        The kept result, (N, H'', W'', channels) bfloat16, or sums, (N, sums, channels) float32; and the result of the
        next block's first convolution, (N, H', W', channels) bfloat16, empty without ``next_bias``.
    """
    return torch.ops.npr_kernels.hopper_bottleneck(middle, x, weights, bias2, bias3, next_bias, stride, kept)


def pack(weight2: Tensor, weight3: Tensor, shortcut: Tensor | None, next_weight: Tensor | None) -> Tensor:
    """Return all weights as one flat tensor, in the order in which the kernel reads them.

    First come the weights of the 3x3 convolution. Then, for every STEP channels of the result, come their columns of
    the third convolution and of the shortcut, and their rows of the next block's first convolution.

    The arguments are matrices (inputs, outputs). The rows of ``weight2`` are the inputs of one tap after another. Each
    part is stored as blocks of 8 inputs and all outputs. The channels of the result, of x and of the next block are in
    the order of :func:`order_of_channels`.
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
    """Return the channel of each column of a product. Each thread then has 8 neighbouring channels of every 32.

    Of the columns 8 j to 8 j + 7, thread t of four has 8 j + 2 t and 8 j + 2 t + 1. They are the channels 8 t + 2 j and
    8 t + 2 j + 1.
    """
    t, j, e = (index.flatten() for index in torch.meshgrid(*map(torch.arange, (4, 4, 2)), indexing="ij"))
    order = torch.empty(32, dtype=torch.long)
    order[8 * j + 2 * t + e] = 8 * t + 2 * j + e
    return (torch.arange(0, channels, 32)[:, None] + order).flatten()


def _blocks(matrix: Tensor) -> Tensor:
    inputs, outputs = matrix.shape
    return matrix.reshape(inputs // 8, 8, outputs).transpose(1, 2).flatten()

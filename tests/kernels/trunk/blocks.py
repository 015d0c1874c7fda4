"""Residual blocks with random weights, the same in plain PyTorch, and Hopper's kernel on emulated threads."""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.backends.emulation import Emulation, poisoned

# batch, channels in, width, channels out, stride, height, width
SHAPES = [
    (2, 64, 64, 256, 1, 16, 16),
    (1, 256, 64, 256, 1, 9, 7),
    (3, 256, 128, 512, 2, 12, 10),
    (2, 64, 64, 128, 2, 13, 11),
    (2, 128, 64, 128, 1, 1, 1),
    (1, 64, 64, 64, 2, 1, 5),
    (1, 64, 64, 64, 1, 2, 31),
    (0, 64, 64, 256, 1, 8, 8),
    (2, 64, 64, 128, 1, 8, 9),  # this and the next: of the size "fast", as are some above
    (1, 128, 64, 256, 2, 10, 7),
]


def layers(channels: int, width: int, out_channels: int, stride: int, dtype: torch.dtype) -> list:
    """conv1, conv2, conv3 and the shortcut (None where x itself will do), each a weight and a bias."""
    generator = torch.Generator().manual_seed(0)

    def draw(out: int, into: int, kernel: int) -> tuple[Tensor, Tensor]:
        weight = torch.randn(out, into, kernel, kernel, generator=generator) * (2 / (into * kernel**2)) ** 0.5
        return weight.to(dtype), torch.randn(out, generator=generator).to(dtype)

    needed = stride != 1 or channels != out_channels
    return [
        draw(width, channels, 1),
        draw(width, width, 3),
        draw(out_channels, width, 1),
        draw(out_channels, channels, 1) if needed else None,
    ]


def composed(x: Tensor, conv1, conv2, conv3, shortcut, stride: int) -> Tensor:
    y = F.relu(F.conv2d(x, *conv1))
    y = F.relu(F.conv2d(y, *conv2, stride, 1))
    return F.relu(F.conv2d(y, *conv3) + (x if shortcut is None else F.conv2d(x, *shortcut, stride)))


def run_emulated(
    emulation: Emulation,
    middle: Tensor,
    x: Tensor,
    weights: Tensor,
    bias2: Tensor,
    bias3: Tensor,
    next_bias: Tensor | None,
    stride: int,
    kept: int,
) -> tuple[Tensor, Tensor]:
    """As :func:`npr_kernels.trunk.hopper_bottleneck.run`."""
    (batch, height, width, inside), outputs = middle.shape, len(bias3)
    out_height, out_width = x.shape[1:3]
    if kept:
        result = poisoned((batch, -(-out_height // kept), -(-out_width // kept), outputs), torch.bfloat16)
    else:
        result = poisoned((batch, -(-out_height // 8) * -(-out_width // 8) * 4, outputs), torch.float32)
    following = 0 if next_bias is None else len(next_bias)
    next_middle = poisoned((batch, out_height, out_width, following), torch.bfloat16)
    projected = 0 if x.shape[3] == outputs else x.shape[3]
    sizes = (ctypes.c_int * 8)(batch, height, width, inside, stride, projected, kept, following)
    pointers = result if kept else None, next_middle, None if kept else result
    emulation._call("emulated_bottleneck", middle, x, weights, bias2, bias3, next_bias, *pointers, sizes)
    return result, next_middle


def trunk(blocks: list[tuple[int, int, int]], dtype: torch.dtype) -> list:
    return [(layers(channels, width, 4 * width, stride, dtype), stride) for channels, width, stride in blocks]

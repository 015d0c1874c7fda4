"""Chooses what kernels are compiled for from the types and layouts of tensors: geometry, arithmetic and tile sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from npr_kernels.backends.triton import patches
from npr_kernels.backends.triton.launch import Tile
from npr_kernels.backends.triton.patches import Geometry
from npr_kernels.capabilities import gpu_capability
from npr_kernels.triton_runtime import INTERPRETED

Pair = tuple[int, int]  # (height, width)


def geometry_of(
    x: Tensor, kernel: Pair, stride: Pair, padding: Pair, grid_size: int, anchor: int, scale: Sequence[float]
) -> Geometry:
    channels = x.shape[1]
    paper = (channels, *kernel, *stride, *padding, grid_size, anchor) == (3, 3, 3, 2, 2, 1, 1, 2, 0)
    largest = max(map(abs, scale)) or 1.0
    factors = tuple(factor / largest for factor in scale)
    if len(set(factors)) == 1:
        factors = factors[:1]
    span = sum((size - 1) * abs(stride) for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
    layout = _layout(x, grid_size) if paper else patches.SCATTERED
    wide = span >= 2**31
    return Geometry(channels, *kernel, *stride, *padding, grid_size, anchor, paper, layout, wide, largest, factors)


def _layout(x: Tensor, grid_size: int) -> int:
    """Return the layout of four neighbouring pixels: PACKED or PLANAR if aligned vectors of four can be read."""
    stride_n, stride_c, stride_h, stride_w = x.stride()
    if x.data_ptr() % 16 or (x.shape[3] - x.shape[3] % grid_size) % 4 or stride_n % 4 or stride_h % 4:
        return patches.SCATTERED
    if (stride_c, stride_w) == (1, 3):
        return patches.PACKED
    return patches.PLANAR if stride_w == 1 and stride_c % 4 == 0 else patches.SCATTERED


def arithmetic_of(x: Tensor, other: torch.dtype, anchor: int) -> dict:
    """Return the types of sums (T), patches (PATCH) and the other factor of products (FACTOR), of dtype ``other``.

    float32 factors are split for the tensor cores. Products are then as exact as in float32, so torch's TF32 setting
    has no effect.
    """
    if torch.float64 in (x.dtype, other):
        return {"T": tl.float64, "PATCH": tl.float64, "FACTOR": tl.float64, "SPLIT": False}
    if not has_tensor_cores(x.device):
        return {"T": tl.float32, "PATCH": tl.float32, "FACTOR": tl.float32, "SPLIT": False}
    patch = factor = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(other, tl.float32)
    if factor == tl.float32 and x.dtype == torch.uint8 and anchor != patches.MEAN:
        patch = tl.bfloat16  # differences are integers of up to 8 bits, which bfloat16 holds exactly
    return {"T": tl.float32, "PATCH": patch, "FACTOR": factor, "SPLIT": True}


def has_tensor_cores(device: torch.device) -> bool:
    """Return whether Triton uses tensor cores on ``device``. Without them, large tiles would spill registers."""
    return device.type != "cuda" or gpu_capability(device) >= (8, 0)


def is_plain(arithmetic: dict) -> bool:
    """Return whether products do not use tensor cores. They are float32 or float64 and need more registers."""
    return arithmetic["PATCH"] in (tl.float32, tl.float64) and not arithmetic["SPLIT"]


def accumulated(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def trimmed(x: Tensor, grid_size: int) -> tuple[int, int]:
    return x.shape[2] - x.shape[2] % grid_size, x.shape[3] - x.shape[3] % grid_size


def blocks_of(tile: Tile, columns: int) -> dict:
    """Return BLOCK_Y x BLOCK_X = positions, up to 32 columns wide (one per thread of a warp)."""
    across = min(32, tile.positions, triton.next_power_of_2(max(columns, 1)))
    return {"BLOCK_Y": tile.positions // across, "BLOCK_X": across}


def tile_count(images: int, rows: int, columns: int, blocks: dict) -> int:
    return images * triton.cdiv(rows, blocks["BLOCK_Y"]) * triton.cdiv(columns, blocks["BLOCK_X"])


def tile_of(out_channels: int, arithmetic: dict, tile: Tile, plain: Tile) -> Tile:
    """Return ``tile``, or ``plain`` without tensor cores. The interpreter is fastest with a large tile."""
    if INTERPRETED:
        return Tile(256, output_block(out_channels, 64), 8)
    tile = plain if is_plain(arithmetic) else tile
    return tile._replace(outputs=output_block(out_channels, tile.outputs))


def output_block(out_channels: int, largest: int) -> int:
    return min(largest, max(16, triton.next_power_of_2(out_channels)))


def element_block(geometry: Geometry, arithmetic: dict) -> int:
    return 16 if is_plain(arithmetic) and not geometry.paper else 32


def gradient_strides(grad: Tensor) -> tuple[list[int], int]:
    """Return the strides of ``grad`` and their unit: 16 if channels are innermost and aligned to 16, else 1."""
    strides = grad.stride()
    unit = 16 if strides[1] == 1 and not any(strides[dimension] % 16 for dimension in (0, 2, 3)) else 1
    return [stride // unit for stride in strides], unit


def parameters_of(weight: Tensor, bias: Tensor | None, absent: Tensor) -> tuple[Tensor, Tensor]:
    return weight.contiguous(), absent if bias is None else bias.contiguous()


def _memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def empty(x: Tensor, shape: tuple, dtype: torch.dtype, channels_last: bool) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=_memory_format(channels_last))

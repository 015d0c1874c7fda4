"""Checks and normal forms of the arguments that all operators share. Every error names the argument and its value."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from npr_kernels.reference import Anchor

EDGES = ("trim", "error")


def check_grid(grid_size: int, anchor: Anchor) -> None:
    """grid_size: an int >= 2. anchor: an int in 0 .. grid_size**2 - 1, or "mean" or "max"."""
    if not isinstance(grid_size, int) or isinstance(grid_size, bool):
        raise TypeError(f"grid_size must be an int, got {grid_size!r}")
    if grid_size < 2:
        raise ValueError(f"grid_size must be at least 2 (a cell of one pixel has no neighbours), got {grid_size}")
    if isinstance(anchor, str):
        if anchor not in ("mean", "max"):
            raise ValueError(f'anchor must be an index, "mean" or "max", got {anchor!r}')
    elif not isinstance(anchor, int) or isinstance(anchor, bool):
        raise TypeError(f'anchor must be an index, "mean" or "max", got {anchor!r}')
    elif not 0 <= anchor < grid_size**2:
        raise ValueError(
            f"anchor must be in 0 .. {grid_size**2 - 1} (row-major in a cell of grid_size {grid_size}), got {anchor}"
        )


def check_image(x: Tensor, grid_size: int, edge: str) -> None:
    """x: (N, C, H, W), uint8 or floating point, of at least one cell; a multiple of grid_size if edge is "error"."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.dim() != 4:
        raise ValueError(f"x must have the shape (N, C, H, W), got {tuple(x.shape)}")
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise TypeError(f"x must be uint8 (raw pixels) or floating point, got {x.dtype}")
    if edge not in EDGES:
        raise ValueError(f'edge must be "trim" or "error", got {edge!r}')
    height, width = x.shape[-2:]
    if height < grid_size or width < grid_size:
        raise ValueError(f"x is {height}x{width} pixels, smaller than one cell of {grid_size}x{grid_size}")
    if edge == "error" and (height % grid_size or width % grid_size):
        raise ValueError(f'x is {height}x{width} pixels, not a multiple of grid_size {grid_size}; edge="trim" trims it')


def check_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, any_image_dtype: bool = False) -> None:
    """weight: (O, C, KH, KW) with x's C, floating point, of x's dtype unless x is uint8; bias: (O,) or None.

    ``any_image_dtype``: x may be of any floating dtype, as under autocast.
    """
    if weight.dim() != 4:
        raise ValueError(f"weight must have the shape (O, C, KH, KW), got {tuple(weight.shape)}")
    if weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight expects {weight.shape[1]} channels, x has {x.shape[1]}")
    if 0 in weight.shape:
        raise ValueError(f"weight must not be empty, got the shape {tuple(weight.shape)}")
    if not weight.is_floating_point():
        raise TypeError(f"weight must be floating point, got {weight.dtype}")
    if x.dtype not in (torch.uint8, weight.dtype) and not any_image_dtype:
        raise TypeError(f"x is {x.dtype} and weight is {weight.dtype}; x must be uint8 or of weight's dtype")
    if weight.device != x.device:
        raise ValueError(f"weight is on {weight.device}, x on {x.device}")
    if bias is not None:
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must have the shape ({weight.shape[0]},), got {tuple(bias.shape)}")
        if bias.dtype != weight.dtype:
            raise TypeError(f"bias is {bias.dtype} and weight is {weight.dtype}; they must agree")
        if bias.device != x.device:
            raise ValueError(f"bias is on {bias.device}, x on {x.device}")


def check_batch_norm(
    weight: Tensor, training: bool, running_mean: Tensor | None, running_var: Tensor | None, **parameters: Tensor | None
) -> None:
    """Each (O,) on weight's device and of its dtype, or of float32 where weight's is shorter; or None.

    The running statistics are there both or not at all, and there unless ``training``.
    """
    for name, tensor in {**parameters, "running_mean": running_mean, "running_var": running_var}.items():
        if tensor is None:
            continue
        if tensor.shape != weight.shape[:1]:
            raise ValueError(f"{name} must have the shape ({weight.shape[0]},), got {tuple(tensor.shape)}")
        if tensor.dtype != weight.dtype and (tensor.dtype != torch.float32 or weight.dtype.itemsize > 2):
            raise TypeError(f"{name} is {tensor.dtype} and weight is {weight.dtype}")
        if tensor.device != weight.device:
            raise ValueError(f"{name} is on {tensor.device}, weight on {weight.device}")
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must be given both, or neither")
    if not training and running_mean is None:
        raise ValueError("running_mean must be given unless training, got None")


def pair(name: str, value: int | Sequence[int], minimum: int) -> tuple[int, int]:
    """An int or a pair of ints, as a pair (height, width), each at least ``minimum``."""
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) != 2 or not all(isinstance(v, int) and v >= minimum for v in values):
        raise ValueError(f"{name} must be an int or a pair of ints of at least {minimum}, got {value!r}")
    return values


def scale_factors(scale: float | Sequence[float], channels: int) -> tuple[float, ...]:
    """One finite factor for all channels, or one per channel, as a tuple of length 1 or C."""
    if isinstance(scale, Tensor):
        raise TypeError("scale must be a float or a sequence of floats, got a tensor (use scale.tolist())")
    factors = tuple(map(float, scale)) if isinstance(scale, Sequence) else (float(scale),)
    if len(factors) != 1 and len(factors) != channels:
        raise ValueError(f"scale must be one factor or one per channel ({channels}), got {len(factors)}")
    for factor in factors:
        if not -math.inf < factor < math.inf:  # math.isfinite cannot be traced
            raise ValueError(f"scale must be finite, got {factor}")
    return factors


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Length of a convolution's or a pooling's output along one dimension."""
    return (size + 2 * padding - kernel) // stride + 1


def convolution_output_size(
    x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], grid_size: int
) -> tuple[int, int]:
    """(H_out, W_out) of ``npr_conv2d``, from the trimmed image."""
    height, width = (n - n % grid_size for n in x.shape[-2:])
    return (
        output_size(height, weight.shape[2], stride[0], padding[0]),
        output_size(width, weight.shape[3], stride[1], padding[1]),
    )


def check_output_size(
    x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], grid_size: int
) -> None:
    """The kernel must fit into the padded NPR map."""
    height, width = (n - n % grid_size for n in x.shape[-2:])
    if height + 2 * padding[0] < weight.shape[2] or width + 2 * padding[1] < weight.shape[3]:
        raise ValueError(
            f"weight's kernel of {weight.shape[2]}x{weight.shape[3]} does not fit into an NPR map of "
            f"{height}x{width} with padding {padding}"
        )

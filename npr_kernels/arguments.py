"""Checks the arguments that the operators share and normalises them. Every error names the argument and its value."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from npr_kernels.reference import Anchor

EDGES = ("trim", "error")


def grid(grid_size: int, anchor: Anchor) -> tuple[int, Anchor]:
    """Return grid_size, an int >= 2, and anchor, an int in 0 .. grid_size**2 - 1, or "mean" or "max"."""
    size = _integer(grid_size)
    if size is None:
        raise TypeError(f"grid_size must be an int, got {grid_size!r}")
    if size < 2:
        raise ValueError(f"grid_size must be at least 2 (a cell of one pixel has no neighbours), got {size}")
    if isinstance(anchor, str):
        if anchor not in ("mean", "max"):
            raise ValueError(f'anchor must be an index, "mean" or "max", got {anchor!r}')
        return size, anchor
    index = _integer(anchor)
    if index is None:
        raise TypeError(f'anchor must be an index, "mean" or "max", got {anchor!r}')
    if not 0 <= index < size**2:
        raise ValueError(f"anchor must be in 0 .. {size**2 - 1} (row-major in a cell of grid_size {size}), got {index}")
    return size, index


def _integer(value: Any) -> int | None:
    """Return an integer of any kind, such as NumPy's, as an int; None for anything else."""
    if isinstance(value, int | torch.SymInt):
        return None if isinstance(value, bool) else cast(int, value)
    return operator.index(value) if hasattr(value, "__index__") and not isinstance(value, Tensor) else None


def check_tensors(**tensors: object) -> None:
    """Raise TypeError for an argument that is no tensor."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def check_image(x: Tensor, grid_size: int, edge: str) -> None:
    """Require x (N, C, H, W), uint8 or floating point, of at least one cell, and of whole cells if edge is "error"."""
    check_tensors(x=x)
    if x.dim() != 4:
        raise ValueError(f"x must have the shape (N, C, H, W), got {tuple(x.shape)}")
    if x.layout != torch.strided:
        raise TypeError(f"x must be a dense tensor, got {x.layout} (use x.to_dense())")
    if x.dtype != torch.uint8 and not (x.is_floating_point() and x.dtype.itemsize >= 2):
        raise TypeError(f"x must be uint8 (raw pixels) or floating point of at least 16 bits, got {x.dtype}")
    if edge not in EDGES:
        raise ValueError(f'edge must be "trim" or "error", got {edge!r}')
    height, width = x.shape[-2:]
    if height < grid_size or width < grid_size:
        raise ValueError(f"x is {height}x{width} pixels, smaller than one cell of {grid_size}x{grid_size}")
    if edge == "error" and (height % grid_size or width % grid_size):
        raise ValueError(f'x is {height}x{width} pixels, not a multiple of grid_size {grid_size}; edge="trim" trims it')


def check_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, any_image_dtype: bool = False) -> None:
    """Require weight (O, C, KH, KW) with x's channels and, unless x is uint8, x's dtype; and bias (O,) or None.

    ``any_image_dtype`` allows any floating point dtype for x, as under autocast.
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
    """Require tensors (O,) on weight's device, or None. Their dtype is weight's, or float32 if weight's is shorter.

    Both running statistics must be given, or neither. Without ``training`` they must be given.
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
    """Return an int or a pair of ints as a pair (height, width), each at least ``minimum``."""
    first, second = _integer(value), _integer(value)
    if first is None and isinstance(value, Iterable) and not isinstance(value, str) and len(given := tuple(value)) == 2:
        first, second = map(_integer, given)
    if first is None or second is None or first < minimum or second < minimum:
        raise ValueError(f"{name} must be an int or a pair of ints of at least {minimum}, got {value!r}")
    return first, second


def scale_factors(
    scale: float | Sequence[float], pixel_std: Sequence[float] | None, channels: int
) -> tuple[float, ...]:
    """Return one finite factor for all channels, or one per channel, as a tuple of length 1 or C.

    With ``pixel_std`` they are divided by 255 times the standard deviations.
    """
    if isinstance(scale, Tensor):
        raise TypeError("scale must be a float or a sequence of floats, got a tensor (use scale.tolist())")
    factors = tuple(map(float, scale)) if isinstance(scale, Iterable) else (float(scale),)
    if len(factors) != 1 and len(factors) != channels:
        raise ValueError(f"scale must be one factor or one per channel ({channels}), got {len(factors)}")
    if pixel_std is not None:
        deviations = standard_deviations(pixel_std, channels)
        factors = factors * channels if len(factors) == 1 else factors
        factors = tuple(factor / (255 * std) for factor, std in zip(factors, deviations, strict=True))
    for factor in factors:
        if not -math.inf < factor < math.inf:  # math.isfinite cannot be traced
            raise ValueError(f"scale must be finite, got {factor}")
    return factors


def standard_deviations(pixel_std: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return ``pixel_std`` as a tuple of C positive numbers."""
    deviations = tuple(map(float, pixel_std))
    if len(deviations) != channels or not all(0 < std < math.inf for std in deviations):
        raise ValueError(f"pixel_std must be {channels} positive numbers, got {pixel_std!r}")
    return deviations


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Return the length of the output of a convolution or a pooling along one dimension."""
    return (size + 2 * padding - kernel) // stride + 1


def convolution_output_size(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], grid_size: int
) -> tuple[int, int]:
    """Return (H_out, W_out) of ``npr_conv2d``, from the trimmed image."""
    height, width = (n - n % grid_size for n in x.shape[-2:])
    return (
        output_size(height, kernel[0], stride[0], padding[0]),
        output_size(width, kernel[1], stride[1], padding[1]),
    )


def check_output_size(x: Tensor, weight: Tensor, padding: tuple[int, int], grid_size: int) -> None:
    """Raise ValueError if the kernel does not fit into the padded NPR map."""
    height, width = (n - n % grid_size for n in x.shape[-2:])
    if height + 2 * padding[0] < weight.shape[2] or width + 2 * padding[1] < weight.shape[3]:
        raise ValueError(
            f"weight's kernel of {weight.shape[2]}x{weight.shape[3]} does not fit into an NPR map of "
            f"{height}x{width} with padding {padding}"
        )

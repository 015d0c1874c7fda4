"""What a backend is told of a call."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npr_kernels.reference import Anchor


@dataclass(frozen=True)
class Geometry:
    """Of a convolution: what a backend that serves only some must know. Pairs are (height, width)."""

    channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    scale: tuple[float, ...] = (2 / 3,)


@dataclass(frozen=True)
class Call:
    """All of a call but its sizes: what a backend must know to say whether it can serve it, and to be tried on it."""

    operator: str
    device: torch.device
    x_dtype: torch.dtype
    weight_dtype: torch.dtype
    grid_size: int
    anchor: Anchor
    geometry: Geometry | None = None  # None: of no convolution, or one that any backend would serve
    channels_last: bool = True  # how x lies in memory
    image_gradient: bool = False  # whether a backward to the image may follow
    parameter_gradients: bool = False

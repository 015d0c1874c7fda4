"""A call as plain data, with random tensors for it: for the self-test of a backend (proof.py), tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from npr_kernels import arguments
from npr_kernels.backends.base import Convolution


@dataclass(frozen=True)
class Case:
    """One call of npr_conv2d or npr_stem. ``dtype`` is that of the image."""

    grid_size: int = 2
    anchor: int | str = 0
    batch: int = 2
    height: int = 12
    width: int = 16
    channels: int = 3
    out_channels: int = 8
    kernel: tuple[int, int] = (3, 3)
    stride: int | tuple[int, int] = 2
    padding: int | tuple[int, int] = 1
    bias: bool = True
    dtype: torch.dtype = torch.float32
    weight_dtype: torch.dtype | None = None  # None: the dtype of the image, or float32 for uint8
    layout: str = "channels_last"

    def __str__(self) -> str:
        changed = [
            f"{name}={str(getattr(self, name)).removeprefix('torch.')}"
            for name in self.__dataclass_fields__
            if getattr(self, name) != getattr(DEFAULT, name)
        ]
        return ",".join(changed).replace(" ", "") or "default"

    @property
    def parameter_dtype(self) -> torch.dtype:
        return self.weight_dtype or (torch.float32 if self.dtype == torch.uint8 else self.dtype)

    @property
    def options(self) -> dict:
        scale = [2 / 3 / (255 * std) for std in torch.linspace(0.2, 0.3, self.channels).tolist()]
        return {
            "stride": self.stride,
            "padding": self.padding,
            "grid_size": self.grid_size,
            "anchor": self.anchor,
            "scale": scale if self.dtype == torch.uint8 else 2 / 3,
        }

    @property
    def convolution(self) -> Convolution:
        """The convolution as the backends' operators take it."""
        stride, padding = arguments.pair("stride", self.stride, 1), arguments.pair("padding", self.padding, 0)
        scale = arguments.scale_factors(self.options["scale"], None, self.channels)
        return Convolution(stride, padding, self.grid_size, self.anchor, scale)

    def tensors(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor | None]:
        """Return (x, weight, bias), with the same values in every call and on every device."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, self.channels, self.height, self.width)
        x = _laid_out(shape, self.layout, self.dtype, generator)
        weight = torch.randn(self.out_channels, self.channels, *self.kernel, generator=generator, dtype=torch.float64)
        bias = torch.randn(self.out_channels, generator=generator, dtype=torch.float64)
        dtype = self.parameter_dtype
        placed = on(device, x, weight.to(dtype), bias.to(dtype) if self.bias else None)
        return cast(tuple[Tensor, Tensor, Tensor | None], placed)


def on(device: torch.device | str, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the tensors on ``device``. Copies keep their strides, also those of expanded tensors."""

    def moved(tensor: Tensor) -> Tensor:
        copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        shape = [n if stride else 1 for n, stride in zip(tensor.shape, tensor.stride(), strict=True)]
        once = copy.as_strided(shape, copy.stride())  # every element of an expanded tensor once
        once.copy_(tensor.as_strided(shape, tensor.stride(), tensor.storage_offset()))
        return copy

    return tuple(t if t is None or t.device == torch.device(device) else moved(t) for t in tensors)


def _laid_out(shape: tuple, layout: str, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    def draw(*size: int) -> Tensor:
        if dtype == torch.uint8:
            return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    n, c, h, w = shape
    if layout == "contiguous":
        return draw(n, c, h, w)
    if layout == "channels_last":
        return draw(n, h, w, c).permute(0, 3, 1, 2)
    if layout == "sliced":  # a crop of a larger channels_last image, every second row
        return draw(n, 2 * h + 3, w + 5, c)[:, 2 : 2 * h + 2 : 2, 3 : w + 3].permute(0, 3, 1, 2)
    if layout == "offset":  # rows of whole words; the first pixel is in the middle of a word
        return draw(n, h, -(-w // 4) * 4 + 4, c)[:, :, 1 : w + 1].permute(0, 3, 1, 2)
    if layout == "pitched":  # rows padded to whole words
        return draw(n, h, -(-w // 4) * 4 + 4, c)[:, :, :w].permute(0, 3, 1, 2)
    if layout == "expanded":  # one image, repeated without memory
        return draw(1, c, h, w).expand(n, c, h, w)
    if layout == "permuted":  # height innermost
        return draw(n, w, c, h).permute(0, 2, 3, 1)
    raise ValueError(layout)


DEFAULT = Case()

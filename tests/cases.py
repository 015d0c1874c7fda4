"""The table of cases that every backend must get right, and the tensors for them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from npr_kernels import arguments

IMAGE_DTYPES = (torch.uint8, torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded", "permuted", "offset", "pitched")


@dataclass(frozen=True)
class Case:
    """One call of npr_conv2d or npr_stem; ``dtype`` is the image's."""

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
    weight_dtype: torch.dtype | None = None  # None: the image's, float32 for uint8
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
    def convolution(self) -> tuple:
        """What the backends' operators take: (stride, padding, grid_size, anchor, scale) in normal form."""
        stride, padding = arguments.pair("stride", self.stride, 1), arguments.pair("padding", self.padding, 0)
        return (
            stride,
            padding,
            self.grid_size,
            self.anchor,
            arguments.scale_factors(self.options["scale"], self.channels),
        )

    def tensors(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor | None]:
        """(x, weight, bias), the same for every call and on every device."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, self.channels, self.height, self.width)
        x = _laid_out(shape, self.layout, self.dtype, generator)
        weight = torch.randn(self.out_channels, self.channels, *self.kernel, generator=generator, dtype=torch.float64)
        bias = torch.randn(self.out_channels, generator=generator, dtype=torch.float64)
        dtype = self.parameter_dtype
        return on(device, x, weight.to(dtype), bias.to(dtype) if self.bias else None)


def on(device: torch.device | str, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors on ``device``; copies keep their strides, expanded ones too."""

    def moved(tensor: Tensor) -> Tensor:
        copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        shape = [n if stride else 1 for n, stride in zip(tensor.shape, tensor.stride(), strict=True)]
        once = copy.as_strided(shape, copy.stride())  # every element of an expanded tensor only once
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
    if layout == "offset":  # rows of whole words, the first pixel in the middle of one
        return draw(n, h, -(-w // 4) * 4 + 4, c)[:, :, 1 : w + 1].permute(0, 3, 1, 2)
    if layout == "pitched":  # rows padded to whole words
        return draw(n, h, -(-w // 4) * 4 + 4, c)[:, :, :w].permute(0, 3, 1, 2)
    if layout == "expanded":  # one image, repeated without memory
        return draw(1, c, h, w).expand(n, c, h, w)
    if layout == "permuted":  # height innermost
        return draw(n, w, c, h).permute(0, 2, 3, 1)
    raise ValueError(layout)


DEFAULT = Case()

GRIDS = [(size, anchor) for size in (2, 3, 4) for anchor in (*range(size**2), "mean", "max")]


def _table() -> list[Case]:
    cases = [Case(grid_size=g, anchor=a, height=13, width=17, dtype=d) for g, a in GRIDS for d in IMAGE_DTYPES]
    cases += [Case(dtype=d, layout=layout, out_channels=64) for d in IMAGE_DTYPES for layout in LAYOUTS]
    cases += [Case(dtype=torch.uint8, weight_dtype=d, out_channels=64) for d in IMAGE_DTYPES[1:]]
    cases += [Case(dtype=d, layout="pitched", width=w) for d in (torch.uint8, torch.float32) for w in (13, 14, 19)]
    cases += [replace(DEFAULT, batch=0, dtype=d) for d in IMAGE_DTYPES]
    low = {"dtype": torch.uint8, "weight_dtype": torch.bfloat16}  # products in bfloat16, where the processor has them
    cases += [Case(grid_size=g, anchor=a, height=13, width=17, **low) for g, a in GRIDS]
    for dtypes in ({"dtype": torch.uint8}, low, {"dtype": torch.float32}, {"dtype": torch.bfloat16}):
        cases += [Case(**dtypes, height=h, width=w) for h, w in ((2, 2), (2, 9), (3, 2), (5, 5), (6, 7), (33, 66))]
        cases += [Case(**dtypes, out_channels=o, bias=False) for o in (1, 15, 33, 64, 65, 130)]
        cases += [Case(**dtypes, channels=c, layout=layout) for c in (1, 2, 4, 7) for layout in LAYOUTS[:2]]
        for kernel, stride, padding in (
            ((1, 1), 1, 0),
            ((1, 1), 2, 0),  # with the paper's anchor every tap sees the anchor: the result is the bias
            ((2, 2), 2, 0),
            ((3, 3), 1, 1),
            ((3, 3), 2, 0),
            ((3, 3), 3, 2),
            ((4, 4), 4, 0),
            ((5, 3), (2, 1), (0, 2)),
            ((7, 7), 2, 3),
            ((3, 3), 2, 5),
        ):
            cases.append(Case(**dtypes, kernel=kernel, stride=stride, padding=padding))
    return list(dict.fromkeys(cases))


TABLE = _table()

"""The tolerance rule, and the table of test cases for every backend.

Tests, benchmarks and the self-test on the user's machine (:mod:`npr_kernels.backends.proof`) use both.

A result is correct if its largest error against float64 is at most twice that of eager PyTorch in the same dtype, plus
one rounding. For float64 results there is no better reference, so a few roundings are allowed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from npr_kernels import arguments
from npr_kernels.backends.base import Convolution

# ---- the tolerance rule


def error(result: Tensor, truth: Tensor) -> float:
    """Return the largest absolute difference, relative to the largest magnitude of ``truth``.

    It is infinite unless NaN and inf are at the same places in both.

    Raises:
        AssertionError: The shapes differ.
    """
    result, truth = result.detach().double(), truth.detach().double()
    if result.shape != truth.shape:
        raise AssertionError(f"shape {tuple(result.shape)} instead of {tuple(truth.shape)}")
    finite = truth.isfinite()
    if not torch.equal(finite, result.isfinite()) or not torch.equal(truth.isnan(), result.isnan()):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = truth[finite].abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return ((result - truth)[finite].abs().max() / scale).item()


def allowed(eager_error: float, dtype: torch.dtype) -> float:
    """Return the largest allowed error of a result of ``dtype``, given eager PyTorch's error in that dtype."""
    roundings = 16 if dtype == torch.float64 else 1
    return 2 * eager_error + roundings * torch.finfo(dtype).eps


def assert_close(result: Tensor, eager: Tensor, truth: Tensor) -> None:
    """Require that ``result`` follows the tolerance rule.

    ``eager`` is PyTorch's result in the same dtype, ``truth`` the float64 result.

    Raises:
        AssertionError: The error is too large; the message has the error and the limit.
    """
    if result.dtype != eager.dtype:
        raise AssertionError(f"dtype {result.dtype} instead of {eager.dtype}")
    difference, limit = error(result, truth), allowed(error(eager, truth), result.dtype)
    if difference > limit:
        raise AssertionError(f"error {difference:.3g} against float64, at most {limit:.3g} is allowed")


def pool_at(argmax: Tensor) -> Callable[[Tensor], Tensor]:
    """Return ReLU and max-pool as a function of the convolution's output that takes the values at ``argmax``.

    Which of nearly equal values is the maximum depends on rounding, so gradients are compared for a given choice.
    """
    positive = argmax != 9
    position = argmax.long().where(positive, 4)  # the middle of a window is never outside
    row, column = (2 * torch.arange(n, device=argmax.device) - 1 for n in argmax.shape[2:])

    def pool(y: Tensor) -> Tensor:
        chosen = (row[:, None] + position // 3) * y.shape[3] + column + position % 3
        return y.flatten(2).gather(2, chosen.flatten(2)).view_as(chosen) * positive

    return pool


# ---- the cases

IMAGE_DTYPES = (torch.uint8, torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded", "permuted", "offset", "pitched")


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

GRIDS = [(size, anchor) for size in (2, 3, 4) for anchor in (*range(size**2), "mean", "max")]


def _table() -> list[Case]:
    # Products in bfloat16, if the processor has them.
    low: dict[str, Any] = {"dtype": torch.uint8, "weight_dtype": torch.bfloat16}
    types: list[dict[str, Any]] = [*({"dtype": d} for d in IMAGE_DTYPES), low]
    turns = itertools.cycle(types)
    cases = []
    for grid_size, anchor in GRIDS:  # in larger cells, the anchors between the first and the last take turns
        all_types = grid_size == 2 or anchor in (0, grid_size**2 - 1, "mean", "max")
        for dtypes in types if all_types else [next(turns)]:
            cases.append(Case(grid_size=grid_size, anchor=anchor, height=13, width=17, **dtypes))
    cases += [Case(dtype=d, layout=layout, out_channels=64) for d in IMAGE_DTYPES for layout in LAYOUTS]
    cases += [Case(dtype=torch.uint8, weight_dtype=d, out_channels=64) for d in IMAGE_DTYPES[1:]]
    cases += [Case(dtype=d, layout="pitched", width=w) for d in (torch.uint8, torch.float32) for w in (13, 14, 19)]
    cases += [replace(DEFAULT, batch=0, dtype=d) for d in IMAGE_DTYPES]
    several: list[dict[str, Any]] = [{"dtype": torch.uint8}, low, {"dtype": torch.float32}, {"dtype": torch.bfloat16}]
    for number, dtypes in enumerate(several):
        cases += [Case(**dtypes, height=h, width=w) for h, w in ((2, 2), (2, 9), (3, 2), (5, 5), (6, 7), (33, 66))]
        cases += [Case(**dtypes, out_channels=o, bias=False) for o in (1, 15, 33, 64, 65, 130)]
        cases += [Case(**dtypes, channels=c, layout=LAYOUTS[(number + i) % 2]) for i, c in enumerate((1, 2, 4, 7))]
        for kernel, stride, padding in (
            ((1, 1), 1, 0),
            ((1, 1), 2, 0),  # with the paper's anchor, every tap sees the anchor, so the result is the bias
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

"""``python -m benchmarks.kernels``: every kernel of the stem on its own, on full batches, from inputs in turn.

The sets of inputs together are larger than the GPU's cache three times over, and results are written to memory of their
own: times are those of data that comes from memory and goes there. Of torch.compile there is nothing here, so that the
table is done in two minutes; ``benchmarks.ops`` has it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from benchmarks import command, peers
from benchmarks.cases import NAMES, OUT_CHANNELS, PRODUCTS, fused
from benchmarks.harness import OURS, REFERENCE, Benchmark, Contender, Parity
from npr_kernels import reference
from npr_kernels.backends import registry
from npr_kernels.testing import allowed, error
from npr_model.detectors.base import IMAGENET_STD

PIECE = 32  # images whose float64 results are computed at once
CACHES = 3  # times the GPU's cache that the inputs exceed
ROUNDINGS = 4  # of the largest value, that a window's maximum may lie above the value chosen for it
NAMES = {**NAMES, torch.float16: "float16"}
TITLES = {
    "stem": "stem",
    "argmax": "stem with argmax",
    "moments": "moments",
    "backward": "sparse backward",
    "conv": "npr_conv2d",
}


@dataclass(frozen=True)
class KernelCase:
    """One operator (of TITLES), 3 -> 64 channels, channels_last; ``x_dtype``: the image's, ``dtype``: the result's.

    "backward" takes the pooled gradient in ``dtype``, the maxima's positions and the image to the gradients of weight
    and bias.
    """

    operator: str
    x_dtype: torch.dtype
    dtype: torch.dtype
    batch: int = 256
    size: int = 256

    def __str__(self) -> str:
        dtypes = NAMES[self.x_dtype] + (f" -> {NAMES[self.dtype]}" if self.operator != "moments" else "")
        return f"{TITLES[self.operator]}, {dtypes}, {self.batch}x3x{self.size}x{self.size}"

    @property
    def convolution(self) -> tuple:
        scale = tuple(2 / 3 / (255 * std) for std in IMAGENET_STD) if self.x_dtype == torch.uint8 else (2 / 3,)
        return (2, 2), (1, 1), 2, 0, scale

    @property
    def _positions(self) -> int:
        return self.batch * (self.size // 2) ** 2

    @property
    def flops(self) -> float:
        """Operations needed: a multiplication and an addition for each product."""
        if self.operator == "moments":
            return 1.0 * self._positions * PRODUCTS * (PRODUCTS + 1)
        return 2.0 * self._positions * PRODUCTS * OUT_CHANNELS / (4 if self.operator == "backward" else 1)

    @property
    def bytes(self) -> float:
        """The image, and what is as large as the result: read or written once."""
        image = self.batch * 3 * self.size**2 * self.x_dtype.itemsize
        results = self._positions * OUT_CHANNELS
        return (
            image
            + {
                "stem": results / 4 * self.dtype.itemsize,
                "argmax": results / 4 * (self.dtype.itemsize + 1),
                "moments": 0,
                "backward": results / 4 * (self.dtype.itemsize + 1),
                "conv": results * self.dtype.itemsize,
            }[self.operator]
        )

    def images(self, count: int, device: torch.device) -> list[Tensor]:
        """``count`` batches of random pixels."""
        generator = torch.Generator(device).manual_seed(0)
        shape = (self.batch, self.size, self.size, 3)
        batches = (
            torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
            for _ in range(count)
        )
        return [x if self.x_dtype == torch.uint8 else ((x / 255 - 0.45) / 0.225).to(self.x_dtype) for x in batches]

    def parameters(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(weight, bias) in ``dtype``."""
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(OUT_CHANNELS, 3, 3, 3, generator=generator) * 0.3
        bias = torch.randn(OUT_CHANNELS, generator=generator) * 0.3
        return weight.to(device, self.dtype), bias.to(device, self.dtype)

    def factors(self, device: torch.device) -> Tensor:
        """The scale as a float64 tensor."""
        return torch.tensor(self.convolution[-1], dtype=torch.float64, device=device).view(1, -1, 1, 1)

    def benchmark(self, device: torch.device) -> Benchmark:
        cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
        image_bytes = self.batch * 3 * self.size**2 * self.x_dtype.itemsize
        images = self.images(max(2, 1 + int(CACHES * cache / image_bytes)), device)
        operator = {"moments": self._moments, "backward": self._backward}.get(self.operator, self._forward)
        contenders, judge = operator(images)
        return Benchmark(str(self), contenders, judge, self.flops, self.bytes, captured=True, images=self.batch)

    def _served_by(self, device: torch.device) -> list[str]:
        name = "npr_conv2d" if self.operator == "conv" else "npr_stem"
        return fused(registry.Call(name, device, self.x_dtype, self.dtype, 2, 0))

    # --- the convolution, and the stem with and without the positions of its maxima ---

    def _forward(self, images: list[Tensor]) -> tuple[list[Contender], Callable]:
        weight, bias = self.parameters(images[0].device)
        factors = self.factors(images[0].device)

        @functools.cache
        def constants(dtype: torch.dtype) -> tuple[Tensor, ...]:
            return weight.to(dtype, memory_format=torch.channels_last), bias.to(dtype), factors.to(dtype)

        def convolved(x: Tensor, dtype: torch.dtype) -> Tensor:
            """``reference.npr_conv2d``, with constants that are on the GPU before a graph is captured."""
            weight, bias, factors = constants(dtype)
            return F.conv2d(reference.npr(x, dtype=dtype) * factors, weight, bias, 2, 1)

        def eager(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
            return self._pooled(convolved(x, dtype))

        def ours(x: Tensor, backend: str) -> tuple[Tensor, ...]:
            name = {"stem": "npr_stem", "argmax": "npr_stem_argmax", "conv": "npr_conv2d"}[self.operator]
            found = getattr(registry.get(backend), name)(x, weight, bias, *self.convolution)
            return found if isinstance(found, tuple) else (found,)

        composed = peers.Composed(weight, bias, self.convolution[-1], pool=False)

        def in_dtype(dtype: torch.dtype) -> Callable:
            converted = functools.cache(lambda: [x.to(dtype) if x.is_floating_point() else x for x in images])
            return lambda: calls(functools.partial(eager, dtype=dtype), converted())

        contenders = [
            Contender(f"{OURS} {b}", lambda b=b: calls(functools.partial(ours, backend=b), images), self.dtype)
            for b in self._served_by(images[0].device)
        ]
        contenders.append(Contender(REFERENCE, in_dtype(torch.float32), torch.float32))
        if self.dtype != torch.float32:
            contenders.append(Contender(f"{REFERENCE} {NAMES[self.dtype]}", in_dtype(self.dtype), self.dtype))
        contenders.append(
            Contender("composed 4x4", lambda: calls(lambda x: self._pooled(composed(x)), images), self.dtype)
        )

        @torch.inference_mode()
        def judge(results: tuple[Tensor, ...], dtype: torch.dtype) -> Parity:
            assert results[0].dtype == dtype, results[0].dtype
            errors, limits = [], []
            for first in range(0, self.batch, PIECE):
                piece = slice(first, first + PIECE)
                x = images[0][piece]
                y = convolved(x, torch.float64)
                truth = self._pooled(y)[0]
                errors.append(error(results[0][piece], truth))
                limits.append(error(eager(x, dtype)[0], truth))
                if results[-1].dtype == torch.uint8:
                    lost = lost_by(results[0][piece], results[1][piece], y, truth)
                    if lost > ROUNDINGS * torch.finfo(dtype).eps:
                        return Parity(lost, ROUNDINGS * torch.finfo(dtype).eps)
            return Parity(max(errors), allowed(max(limits), dtype))

        return contenders, judge

    def _pooled(self, y: Tensor) -> tuple[Tensor, ...]:
        """What the operator makes of the convolution's output; PyTorch's positions are indices, in 64 bits."""
        if self.operator == "conv":
            return (y,)
        pooled = F.max_pool2d(F.relu(y), 3, 2, 1, return_indices=self.operator == "argmax")
        return pooled if isinstance(pooled, tuple) else (pooled,)

    # --- the moments of the patches ---

    def _moments(self, images: list[Tensor]) -> tuple[list[Contender], Callable]:
        factors = self.factors(images[0].device)

        def eager(x: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
            patches = F.unfold(reference.npr(x, dtype=dtype) * factors.to(dtype), 3, stride=2, padding=1)
            return patches.sum((0, 2)), torch.bmm(patches, patches.mT).sum(0)

        def ours(x: Tensor, backend: str) -> tuple[Tensor, Tensor]:
            return registry.get(backend).npr_moments(x, (3, 3), *self.convolution)

        contenders = [
            Contender(f"{OURS} {b}", lambda b=b: calls(functools.partial(ours, backend=b), images))
            for b in self._served_by(images[0].device)
        ]
        contenders.append(Contender(REFERENCE, lambda: calls(eager, images)))
        return contenders, against(lambda: sums(eager(x, torch.float64) for x in images[0].split(PIECE)), eager, images)

    # --- the gradients to weight and bias, from the pooled gradient ---

    def _backward(self, images: list[Tensor]) -> tuple[list[Contender], Callable]:
        device = images[0].device
        weight, bias = (p.float() for p in self.parameters(device))
        generator = torch.Generator(device).manual_seed(1)
        factors = self.factors(device).float()
        saved, inputs = [], []
        with torch.inference_mode():
            for x in images:
                seen = reference.npr(x, dtype=torch.float32) * factors
                y = F.relu(F.conv2d(seen, weight, bias, 2, 1))
                pooled, indices = F.max_pool2d(y, 3, 2, 1, return_indices=True)
                grad = torch.randn(pooled.permute(0, 2, 3, 1).shape, generator=generator, device=device)
                grad = grad.to(self.dtype).permute(0, 3, 1, 2)
                saved.append((grad, indices, y, seen))
                inputs.append((grad, positions(indices, pooled, y.shape[-1]), x))

        def eager(tensors: tuple[Tensor, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
            """What autograd does, with the tensors that it saves."""
            grad, indices, y, seen = (t if t.dtype == torch.int64 else t.to(dtype) for t in tensors)
            grad = torch.ops.aten.max_pool2d_with_indices_backward(
                grad, y, [3, 3], [2, 2], [1, 1], [1, 1], False, indices
            )
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
            return torch.ops.aten.convolution_backward(
                grad, seen, weight.to(dtype), [OUT_CHANNELS], [2, 2], [1, 1], [1, 1], False, [0, 0], 1,
                [False, True, True],
            )[1:]  # fmt: skip

        def ours(tensors: tuple[Tensor, ...], backend: str) -> tuple[Tensor, Tensor]:
            return registry.get(backend).npr_stem_grad_weight(*tensors[:3], (3, 3), *self.convolution)

        def in_dtype(dtype: torch.dtype) -> Callable:
            def build() -> list:
                converted = [tuple(t if t.dtype == torch.int64 else t.to(dtype) for t in each) for each in saved]
                return calls(functools.partial(eager, dtype=dtype), converted)

            return build

        contenders = [
            Contender(f"{OURS} {b}", lambda b=b: calls(functools.partial(ours, backend=b), inputs))
            for b in self._served_by(device)
        ]
        contenders.append(Contender(REFERENCE, in_dtype(torch.float32)))
        if self.dtype != torch.float32:
            contenders.append(Contender(f"{REFERENCE} {NAMES[self.dtype]}", in_dtype(self.dtype), self.dtype))

        def truth() -> tuple[Tensor, ...]:
            pieces = zip(*(t.split(PIECE) for t in saved[0]), strict=True)
            return sums(eager(piece, torch.float64) for piece in pieces)

        return contenders, against(truth, eager, saved)


def calls(function: Callable, inputs: list) -> list[Callable]:
    """One call of ``function`` for each of the inputs."""
    return [torch.inference_mode()(functools.partial(function, each)) for each in inputs]


def sums(results: Iterator[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The results of a batch from those of its pieces."""
    return tuple(sum(parts) for parts in zip(*results, strict=True))


def against(truth: Callable, eager: Callable, inputs: list) -> Callable[[tuple[Tensor, ...], torch.dtype], Parity]:
    """A judge of sums over the batch; those of ours are held to the error of float32, whatever they are kept in."""
    truth = functools.cache(torch.inference_mode()(truth))

    @functools.cache
    @torch.inference_mode()
    def limits(dtype: torch.dtype) -> list[float]:
        return [allowed(error(r, t), dtype) for r, t in zip(eager(inputs[0], dtype), truth(), strict=True)]

    @torch.inference_mode()
    def judge(results: tuple[Tensor, ...], dtype: torch.dtype) -> Parity:
        errors = [error(r.view_as(t), t) for r, t in zip(results, truth(), strict=True)]
        return Parity(*max(zip(errors, limits(dtype), strict=True), key=lambda pair: pair[0] / pair[1]))

    return judge


def positions(indices: Tensor, pooled: Tensor, width: int) -> Tensor:
    """PyTorch's indices of maxima as the kernels keep them: 0..8 in the window, 9 where nothing is positive."""
    rows, columns = (2 * torch.arange(n, device=indices.device) - 1 for n in indices.shape[2:])
    inside = (indices // width - rows[:, None]) * 3 + indices % width - columns
    return inside.where(pooled > 0, 9).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def lost_by(pooled: Tensor, argmax: Tensor, y: Tensor, truth: Tensor) -> float:
    """How much less than its window's maximum the value at ``argmax`` is, at most, as a share of the largest value.

    ``y``: the exact output of the convolution, ``truth`` the exact pooled one. Infinite where a position is outside of
    the image, or says that nothing is positive where ``pooled`` is, or the other way round.
    """
    rows, columns = (2 * torch.arange(n, device=y.device) - 1 for n in pooled.shape[2:])
    positive, position = argmax != 9, argmax.long()
    row, column = rows[:, None] + position // 3, columns + position % 3
    inside = (row >= 0) & (row < y.shape[2]) & (column >= 0) & (column < y.shape[3]) & (argmax < 9)
    if not torch.equal(positive, pooled != 0) or not inside[positive].all():
        return float("inf")
    index = (row * y.shape[3] + column).where(positive, 0)
    chosen = y.flatten(2).gather(2, index.flatten(2)).view_as(truth)
    return ((truth - chosen) * positive).max().item() / truth.max().item()


def _table() -> list[KernelCase]:
    uint8, float32, bfloat16, float16 = torch.uint8, torch.float32, torch.bfloat16, torch.float16
    return [
        KernelCase("stem", uint8, bfloat16),
        KernelCase("argmax", uint8, bfloat16),
        KernelCase("moments", uint8, bfloat16),
        KernelCase("backward", uint8, bfloat16),
        KernelCase("stem", uint8, float32),
        KernelCase("stem", uint8, float16),
        KernelCase("stem", bfloat16, bfloat16),
        KernelCase("conv", uint8, bfloat16),
    ]


TABLE = _table()


def benchmarks(table: list[KernelCase], device: torch.device) -> Iterator[Benchmark]:
    for case in table:
        yield case.benchmark(device)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def main(
    device: command.Device = "cuda",
    json_file: command.JsonFile = None,
    seconds: command.Seconds = 1.5,
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 256,
    size: Annotated[int, typer.Option(min=4, help="Height and width of an image.")] = 256,
    only: Annotated[str, typer.Option(metavar="REGEX", help="Run only the cases whose name has a match.")] = "",
) -> None:
    """Stem, argmax stem, moments, sparse backward and npr_conv2d, each against eager and the composed convolution."""
    target = command.checked_device(device)
    if size % 4:
        command.refuse(f"--size must be a multiple of 4, got {size}")
    table = [replace(case, batch=batch, size=size) for case in TABLE]
    chosen = command.chosen(only, [str(case) for case in table], "cases")
    command.checked_json(json_file)
    table = [case for case in table if str(case) in chosen]
    command.finish(benchmarks(table, target), target, seconds, json_file)


if __name__ == "__main__":
    typer.run(main)

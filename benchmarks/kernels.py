"""``python -m benchmarks.kernels``: each kernel of the stem alone, on full batches.

The calls take several sets of inputs in turn, which together are three times as large as the GPU's cache, and each
writes to memory of its own. So the times include reading from memory and writing to it. torch.compile is not a
contender here, so that the table takes two minutes; ``benchmarks.ops`` has it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from benchmarks.harness import command, inputs, peers
from benchmarks.harness.inputs import DTYPE_NAMES, OUT_CHANNELS, PRODUCTS
from benchmarks.harness.operator_cases import serving_backends
from benchmarks.harness.parity import Parity, judge_by_rule
from benchmarks.harness.rows import OURS, REFERENCE
from benchmarks.harness.runner import Benchmark, Contender
from npr_kernels import reference
from npr_kernels.backends import registry
from npr_kernels.backends.base import Convolution, StemBackend
from npr_kernels.testing import allowed, error, pool_at

PIECE = 32  # images whose float64 results are computed at once
CACHES = 3  # times the GPU's cache that the inputs exceed
ROUNDINGS = 4  # of the largest value, that a window's maximum may lie above the value chosen for it
TITLES = {
    "stem": "stem",
    "argmax": "stem with argmax",
    "moments": "moments",
    "backward": "sparse backward",
    "conv": "npr_conv2d",
}


@dataclass(frozen=True)
class KernelCase:
    """One operator of TITLES, 3 -> 64 channels, channels_last.

    "backward" computes the gradients to weight and bias, from the pooled gradient in ``dtype``, the positions of the
    maxima and the image.

    Attributes:
        x_dtype: Dtype of the image.
        dtype: Dtype of the result.
    """

    operator: str
    x_dtype: torch.dtype
    dtype: torch.dtype
    batch: int = 256
    size: int = 256

    def __str__(self) -> str:
        dtypes = DTYPE_NAMES[self.x_dtype] + (f" -> {DTYPE_NAMES[self.dtype]}" if self.operator != "moments" else "")
        return f"{TITLES[self.operator]}, {dtypes}, {self.batch}x3x{self.size}x{self.size}"

    @property
    def convolution(self) -> Convolution:
        return inputs.convolution(self.x_dtype)

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

    def benchmark(self, device: torch.device) -> Benchmark:
        cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
        image_bytes = self.batch * 3 * self.size**2 * self.x_dtype.itemsize
        count = max(2, 1 + int(CACHES * cache / image_bytes))
        images = inputs.images(self.batch, self.size, self.x_dtype, device, count)
        contenders_and_judge = {"moments": self._moments, "backward": self._backward}.get(self.operator, self._forward)
        contenders, judge = contenders_and_judge(images)
        return Benchmark(str(self), contenders, judge, self.flops, self.bytes, captured=True, images=self.batch)

    def _factors(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the scale as a tensor, which is on the GPU before a graph is captured."""
        return torch.tensor(self.convolution.scale, dtype=dtype, device=device).view(1, -1, 1, 1)

    def _ours(self, function: Callable, sets: list, dtype: torch.dtype) -> list[Contender]:
        """Return a contender for each backend: ``function(module of the backend, inputs)`` on each of ``sets``."""
        name = "npr_conv2d" if self.operator == "conv" else "npr_stem"
        device = sets[0].device if isinstance(sets[0], Tensor) else sets[0][0].device

        def contender(backend: str) -> Contender:
            on_backend = functools.partial(function, registry.get(backend))
            return Contender(f"{OURS} {backend}", lambda: calls(on_backend, sets), dtype)

        return [contender(backend) for backend in serving_backends(name, device, self.x_dtype, self.dtype)]

    def _eager(self, function: Callable, converted: Callable[[torch.dtype], list]) -> list[Contender]:
        """Return ``function(inputs, dtype)`` in float32 and the case's dtype, on inputs that are converted before."""

        def contender(name: str, dtype: torch.dtype) -> Contender:
            return Contender(name, lambda: calls(functools.partial(function, dtype=dtype), converted(dtype)), dtype)

        contenders = [contender(REFERENCE, torch.float32)]
        if self.dtype != torch.float32:
            contenders.append(contender(f"{REFERENCE} {DTYPE_NAMES[self.dtype]}", self.dtype))
        return contenders

    # ---- the convolution, and the stem with and without the positions of its maxima

    def _forward(self, images: list[Tensor]) -> tuple[list[Contender], Callable]:
        weight, bias = inputs.parameters(self.dtype, images[0].device)

        @functools.cache
        def constants(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            return weight.to(dtype, memory_format=torch.channels_last), bias.to(dtype)

        def convolved(x: Tensor, dtype: torch.dtype) -> Tensor:
            return reference.npr_conv2d(x, *constants(dtype), *self.convolution)

        def eager(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
            return self._pooled(convolved(x, dtype))

        def ours(backend: StemBackend, x: Tensor) -> tuple[Tensor, ...]:
            name = {"stem": "npr_stem", "argmax": "npr_stem_argmax", "conv": "npr_conv2d"}[self.operator]
            result = getattr(backend, name)(x, weight, bias, self.convolution)
            return result if isinstance(result, tuple) else (result,)

        def converted(dtype: torch.dtype) -> list[Tensor]:
            return [x.to(dtype) if x.is_floating_point() else x for x in images]

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

        composed = peers.Composed(weight, bias, self.convolution.scale, pool=False)
        peer = Contender("composed 4x4", lambda: calls(lambda x: self._pooled(composed(x)), images), self.dtype)
        return [*self._ours(ours, images, self.dtype), *self._eager(eager, converted), peer], judge

    def _pooled(self, y: Tensor) -> tuple[Tensor, ...]:
        """Return what the operator makes of the convolution's output; PyTorch's positions are 64-bit indices."""
        if self.operator == "conv":
            return (y,)
        pooled = F.max_pool2d(F.relu(y), 3, 2, 1, return_indices=self.operator == "argmax")
        return pooled if isinstance(pooled, tuple) else (pooled,)

    # ---- the moments of the patches

    def _moments(self, images: list[Tensor]) -> tuple[list[Contender], Callable]:
        factors = self._factors(torch.float64, images[0].device)

        def eager(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            patches = F.unfold(reference.npr(x, dtype=dtype) * factors.to(dtype), 3, stride=2, padding=1)
            return patches.sum((0, 2)), torch.bmm(patches, patches.mT).sum(0)

        def ours(backend: StemBackend, x: Tensor) -> tuple[Tensor, Tensor]:
            return backend.npr_moments(x, (3, 3), self.convolution)

        def truth() -> tuple[Tensor, ...]:
            return sums(eager(x, torch.float64) for x in images[0].split(PIECE))

        float32 = functools.partial(eager, dtype=torch.float32)
        contenders = [
            *self._ours(ours, images, torch.float32),
            Contender(REFERENCE, lambda: calls(float32, images)),
        ]
        return contenders, judge_without_gradients(truth, lambda dtype: eager(images[0], dtype))

    # ---- the gradients to weight and bias, from the pooled gradient

    def _backward(self, images: list[Tensor]) -> tuple[list[Contender], Callable]:
        weight = inputs.parameters(self.dtype, images[0].device)[0].float()
        saved, sets = self._saved_for_backward(images)

        def eager(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            """Compute what autograd does, with the tensors that it saves."""
            grad, indices, y, seen = in_dtype(tensors, dtype)
            grad = torch.ops.aten.max_pool2d_with_indices_backward(
                grad, y, [3, 3], [2, 2], [1, 1], [1, 1], False, indices
            )
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
            return torch.ops.aten.convolution_backward(
                grad, seen, weight.to(dtype), [OUT_CHANNELS], [2, 2], [1, 1], [1, 1], False, [0, 0], 1,
                [False, True, True],
            )[1:]  # fmt: skip

        def ours(backend: StemBackend, tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            return backend.npr_stem_grad_weight(*tensors, (3, 3), self.convolution)

        def converted(dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
            return [in_dtype(tensors, dtype) for tensors in saved]

        def truth() -> tuple[Tensor, ...]:
            pieces = zip(*(tensor.split(PIECE) for tensor in saved[0]), strict=True)
            return sums(eager(piece, torch.float64) for piece in pieces)

        # Ours are held to the error of float32, whatever dtype they are kept in.
        contenders = [*self._ours(ours, sets, torch.float32), *self._eager(eager, converted)]
        return contenders, judge_without_gradients(truth, lambda dtype: eager(saved[0], dtype))

    @torch.inference_mode()
    def _saved_for_backward(self, images: list[Tensor]) -> tuple[list[tuple[Tensor, ...]], list[tuple[Tensor, ...]]]:
        """Return what backward passes read: autograd's (grad, indices, y, NPR map), ours (grad, argmax, image)."""
        device = images[0].device
        weight, bias = (parameter.float() for parameter in inputs.parameters(self.dtype, device))
        generator = torch.Generator(device).manual_seed(1)
        factors = self._factors(torch.float32, device)
        saved, sets = [], []
        for x in images:
            seen = reference.npr(x, dtype=torch.float32) * factors
            y = F.relu(F.conv2d(seen, weight, bias, 2, 1))
            pooled, indices = F.max_pool2d(y, 3, 2, 1, return_indices=True)
            grad = torch.randn(pooled.permute(0, 2, 3, 1).shape, generator=generator, device=device)
            grad = grad.to(self.dtype).permute(0, 3, 1, 2)
            saved.append((grad, indices, y, seen))
            sets.append((grad, positions(indices, pooled, y.shape[-1]), x))
        return saved, sets


def in_dtype(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Convert the tensors, but not indices."""
    return tuple(tensor if tensor.dtype == torch.int64 else tensor.to(dtype) for tensor in tensors)


def calls(function: Callable, sets: list) -> list[Callable]:
    """Return one call of ``function`` for each set of inputs."""
    return [torch.inference_mode()(functools.partial(function, each)) for each in sets]


def sums(results: Iterator[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Return the results of a batch from those of its pieces."""
    return tuple(sum(parts) for parts in zip(*results, strict=True))


def judge_without_gradients(truth: Callable, eager: Callable) -> Callable[[tuple[Tensor, ...], torch.dtype], Parity]:
    """Return :func:`judge_by_rule` of functions that record no gradients."""
    return judge_by_rule(torch.inference_mode()(truth), torch.inference_mode()(eager))


def positions(indices: Tensor, pooled: Tensor, width: int) -> Tensor:
    """Return PyTorch's indices of maxima as the kernels keep them: 0..8 in the window, 9 where nothing is positive."""
    rows, columns = (2 * torch.arange(n, device=indices.device) - 1 for n in indices.shape[2:])
    inside = (indices // width - rows[:, None]) * 3 + indices % width - columns
    return inside.where(pooled > 0, 9).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def lost_by(pooled: Tensor, argmax: Tensor, y: Tensor, truth: Tensor) -> float:
    """Return how far the values at ``argmax`` are below their windows' maxima, at most, relative to the largest value.

    Infinite where a position is outside of the image, or says that nothing is positive where ``pooled`` is, or the
    other way round.

    Args:
        y: The exact output of the convolution.
        truth: The exact pooled values.
    """
    rows, columns = (2 * torch.arange(n, device=y.device) - 1 for n in pooled.shape[2:])
    positive, position = argmax != 9, argmax.long()
    row, column = rows[:, None] + position // 3, columns + position % 3
    inside = (row >= 0) & (row < y.shape[2]) & (column >= 0) & (column < y.shape[3]) & (argmax < 9)
    if not torch.equal(positive, pooled != 0) or not inside[positive].all():
        return float("inf")
    return ((truth - pool_at(argmax)(y)) * positive).max().item() / truth.max().item()


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
    batch: command.Batch = 256,
    size: command.Size = 256,
    only: command.Only = "",
) -> None:
    """Time stem, argmax stem, moments, sparse backward and npr_conv2d; fail if a result of ours is wrong."""
    target = command.available(device)
    if size % 4:
        command.refuse(f"--size must be a multiple of 4, got {size}")
    table = [replace(case, batch=batch, size=size) for case in TABLE]
    chosen = command.matching(only, [str(case) for case in table], "cases")
    table = [case for case in table if str(case) in chosen]
    command.measure_all(benchmarks(table, target), target, seconds, json_file, only)


if __name__ == "__main__":
    typer.run(main)

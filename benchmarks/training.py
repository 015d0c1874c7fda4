"""The cases of the training stem: forward and backward, in float32 or, as AMP does it, bfloat16."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import npr_kernels
from benchmarks import peers
from benchmarks.cases import fused
from benchmarks.harness import OURS, REFERENCE, Benchmark, Contender, Parity
from npr_kernels import reference
from npr_kernels.backends import registry
from npr_kernels.testing import allowed, error
from npr_model.detectors.base import IMAGENET_STD

OUT_CHANNELS = 64
PRODUCTS = 24  # of the 27, see benchmarks.cases
EPS, MOMENTUM = 1e-5, 0.1
CONVOLUTION = ((2, 2), (1, 1), 2, 0)
NAMES = {torch.uint8: "uint8", torch.float32: "float32", torch.bfloat16: "bfloat16"}
# Where the two largest values of a pooling window, or the largest and 0, are nearer than this, rounding decides where
# the gradient goes. Such windows get none, so that parity judges arithmetic and not luck.
MARGINS = {torch.float32: 1e-4, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class TrainingCase:
    """NPR -> convolution -> batch norm by the batch -> ReLU -> max-pool, and the gradients to all parameters.

    ``x_dtype``: the image's. ``dtype`` bfloat16 is autocast: parameters and statistics stay float32.
    """

    x_dtype: torch.dtype
    dtype: torch.dtype
    batch: int = 8
    size: int = 256

    def __str__(self) -> str:
        dtypes = f"{NAMES[self.x_dtype]} -> {NAMES[self.dtype]}"
        shape = f"{self.batch}x3x{self.size}x{self.size}"
        return f"training stem forward + backward(parameters), {dtypes}, channels_last, {shape}"

    @property
    def scale(self) -> tuple[float, ...]:
        return tuple(2 / 3 / (255 * std) for std in IMAGENET_STD) if self.x_dtype == torch.uint8 else (2 / 3,)

    @property
    def flops(self) -> float:
        """Operations needed: every product, those with the gradient where a window has its maximum, the moments."""
        products = PRODUCTS * OUT_CHANNELS * (1 + 1 / 4) + PRODUCTS * (PRODUCTS + 1) / 2
        return 2.0 * products * self.batch * (self.size // 2) ** 2

    @property
    def bytes(self) -> float:
        """The image in and the result out; backward the image and the gradient in."""
        image = self.batch * 3 * self.size**2 * self.x_dtype.itemsize
        return 2.0 * (image + self.batch * OUT_CHANNELS * (self.size // 4) ** 2 * self.dtype.itemsize)

    def tensors(self, device: torch.device) -> tuple[Tensor, list[Tensor], Tensor]:
        """(x, [weight, gamma, beta] in float32, gradient of the result), the same for every call."""
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (self.batch, 3, self.size, self.size), generator=generator, dtype=torch.uint8)
        x = pixels if self.x_dtype == torch.uint8 else (pixels / 255 - 0.45) / 0.225
        weight = torch.randn(OUT_CHANNELS, 3, 3, 3, generator=generator) * 0.3
        gamma, beta = torch.randn(2, OUT_CHANNELS, generator=generator) * 0.3 + torch.tensor([[1.0], [0.0]])
        x = x.to(device, self.x_dtype).contiguous(memory_format=torch.channels_last)
        parameters = [parameter.to(device) for parameter in (weight, gamma, beta)]
        z = self._normalised(x, *(parameter.double() for parameter in parameters))
        grad = torch.randn(self.batch, OUT_CHANNELS, *(n // 2 for n in z.shape[2:]), generator=generator)
        grad = grad.to(device).masked_fill(~clear_maxima(z, MARGINS[self.dtype]), 0)
        return x, parameters, grad.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def benchmark(self, device: torch.device) -> Benchmark:
        torch.compiler.reset()  # every case compiles the same functions for its own shape; there is a limit to that
        x, parameters, grad = self.tensors(device)
        truth = self._call(self._layers, x, parameters, grad, torch.float64)()
        limits: dict[torch.dtype, list[float]] = {}

        def judge(results: tuple[Tensor, ...], dtype: torch.dtype) -> Parity:
            if dtype not in limits:
                eager = self._call(self._layers, x, parameters, grad, dtype)()
                limits[dtype] = [allowed(error(r, t), dtype) for r, t in zip(eager, truth, strict=True)]
            assert results[0].dtype == dtype, results[0].dtype
            pairs = [(error(r, t), a) for r, t, a in zip(results, truth, limits[dtype], strict=True)]
            return Parity(*max(pairs, key=lambda pair: pair[0] / pair[1]))

        def contender(name: str, function: Callable, dtype: torch.dtype | None = None) -> Contender:
            dtype = dtype or self.dtype
            return Contender(name, lambda: self._call(function, x, parameters, grad, dtype), dtype)

        contenders = [contender(REFERENCE, self._layers, torch.float32)]
        if self.dtype != torch.float32:
            contenders.append(contender(f"{REFERENCE} {NAMES[self.dtype]}", self._layers))
        call = registry.Call("npr_batch_norm_stem", device, self.x_dtype, self.dtype, 2, 0)
        contenders += [
            *(
                contender(f"{OURS} {backend}", functools.partial(self._ours, backend=backend))
                for backend in fused(call)
            ),
            contender("torch.compile", peers.compiled(self._layers, device)),
            contender("composed 4x4", self._composed),
            contender("composed 4x4, torch.compile", peers.compiled(self._composed, device)),
        ]
        return Benchmark(str(self), contenders, judge, self.flops, self.bytes, captured=True, images=self.batch)

    def _call(
        self, function: Callable, x: Tensor, parameters: list[Tensor], grad: Tensor, dtype: torch.dtype
    ) -> Callable[[], tuple[Tensor, ...]]:
        """One pass of ``function(x, weight, gamma, beta)`` in ``dtype``: the result, then the gradients."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        if x.is_floating_point():
            x = x.to(wide)
        inputs = [parameter.to(wide).requires_grad_() for parameter in parameters]
        running = torch.zeros_like(inputs[1]), torch.ones_like(inputs[1])
        grad = grad.to(dtype)

        def step() -> tuple[Tensor, ...]:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                y = function(x, *inputs, *running)
            return (y.detach(), *torch.autograd.grad(y, inputs, grad))

        return step

    def _normalised(self, x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        if x.is_floating_point():
            x = x.to(weight.dtype)
        y = reference.npr_conv2d(x, weight, None, *CONVOLUTION, self.scale)
        return F.batch_norm(y, None, None, gamma, beta, True, MOMENTUM, EPS)

    def _layers(self, x, weight, gamma, beta, running_mean, running_var) -> Tensor:
        return reference.npr_batch_norm_stem(
            x, weight, None, gamma, beta, running_mean, running_var, MOMENTUM, EPS, *CONVOLUTION, self.scale
        )

    def _ours(self, x, weight, gamma, beta, running_mean, running_var, backend: str) -> Tensor:
        return npr_kernels.npr_batch_norm_stem(
            x, weight, None, gamma, beta, running_mean, running_var, momentum=MOMENTUM, eps=EPS, scale=self.scale,
            backend=backend,
        )  # fmt: skip

    def _composed(self, x, weight, gamma, beta, running_mean, running_var) -> Tensor:
        y = peers.composed_conv2d(x, peers.compose(weight, 0, self.scale))
        y = F.batch_norm(y, running_mean, running_var, gamma, beta, True, MOMENTUM, EPS)
        return F.max_pool2d(F.relu(y), 3, 2, 1)


def clear_maxima(z: Tensor, margin: float) -> Tensor:
    """Of each 3x3/2 pooling window over (N, C, H, W), H and W even, whether rounding cannot move relu's maximum."""
    padded = F.pad(z, (1, 1, 1, 1), value=-torch.inf)
    largest = second = torch.full_like(z[:, :, ::2, ::2], -torch.inf)
    for k in range(9):
        candidate = padded[:, :, k // 3 : k // 3 + z.shape[2] : 2, k % 3 : k % 3 + z.shape[3] : 2]
        second = torch.maximum(second, torch.minimum(largest, candidate))
        largest = torch.maximum(largest, candidate)
    return (largest < -margin) | (largest > margin) & (largest - second > margin)


TABLE = [
    TrainingCase(x, dtype, *shape)
    for x, dtype in ((torch.uint8, torch.float32), (torch.uint8, torch.bfloat16), (torch.float32, torch.float32))
    for shape in ((8, 256), (8, 512))
]
GPU_TABLE = [
    TrainingCase(torch.uint8, torch.bfloat16, 256, 256),
    TrainingCase(torch.float32, torch.bfloat16, 128, 256),
    TrainingCase(torch.uint8, torch.float32, 128, 256),
]

"""Cases of the training stem for ``python -m benchmarks.ops``: forward and backward, in float32 or autocast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import npr_kernels
from benchmarks.harness import inputs, peers
from benchmarks.harness.inputs import DTYPE_NAMES, OUT_CHANNELS, PRODUCTS
from benchmarks.harness.operator_cases import Results, benchmark_of, serving_backends
from benchmarks.harness.runner import Benchmark, Contender
from npr_kernels import reference

EPS, MOMENTUM = 1e-5, 0.1
CONVOLUTION = ((2, 2), (1, 1), 2, 0)
# Where the two largest values of a pooling window, or the largest and 0, are nearer than this, rounding decides where
# the gradient goes. Such windows get none, so that parity judges arithmetic and not luck.
MARGINS = {torch.float32: 1e-4, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class TrainingStemCase:
    """NPR -> convolution -> batch norm by the batch -> ReLU -> max-pool, and the gradients to all parameters.

    Attributes:
        x_dtype: Dtype of the image.
        dtype: Dtype of the result; bfloat16 is autocast, with parameters and statistics in float32.
    """

    x_dtype: torch.dtype
    dtype: torch.dtype
    batch: int = 8
    size: int = 256

    def __str__(self) -> str:
        dtypes = f"{DTYPE_NAMES[self.x_dtype]} -> {DTYPE_NAMES[self.dtype]}"
        shape = f"{self.batch}x3x{self.size}x{self.size}"
        return f"training stem forward + backward(parameters), {dtypes}, channels_last, {shape}"

    @property
    def scale(self) -> tuple[float, ...]:
        return inputs.convolution(self.x_dtype).scale

    @property
    def flops(self) -> float:
        """Operations needed: every product, those with the gradient where a window has its maximum, the moments."""
        products = PRODUCTS * OUT_CHANNELS * (1 + 1 / 4) + PRODUCTS * (PRODUCTS + 1) / 2
        return 2.0 * products * self.batch * (self.size // 2) ** 2

    @property
    def bytes(self) -> float:
        """Bytes to move: the image and the result; backward the image and the gradient."""
        image = self.batch * 3 * self.size**2 * self.x_dtype.itemsize
        return 2.0 * (image + self.batch * OUT_CHANNELS * (self.size // 4) ** 2 * self.dtype.itemsize)

    def benchmark(self, device: torch.device) -> Benchmark:
        torch.compiler.reset()  # every case compiles the same functions for its own shape; there is a limit to that
        run = functools.partial(self._pass, *self._tensors(device))

        def contender(name: str, function: Callable) -> Contender:
            return Contender(name, lambda: run(function, self.dtype), self.dtype)

        return benchmark_of(
            self,
            run,
            eager=self._layers,
            ours=self._ours,
            backends=serving_backends("npr_batch_norm_stem", device, self.x_dtype, self.dtype),
            others=[
                contender("torch.compile", peers.compiled(self._layers, device)),
                contender("composed 4x4", self._composed),
                contender("composed 4x4, torch.compile", peers.compiled(self._composed, device)),
            ],
        )

    def _tensors(self, device: torch.device) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return x, [weight, gamma, beta] in float32, and the gradient to the result."""
        generator = torch.Generator().manual_seed(2)
        (x,) = inputs.images(self.batch, self.size, self.x_dtype, device)
        weight, _ = inputs.parameters(torch.float32, device)
        gamma, beta = torch.randn(2, OUT_CHANNELS, generator=generator) * 0.3 + torch.tensor([[1.0], [0.0]])
        parameters = [weight, gamma.to(device), beta.to(device)]
        z = self._normalised(x, *(parameter.double() for parameter in parameters))
        grad = torch.randn(self.batch, OUT_CHANNELS, *(n // 2 for n in z.shape[2:]), generator=generator)
        grad = grad.to(device).masked_fill(~clear_maxima(z, MARGINS[self.dtype]), 0)
        return x, parameters, grad.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def _pass(
        self, x: Tensor, parameters: list[Tensor], grad: Tensor, function: Callable, dtype: torch.dtype
    ) -> Callable[[], Results]:
        """Return a call of ``function(x, weight, gamma, beta, ...)`` in ``dtype``: the result, then the gradients."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        if x.is_floating_point():
            x = x.to(wide)
        learned = [parameter.to(wide).requires_grad_() for parameter in parameters]
        running = torch.zeros_like(learned[1]), torch.ones_like(learned[1])
        grad = grad.to(dtype)

        def step() -> Results:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                y = function(x, *learned, *running)
            return (y.detach(), *torch.autograd.grad(y, learned, grad))

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
    """Return, for each 3x3/2 pooling window of (N, C, H, W), H and W even, whether rounding cannot move its maximum."""
    padded = F.pad(z, (1, 1, 1, 1), value=-torch.inf)
    largest = second = torch.full_like(z[:, :, ::2, ::2], -torch.inf)
    for k in range(9):
        candidate = padded[:, :, k // 3 : k // 3 + z.shape[2] : 2, k % 3 : k % 3 + z.shape[3] : 2]
        second = torch.maximum(second, torch.minimum(largest, candidate))
        largest = torch.maximum(largest, candidate)
    return (largest < -margin) | (largest > margin) & (largest - second > margin)


TABLE = [
    TrainingStemCase(x, dtype, *shape)
    for x, dtype in ((torch.uint8, torch.float32), (torch.uint8, torch.bfloat16), (torch.float32, torch.float32))
    for shape in ((8, 256), (8, 512))
]
GPU_TABLE = [
    TrainingStemCase(torch.uint8, torch.bfloat16, 256, 256),
    TrainingStemCase(torch.float32, torch.bfloat16, 128, 256),
    TrainingStemCase(torch.uint8, torch.float32, 128, 256),
]

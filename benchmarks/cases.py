"""The tables of operator cases, shared by ``python -m benchmarks.ops`` and pytest-benchmark."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import npr_kernels
from benchmarks import peers
from benchmarks.harness import OURS, REFERENCE, Benchmark, Contender, Parity
from npr_kernels import reference
from npr_kernels.backends import registry
from npr_kernels.testing import allowed, error
from npr_model.detectors.base import IMAGENET_STD

OUT_CHANNELS = 64
PRODUCTS = 24  # an output needs: of the 27, the three of the tap that always sees the anchor are zero
NAMES = {torch.uint8: "uint8", torch.float32: "float32", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class OperatorCase:
    """One operator on one shape: grid_size 2, anchor 0, 3 -> 64 channels, 3x3, stride 2, padding 1.

    ``operator``: "stem" (with bias, ReLU and max-pool, no gradients) or "conv". ``x_dtype``: the image's; ``dtype``:
    that of weight, bias and result. ``gradients``: what the backward pass computes: "w" the weight's, "b" the bias's,
    "x" the image's; "" is the forward pass alone.
    """

    operator: str
    x_dtype: torch.dtype
    dtype: torch.dtype
    batch: int = 8
    size: int = 256
    channels_last: bool = True
    gradients: str = ""

    def __str__(self) -> str:
        what = f"{self.operator} forward" + (f" + backward({', '.join(self.gradients)})" if self.gradients else "")
        layout = "channels_last" if self.channels_last else "channels-first"
        dtypes = f"{NAMES[self.x_dtype]} -> {NAMES[self.dtype]}"
        return f"{what}, {dtypes}, {layout}, {self.batch}x3x{self.size}x{self.size}"

    @property
    def scale(self) -> tuple[float, ...]:
        return tuple(2 / 3 / (255 * std) for std in IMAGENET_STD) if self.x_dtype == torch.uint8 else (2 / 3,)

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(x, weight, bias, gradient of the result), the same for every call."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, 3, self.size, self.size)
        pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        x = pixels if self.x_dtype == torch.uint8 else (pixels / 255 - 0.45) / 0.225
        weight = torch.randn(OUT_CHANNELS, 3, 3, 3, generator=generator) * 0.3
        bias = torch.randn(OUT_CHANNELS, generator=generator) * 0.3
        half = self.size // 2
        grad = torch.randn(self.batch, OUT_CHANNELS, half, half, generator=generator) if self.gradients else bias
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        x = x.to(device, self.x_dtype).contiguous(memory_format=layout)
        if self.gradients:
            grad = grad.contiguous(memory_format=layout)
        return x, weight.to(device, self.dtype), bias.to(device, self.dtype), grad.to(device, self.dtype)

    @property
    def flops(self) -> float:
        """Operations needed: a multiplication and an addition for each product, once a pass."""
        passes = 1 + ("w" in self.gradients) + ("x" in self.gradients)
        return 2.0 * PRODUCTS * OUT_CHANNELS * self.batch * (self.size // 2) ** 2 * passes

    @property
    def bytes(self) -> float:
        """The image in and the result out; backward the image and the gradient in, the image's gradient out."""
        image = self.batch * 3 * self.size**2 * self.x_dtype.itemsize
        result = self.batch * OUT_CHANNELS * (self.size // 2) ** 2 * self.dtype.itemsize
        if self.operator == "stem":
            return image + result / 4
        backward = image + result if self.gradients else 0
        return image + result + backward + ("x" in self.gradients) * image

    def benchmark(self, device: torch.device) -> Benchmark:
        torch.compiler.reset()  # every case compiles the same functions for its own shape; there is a limit to that
        x, weight, bias, grad = self.tensors(device)
        truth = self._call(self._reference, x, weight, bias, grad, torch.float64)()
        limits: dict[torch.dtype, list[float]] = {}

        def judge(results: tuple[Tensor, ...], dtype: torch.dtype) -> Parity:
            if dtype not in limits:
                eager = self._call(self._reference, x, weight, bias, grad, dtype)()
                limits[dtype] = [allowed(error(r, t), dtype) for r, t in zip(eager, truth, strict=True)]
            assert all(result.dtype == dtype for result in results), [result.dtype for result in results]
            pairs = [(error(r, t), a) for r, t, a in zip(results, truth, limits[dtype], strict=True)]
            return Parity(*max(pairs, key=lambda pair: pair[0] / pair[1]))

        def contender(name: str, function: Callable, dtype: torch.dtype | None = None) -> Contender:
            dtype = dtype or self.dtype
            return Contender(name, lambda: self._call(function, x, weight, bias, grad, dtype), dtype)

        # From pixels, the authors run float32; a float image's dtype is the user's choice.
        contenders = [contender(REFERENCE, self._reference, torch.float32 if self.x_dtype == torch.uint8 else None)]
        if self.dtype != contenders[0].dtype:
            contenders.append(contender(f"{REFERENCE} {NAMES[self.dtype]}", self._reference))
        call = registry.Call(f"npr_{self.operator}", device, self.x_dtype, self.dtype, 2, 0)
        contenders += [
            contender(f"{OURS} {backend}", functools.partial(self._ours, backend=backend)) for backend in fused(call)
        ]
        contenders.append(contender("torch.compile", peers.compiled(self._reference, device)))
        if self.gradients:
            contenders += [
                contender("composed 4x4", self._composed),
                contender("composed 4x4, torch.compile", peers.compiled(self._composed, device)),
            ]
        else:
            composed = peers.Composed(weight, bias, self.scale, pool=self.operator == "stem")
            frozen = peers.compiled(composed, device, frozen=True)
            contenders += [
                contender("composed 4x4", lambda x, *_: composed(x)),
                contender("composed 4x4, torch.compile frozen", lambda x, *_: frozen(x)),
            ]
        if self.operator == "stem" and self.x_dtype == torch.uint8:
            authors = self._authors_layers(weight, bias)
            contenders.append(contender("authors' layers", lambda x, *_: authors(x), torch.float32))
        return Benchmark(str(self), contenders, judge, self.flops, self.bytes, captured=True, images=self.batch)

    def _call(
        self, function: Callable, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, dtype: torch.dtype
    ) -> Callable[[], tuple[Tensor, ...]]:
        """One pass of ``function(x, weight, bias)`` in ``dtype``: the result, then the gradients asked for."""
        if x.is_floating_point():
            x = x.to(dtype)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        weight = weight.to(dtype).contiguous(memory_format=layout)
        bias, grad = bias.to(dtype), grad.to(dtype)
        if not self.gradients:
            return torch.inference_mode()(lambda: (function(x, weight, bias),))
        wanted = {"w": weight, "b": bias, "x": x}
        inputs = [wanted[name].detach().requires_grad_() for name in self.gradients]
        wanted |= dict(zip(self.gradients, inputs, strict=True))

        def step() -> tuple[Tensor, ...]:
            y = function(wanted["x"], wanted["w"], wanted["b"])
            return (y.detach(), *torch.autograd.grad(y, inputs, grad))

        return step

    def _reference(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        operator = reference.npr_stem if self.operator == "stem" else reference.npr_conv2d
        return operator(x, weight, bias, scale=self.scale)

    def _ours(self, x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
        operator = npr_kernels.npr_stem if self.operator == "stem" else npr_kernels.npr_conv2d
        return operator(x, weight, bias, scale=self.scale, backend=backend)

    def _composed(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return peers.composed_conv2d(x, peers.compose(weight, 0, self.scale), bias)

    def _authors_layers(self, weight: Tensor, bias: Tensor) -> nn.Module:
        """Every layer on its own, from pixels, with a batch norm that only adds the bias."""
        conv, bn = npr_kernels.NPRConv2d(3, OUT_CHANNELS), nn.BatchNorm2d(OUT_CHANNELS, eps=0)
        with torch.no_grad():
            conv.weight.copy_(weight)
            bn.bias.copy_(bias)
        return peers.AuthorsStem(conv, bn).to(weight.device)


def fused(call: registry.Call) -> list[str]:
    """The backends that can serve ``call``, without eager, in the order of automatic choice."""
    return [name for name in registry.ORDER if name != REFERENCE and registry.get(name).refusal(call) is None]


def _table() -> list[OperatorCase]:
    uint8, float32, bfloat16 = torch.uint8, torch.float32, torch.bfloat16
    shapes = ((8, 256), (1, 256), (8, 512))
    stems = ((uint8, float32), (uint8, bfloat16), (float32, float32), (bfloat16, bfloat16))
    cases = [OperatorCase("stem", x, dtype, *shape) for x, dtype in stems for shape in shapes]
    cases += [OperatorCase("conv", d, d, channels_last=last) for d in (float32, bfloat16) for last in (True, False)]
    cases += [OperatorCase("conv", d, d, *shape) for d in (float32, bfloat16) for shape in shapes[1:]]
    for gradients in ("wb", "wbx"):
        cases += [
            OperatorCase("conv", d, d, channels_last=last, gradients=gradients)
            for d in (float32, bfloat16)
            for last in (True, False)
        ]
        cases += [OperatorCase("conv", float32, float32, *shape, gradients=gradients) for shape in shapes[1:]]
    return cases


TABLE = _table()
# A GPU wants larger batches; the last ones show what pixels and images cost from little to much.
GPU_TABLE = [
    *(OperatorCase("stem", torch.uint8, torch.bfloat16, *shape) for shape in ((256, 256), (64, 512), (64, 1024))),
    OperatorCase("stem", torch.bfloat16, torch.bfloat16, 256, 256),
    OperatorCase("stem", torch.uint8, torch.float32, 256, 256),
    OperatorCase("conv", torch.bfloat16, torch.bfloat16, 256, 256),
    OperatorCase("conv", torch.float32, torch.float32, 256, 256),
    OperatorCase("conv", torch.bfloat16, torch.bfloat16, 256, 256, gradients="wb"),
    OperatorCase("conv", torch.bfloat16, torch.bfloat16, 64, 256, gradients="wbx"),
    *(OperatorCase("stem", torch.uint8, torch.bfloat16, batch, 256) for batch in (4, 16, 64)),
    *(OperatorCase("stem", torch.uint8, torch.bfloat16, 4, size) for size in (512, 1024, 2048)),
]

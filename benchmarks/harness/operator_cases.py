"""Cases of single operators for ``python -m benchmarks.ops``: the inference stem and npr_conv2d."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

import npr_kernels
from benchmarks.harness import inputs, peers
from benchmarks.harness.inputs import DTYPE_NAMES, OUT_CHANNELS, PRODUCTS
from benchmarks.harness.parity import Parity, judge_by_rule
from benchmarks.harness.rows import OURS, REFERENCE
from benchmarks.harness.runner import Benchmark, Contender
from npr_kernels import reference
from npr_kernels.backends import registry
from npr_kernels.backends.base import Call

Results = tuple[Tensor, ...]


class Case(Protocol):
    """What :func:`benchmark_of` needs to know of a case. ``dtype`` is the result's."""

    dtype: torch.dtype
    batch: int

    @property
    def flops(self) -> float: ...

    @property
    def bytes(self) -> float: ...


def benchmark_of(
    case: Case,
    run: Callable[[Callable, torch.dtype], Callable[[], Results]],
    eager: Callable,
    ours: Callable,
    backends: Sequence[str],
    others: Sequence[Contender],
    reference_dtype: torch.dtype = torch.float32,
) -> Benchmark:
    """Return the benchmark of a case.

    Args:
        run: Makes one pass of a function in a dtype: returns a call whose result is the output, then the gradients.
        eager: The function in plain PyTorch, which also gives the truth in float64.
        ours: The function with the additional argument ``backend``, one of ``backends``.
        others: More contenders.
        reference_dtype: What the reference computes in; where the case's dtype differs, eager runs in that as well.
    """
    judge_values = judge_by_rule(lambda: run(eager, torch.float64)(), lambda dtype: run(eager, dtype)())

    def judge(results: Results, dtype: torch.dtype) -> Parity:
        assert results[0].dtype == dtype, results[0].dtype
        return judge_values(results, dtype)

    def contender(name: str, function: Callable, dtype: torch.dtype) -> Contender:
        return Contender(name, lambda: run(function, dtype), dtype)

    contenders = [contender(REFERENCE, eager, reference_dtype)]
    if case.dtype != reference_dtype:
        contenders.append(contender(f"{REFERENCE} {DTYPE_NAMES[case.dtype]}", eager, case.dtype))
    contenders += [contender(f"{OURS} {b}", functools.partial(ours, backend=b), case.dtype) for b in backends]
    return Benchmark(str(case), [*contenders, *others], judge, case.flops, case.bytes, captured=True, images=case.batch)


@dataclass(frozen=True)
class OperatorCase:
    """One operator on one shape: grid_size 2, anchor 0, 3 -> 64 channels, 3x3, stride 2, padding 1.

    Attributes:
        operator: "stem" (with bias, ReLU and max-pool, no gradients) or "conv".
        x_dtype: Dtype of the image.
        dtype: Dtype of weight, bias and result.
        gradients: What the backward pass computes: "w" for the weight, "b" for the bias, "x" for the image; "" for the
            forward pass alone.
    """

    operator: str
    x_dtype: torch.dtype
    dtype: torch.dtype
    batch: int = 8
    size: int = 256
    channels_last: bool = True
    gradients: str = ""

    def __str__(self) -> str:
        passes = f"{self.operator} forward" + (f" + backward({', '.join(self.gradients)})" if self.gradients else "")
        layout = "channels_last" if self.channels_last else "channels-first"
        dtypes = f"{DTYPE_NAMES[self.x_dtype]} -> {DTYPE_NAMES[self.dtype]}"
        return f"{passes}, {dtypes}, {layout}, {self.batch}x3x{self.size}x{self.size}"

    @property
    def scale(self) -> tuple[float, ...]:
        return inputs.convolution(self.x_dtype).scale

    @property
    def flops(self) -> float:
        """Operations needed: a multiplication and an addition for each product, once per pass."""
        passes = 1 + ("w" in self.gradients) + ("x" in self.gradients)
        return 2.0 * PRODUCTS * OUT_CHANNELS * self.batch * (self.size // 2) ** 2 * passes

    @property
    def bytes(self) -> float:
        """Bytes to move: the image and the result; backward the image, the gradient, and the image's gradient."""
        image = self.batch * 3 * self.size**2 * self.x_dtype.itemsize
        result = self.batch * OUT_CHANNELS * (self.size // 2) ** 2 * self.dtype.itemsize
        if self.operator == "stem":
            return image + result / 4
        backward = image + result if self.gradients else 0
        return image + result + backward + ("x" in self.gradients) * image

    def benchmark(self, device: torch.device) -> Benchmark:
        torch.compiler.reset()  # every case compiles the same functions for its own shape; there is a limit to that
        (x,) = inputs.images(self.batch, self.size, self.x_dtype, device, channels_last=self.channels_last)
        weight, bias = inputs.parameters(self.dtype, device)
        run = functools.partial(self._pass, x, weight, bias, self._gradient(device))
        return benchmark_of(
            self,
            run,
            eager=self._reference,
            ours=self._ours,
            backends=serving_backends(f"npr_{self.operator}", device, self.x_dtype, self.dtype),
            others=self._others(run, weight, bias, device),
            # From pixels, the authors run float32; the dtype of a float image is the user's choice.
            reference_dtype=torch.float32 if self.x_dtype == torch.uint8 else self.dtype,
        )

    def _gradient(self, device: torch.device) -> Tensor | None:
        """Return the gradient to the result, if there is a backward pass."""
        if not self.gradients:
            return None
        shape = (self.batch, OUT_CHANNELS, self.size // 2, self.size // 2)
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        return grad.to(device, self.dtype, memory_format=self._layout)

    @property
    def _layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def _pass(
        self, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor | None, function: Callable, dtype: torch.dtype
    ) -> Callable[[], Results]:
        """Return a call of ``function(x, weight, bias)`` in ``dtype``: the result, then the gradients asked for."""
        if x.is_floating_point():
            x = x.to(dtype)
        weight = weight.to(dtype).contiguous(memory_format=self._layout)
        bias = bias.to(dtype)
        if grad is None:
            return torch.inference_mode()(lambda: (function(x, weight, bias),))
        tensors = {"w": weight, "b": bias, "x": x}
        learned = [tensors[name].detach().requires_grad_() for name in self.gradients]
        tensors |= dict(zip(self.gradients, learned, strict=True))
        grad = grad.to(dtype)

        def step() -> Results:
            y = function(tensors["x"], tensors["w"], tensors["b"])
            return (y.detach(), *torch.autograd.grad(y, learned, grad))

        return step

    def _others(self, run: Callable, weight: Tensor, bias: Tensor, device: torch.device) -> list[Contender]:
        """Return torch.compile, NPR and convolution as one convolution, and the authors' layers."""

        def contender(name: str, function: Callable, dtype: torch.dtype = self.dtype) -> Contender:
            return Contender(name, lambda: run(function, dtype), dtype)

        contenders = [contender("torch.compile", peers.compiled(self._reference, device))]
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
        return contenders

    def _reference(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        operator = reference.npr_stem if self.operator == "stem" else reference.npr_conv2d
        return operator(x, weight, bias, scale=self.scale)

    def _ours(self, x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
        operator = npr_kernels.npr_stem if self.operator == "stem" else npr_kernels.npr_conv2d
        return operator(x, weight, bias, scale=self.scale, backend=backend)

    def _composed(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return peers.composed_conv2d(x, peers.compose(weight, 0, self.scale), bias)

    def _authors_layers(self, weight: Tensor, bias: Tensor) -> nn.Module:
        """Return every layer on its own, from pixels, with a batch norm that only adds the bias."""
        conv, bn = npr_kernels.NPRConv2d(3, OUT_CHANNELS), nn.BatchNorm2d(OUT_CHANNELS, eps=0)
        with torch.no_grad():
            conv.weight.copy_(weight)
            bn.bias.copy_(bias)
        return peers.AuthorsStem(conv, bn).to(weight.device)


def serving_backends(operator: str, device: torch.device, x_dtype: torch.dtype, dtype: torch.dtype) -> list[str]:
    """Return the backends but eager that can serve such a call, in the order of automatic choice."""
    call = Call(operator, device, x_dtype, dtype, inputs.convolution(x_dtype))
    others = [(name, backend) for name, backend in registry.BACKENDS.items() if name != REFERENCE]
    return [name for name, backend in others if backend.unsupported_reason(call) is None]


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

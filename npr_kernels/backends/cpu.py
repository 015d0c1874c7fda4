"""The `cpu` backend: the vectorised C++ kernels of csrc/cpu."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from npr_kernels import arguments, extension
from npr_kernels.backends import vmap
from npr_kernels.backends.base import Call, Convolution, anchor_code
from npr_kernels.reference import Anchor

NAME = "cpu"
DIFFERENTIABLE = False
EXAMPLE = Call("npr_conv2d", torch.device("cpu"), torch.float32, torch.float32, Convolution())
SELF_TEST_SIZES: tuple[tuple[int, int], ...] = ()  # its kernels do not depend on a driver; the tests check them
Pair = tuple[int, int]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def unsupported_reason(call: Call) -> str | None:
    """Return why this backend cannot serve ``call``, or None if it can."""
    if extension.LOAD_ERROR:
        return extension.LOAD_ERROR
    if call.plain_only:
        return f"it does not support {call.plain_only}"
    if call.device.type != "cpu":
        return f"it serves CPU tensors, x is on {call.device}"
    for name, dtype in (("x", call.x_dtype), ("weight", call.dtype)):
        if dtype not in DTYPES and dtype != torch.uint8:
            return f"it has no kernel for {name} of {dtype}"
    return None


def npr(x: Tensor, grid_size: int, anchor: Anchor) -> Tensor:
    return torch.ops.npr_kernels.npr(x, grid_size, anchor_code(anchor))


def npr_backward(grad: Tensor, x: Tensor, grid_size: int, anchor: Anchor) -> Tensor:
    return torch.ops.npr_kernels.npr_backward(grad, x, grid_size, anchor_code(anchor))


def npr_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
    channels_last = x.shape[1] > 1 and x.stride(1) == 1
    return torch.ops.npr_kernels.npr_conv2d(
        x, _computed(weight), _computed(bias), *convolution.coded(), weight.dtype, channels_last
    )


def npr_conv2d_grad_weight(grad: Tensor, x: Tensor, weight: Tensor, convolution: Convolution) -> Tensor:
    kernel = weight.shape[2:]
    return torch.ops.npr_kernels.npr_conv2d_grad_weight(grad, x, kernel, *convolution.coded()).to(weight.dtype)


def npr_conv2d_grad_input(grad: Tensor, x: Tensor, weight: Tensor, convolution: Convolution) -> Tensor:
    return torch.ops.npr_kernels.npr_conv2d_grad_input(grad, x, _computed(weight), *convolution.coded())


def npr_stem(x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
    return torch.ops.npr_kernels.npr_stem(x, _computed(weight), _computed(bias), *convolution.coded(), weight.dtype)


def npr_moments(x: Tensor, kernel: tuple[int, int], convolution: Convolution) -> tuple[Tensor, Tensor]:
    return torch.ops.npr_kernels.npr_moments(x, kernel, *convolution.coded())


def npr_stem_argmax(x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> tuple[Tensor, Tensor]:
    return torch.ops.npr_kernels.npr_stem_argmax(
        x, _computed(weight), _computed(bias), *convolution.coded(), weight.dtype
    )


def npr_stem_grad_weight(
    grad: Tensor, argmax: Tensor, x: Tensor, kernel: tuple[int, int], convolution: Convolution
) -> tuple[Tensor, Tensor]:
    return torch.ops.npr_kernels.npr_stem_grad_weight(grad, argmax, x, kernel, *convolution.coded())


def _computed(parameter: Tensor | None) -> Tensor | None:
    """Return a parameter in the type in which the kernels compute: float64 for float64, else float32."""
    if parameter is None:
        return None
    return parameter.to(torch.float64 if parameter.dtype == torch.float64 else torch.float32).contiguous()


if not extension.LOAD_ERROR:

    def _strides(channels_last: bool) -> torch.memory_format:
        return torch.channels_last if channels_last else torch.contiguous_format

    @torch.library.register_fake("npr_kernels::npr")
    def _(x: Tensor, grid_size: int, anchor: int) -> Tensor:
        height, width = (n - n % grid_size for n in x.shape[-2:])
        dtype = x.dtype if x.is_floating_point() else torch.float32
        return x.new_empty((*x.shape[:2], height, width), dtype=dtype)

    @torch.library.register_fake("npr_kernels::npr_backward")
    def _(grad: Tensor, x: Tensor, *cells: Any) -> Tensor:
        return x.new_empty(x.shape)

    @torch.library.register_fake("npr_kernels::npr_conv2d")
    def _(
        x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, grid_size: int, anchor: int,
        scale: list[float], dtype: torch.dtype, channels_last: bool,
    ) -> Tensor:  # fmt: skip
        size = arguments.convolution_output_size(x, weight.shape[2:], stride, padding, grid_size)
        shape = (x.shape[0], weight.shape[0], *size)
        return x.new_empty(shape, dtype=dtype).contiguous(memory_format=_strides(channels_last))

    @torch.library.register_fake("npr_kernels::npr_conv2d_grad_weight")
    def _(grad: Tensor, x: Tensor, kernel: Pair, *convolution: Any) -> Tensor:
        dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
        return x.new_empty((grad.shape[1], x.shape[1], *kernel), dtype=dtype)

    @torch.library.register_fake("npr_kernels::npr_conv2d_grad_input")
    def _(grad: Tensor, x: Tensor, weight: Tensor, *convolution: Any) -> Tensor:
        return x.new_empty(x.shape)

    @torch.library.register_fake("npr_kernels::npr_stem")
    def fake_stem(
        x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, grid_size: int, anchor: int,
        scale: list[float], dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        size = arguments.convolution_output_size(x, weight.shape[2:], stride, padding, grid_size)
        pooled = (arguments.output_size(n, 3, 2, 1) for n in size)
        shape = (x.shape[0], weight.shape[0], *pooled)
        return x.new_empty(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)

    @torch.library.register_fake("npr_kernels::npr_stem_argmax")
    def _(*args: Any) -> tuple[Tensor, Tensor]:
        pooled = fake_stem(*args)
        return pooled, torch.empty_like(pooled, dtype=torch.uint8)

    @torch.library.register_fake("npr_kernels::npr_stem_grad_weight")
    def _(grad: Tensor, argmax: Tensor, x: Tensor, kernel: Pair, *convolution: Any) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
        shape = (grad.shape[1], x.shape[1], *kernel)
        return x.new_empty(shape, dtype=dtype), x.new_empty(shape[:1], dtype=dtype)

    @torch.library.register_fake("npr_kernels::npr_moments")
    def _(x: Tensor, kernel: Pair, *convolution: Any) -> tuple[Tensor, Tensor]:
        size = x.shape[1] * kernel[0] * kernel[1]
        return x.new_empty(size, dtype=torch.float64), x.new_empty((size, size), dtype=torch.float64)

    for _name in (
        "npr", "npr_backward", "npr_conv2d", "npr_conv2d_grad_weight", "npr_conv2d_grad_input",
        "npr_stem", "npr_stem_argmax", "npr_stem_grad_weight", "npr_moments",
    ):  # fmt: skip
        vmap.register(getattr(torch.ops.npr_kernels, _name).default)

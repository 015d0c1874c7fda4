"""The `triton` backend: kernels for CUDA devices, written in Triton and compiled at their first use.

Importing this package imports neither Triton nor a kernel; the first call does. With TRITON_INTERPRET=1 in the
environment, Triton's interpreter runs the kernels on the CPU, and this backend serves CPU tensors instead of CUDA
tensors. That is slow, but it tests the kernels without a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from npr_kernels.backends.base import Call, Convolution, anchor_code
from npr_kernels.reference import Anchor
from npr_kernels.triton_runtime import DEVICE, INSTALLED, INTERPRETED

NAME = "triton"
DIFFERENTIABLE = False
DTYPES = (torch.uint8, torch.float32, torch.float64, torch.bfloat16, torch.float16)
EXAMPLE = Call("npr_conv2d", torch.device(DEVICE), torch.float32, torch.float32, Convolution())
SELF_TEST_SIZES: tuple[tuple[int, int], ...] = ((12, 76),)  # several tiles and rows


def unsupported_reason(call: Call) -> str | None:
    """Return why this backend cannot serve ``call``, or None if it can."""
    if call.plain_only:
        return f"it does not support {call.plain_only}"
    if not INSTALLED:
        return "Triton is not installed (pip install triton)"
    if call.device.type != DEVICE:
        interpreted = " while TRITON_INTERPRET=1 is set" if INTERPRETED else ""
        return f"it serves {DEVICE.upper()} tensors{interpreted}, x is on {call.device}"
    if DEVICE == "cuda" and not torch.cuda.is_available():
        return "torch finds no CUDA device"
    for name, dtype in (("x", call.x_dtype), ("weight", call.dtype)):
        if dtype not in DTYPES:
            return f"it has no kernel for {name} of {dtype}"
    return None


def npr(x: Tensor, grid_size: int, anchor: Anchor) -> Tensor:
    return _operators().npr(x, grid_size, anchor_code(anchor), _channels_last(x))


def npr_backward(grad: Tensor, x: Tensor, grid_size: int, anchor: Anchor) -> Tensor:
    return _operators().npr_backward(grad, x, grid_size, anchor_code(anchor), _channels_last(x))


def npr_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
    return _operators().npr_conv2d(x, weight, bias, *convolution.coded(), _channels_last(x))


def npr_conv2d_grad_weight(grad: Tensor, x: Tensor, weight: Tensor, convolution: Convolution) -> Tensor:
    products = _operators().npr_conv2d_grad_weight(grad, x, weight.shape[2:], *convolution.coded())
    return products.to(weight.dtype)


def npr_conv2d_grad_input(grad: Tensor, x: Tensor, weight: Tensor, convolution: Convolution) -> Tensor:
    return _operators().npr_conv2d_grad_input(grad, x, weight, *convolution.coded(), _channels_last(x))


def npr_stem(x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
    return _operators().npr_stem(x, weight, bias, *convolution.coded())


def npr_stem_argmax(x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> tuple[Tensor, Tensor]:
    return _operators().npr_stem_argmax(x, weight, bias, *convolution.coded())


def npr_moments(x: Tensor, kernel: tuple[int, int], convolution: Convolution) -> tuple[Tensor, Tensor]:
    return _operators().npr_moments(x, kernel, *convolution.coded())


def npr_stem_grad_weight(
    grad: Tensor, argmax: Tensor, x: Tensor, kernel: tuple[int, int], convolution: Convolution
) -> tuple[Tensor, Tensor]:
    return _operators().npr_stem_grad_weight(grad, argmax, x, kernel, *convolution.coded())


def _operators() -> Any:
    """Return torch's namespace of this backend's operators. The first call imports Triton and the kernels."""
    from npr_kernels.backends.triton import operators  # noqa: F401

    return torch.ops.npr_kernels_triton


def _channels_last(x: Tensor) -> bool:
    return x.shape[1] > 1 and x.stride(1) == 1

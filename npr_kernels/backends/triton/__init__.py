"""The `triton` backend: kernels for CUDA devices, written in Triton and compiled at their first use.

Importing this package imports neither Triton nor a kernel; the first call does. With TRITON_INTERPRET=1 in the
environment, Triton's interpreter runs the kernels on the CPU, and this backend serves CPU tensors instead of CUDA
tensors. That is slow, but it tests the kernels without a GPU.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from npr_kernels.backends.base import Call, Convolution
from npr_kernels.reference import Anchor

DIFFERENTIABLE = False
DTYPES = (torch.uint8, torch.float32, torch.float64, torch.bfloat16, torch.float16)
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
EXAMPLE = Call("npr_conv2d", torch.device(DEVICE), torch.float32, torch.float32, Convolution())
SELF_TEST_SIZES: tuple[tuple[int, int], ...] = ((12, 76),)  # several tiles and rows

_ANCHOR_CODES = {"mean": -1, "max": -2}  # as in patches.py
_INSTALLED = importlib.util.find_spec("triton") is not None


def unsupported_reason(call: Call) -> str | None:
    """Return why this backend cannot serve ``call``, or None if it can."""
    if call.plain_only:
        return f"it does not support {call.plain_only}"
    if not _INSTALLED:
        return "Triton is not installed (pip install triton)"
    if call.device.type != DEVICE:
        interpreted = " while TRITON_INTERPRET=1 is set" if DEVICE == "cpu" else ""
        return f"it serves {DEVICE.upper()} tensors{interpreted}, x is on {call.device}"
    if DEVICE == "cuda" and not torch.cuda.is_available():
        return "torch finds no CUDA device"
    for name, dtype in (("x", call.x_dtype), ("weight", call.dtype)):
        if dtype not in DTYPES:
            return f"it has no kernel for {name} of {dtype}"
    return None


def npr(x: Tensor, grid_size: int, anchor: Anchor) -> Tensor:
    return _operators().npr(x, grid_size, _code(anchor), _channels_last(x))


def npr_backward(grad: Tensor, x: Tensor, grid_size: int, anchor: Anchor) -> Tensor:
    return _operators().npr_backward(grad, x, grid_size, _code(anchor), _channels_last(x))


def npr_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
    return _operators().npr_conv2d(x, weight, bias, *_coded(convolution), _channels_last(x))


def npr_conv2d_grad_weight(grad: Tensor, x: Tensor, weight: Tensor, convolution: Convolution) -> Tensor:
    products = _operators().npr_conv2d_grad_weight(grad, x, weight.shape[2:], *_coded(convolution))
    return products.to(weight.dtype)


def npr_conv2d_grad_input(grad: Tensor, x: Tensor, weight: Tensor, convolution: Convolution) -> Tensor:
    return _operators().npr_conv2d_grad_input(grad, x, weight, *_coded(convolution), _channels_last(x))


def npr_stem(x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
    return _operators().npr_stem(x, weight, bias, *_coded(convolution))


def npr_stem_argmax(x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> tuple[Tensor, Tensor]:
    return _operators().npr_stem_argmax(x, weight, bias, *_coded(convolution))


def npr_moments(x: Tensor, kernel: tuple[int, int], convolution: Convolution) -> tuple[Tensor, Tensor]:
    return _operators().npr_moments(x, kernel, *_coded(convolution))


def npr_stem_grad_weight(
    grad: Tensor, argmax: Tensor, x: Tensor, kernel: tuple[int, int], convolution: Convolution
) -> tuple[Tensor, Tensor]:
    return _operators().npr_stem_grad_weight(grad, argmax, x, kernel, *_coded(convolution))


def _operators() -> Any:
    """Return torch's namespace of this backend's operators. The first call imports Triton and the kernels."""
    from npr_kernels.backends.triton import operators  # noqa: F401

    return torch.ops.npr_kernels_triton


def _code(anchor: Anchor) -> int:
    return _ANCHOR_CODES[anchor] if isinstance(anchor, str) else anchor


def _coded(convolution: Convolution) -> tuple:
    """Return the arguments of the operators, in their order."""
    return tuple(convolution._replace(anchor=_code(convolution.anchor)))


def _channels_last(x: Tensor) -> bool:
    return x.shape[1] > 1 and x.stride(1) == 1

"""The `eager` backend: plain PyTorch on any device. It serves every call and every kind of differentiation.

The operators are those of :mod:`npr_kernels.reference`. Autograd computes their gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from npr_kernels import reference
from npr_kernels.backends.base import Call, Convolution
from npr_kernels.reference import Anchor

NAME = "eager"
DIFFERENTIABLE = True
EXAMPLE = Call("npr_conv2d", torch.device("cpu"), torch.float32, torch.float32, Convolution())
SELF_TEST_SIZES: tuple[tuple[int, int], ...] = ()  # it is what others are compared with


def unsupported_reason(call: Call) -> str | None:
    """Return None, because the reference serves every call with valid arguments."""
    return None


def npr(x: Tensor, grid_size: int, anchor: Anchor) -> Tensor:
    return reference.npr(x, grid_size, anchor)


def npr_backward(grad: Tensor, x: Tensor, grid_size: int, anchor: Anchor) -> Tensor:
    return _gradient(lambda x: reference.npr(x, grid_size, anchor), x, grad)


def npr_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
    return reference.npr_conv2d(x, weight, bias, *convolution)


def npr_conv2d_grad_weight(grad: Tensor, x: Tensor, weight: Tensor, convolution: Convolution) -> Tensor:
    return _gradient(lambda weight: reference.npr_conv2d(x, weight, None, *convolution), weight, grad)


def npr_conv2d_grad_input(grad: Tensor, x: Tensor, weight: Tensor, convolution: Convolution) -> Tensor:
    return _gradient(lambda x: reference.npr_conv2d(x, weight, None, *convolution), x, grad)


def npr_stem(x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
    return reference.npr_stem(x, weight, bias, *convolution)


def npr_stem_argmax(x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> tuple[Tensor, Tensor]:
    y = F.relu(reference.npr_conv2d(x, weight, bias, *convolution))
    pooled, position = F.max_pool2d(y, 3, stride=2, padding=1, return_indices=True)
    rows, columns = (2 * torch.arange(n, device=x.device) - 1 for n in pooled.shape[2:])
    place = 3 * (position // y.shape[3] - rows[:, None]) + position % y.shape[3] - columns
    return pooled, place.where(pooled > 0, 9).to(torch.uint8)


def npr_stem_grad_weight(
    grad: Tensor, argmax: Tensor, x: Tensor, kernel: tuple[int, int], convolution: Convolution
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    weight = x.new_zeros((grad.shape[1], x.shape[1], *kernel), dtype=dtype)
    grad = reference.unpool(grad.to(dtype), argmax, convolution.output_size(x, kernel))
    x = x if x.dtype == torch.uint8 else x.to(dtype)
    return npr_conv2d_grad_weight(grad, x, weight, convolution), grad.sum((0, 2, 3))


def npr_moments(x: Tensor, kernel: tuple[int, int], convolution: Convolution) -> tuple[Tensor, Tensor]:
    return reference.npr_moments(x, kernel, *convolution)


def _gradient(function: Callable[[Tensor], Tensor], at: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of ``function`` in ``at``. It can be differentiated again."""
    return torch.func.vjp(function, at)[1](grad)[0]

"""The ``torch.autograd.Function`` classes: what is saved for backward, and which kernel computes each gradient.

A backend (:mod:`npr_kernels.backends`) brings plain forward and gradient kernels; these classes make them
differentiable. Gradients are computed only for the inputs that ask. Each ``grid`` is ``(grid_size, anchor)``, each
``convolution`` is ``(stride, padding, grid_size, anchor, scale)`` in the normal form of :mod:`npr_kernels.arguments`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from npr_kernels.backends import registry

POOLING = (3, 3), (2, 2), (1, 1)  # kernel, stride and padding of the stem's max-pool


class NPR(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, grid: tuple, backend: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.grid, ctx.backend = grid, backend
        return registry.get(backend).npr(x, *grid)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        return registry.get(ctx.backend).npr_backward(grad, x, *ctx.grid), None, None


class NPRConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, convolution: tuple, backend: str) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.convolution, ctx.backend = convolution, backend
        return registry.get(backend).npr_conv2d(x, weight, bias, *convolution)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        return *_convolution_gradients(ctx, grad, x, weight), None, None


class NPRStem(torch.autograd.Function):
    """Saves only the inputs: backward computes the convolution's output again rather than keeping it."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, convolution: tuple, backend: str) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.convolution, ctx.backend = convolution, backend
        return registry.get(backend).npr_stem(x, weight, bias, *convolution)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight, bias = ctx.saved_tensors
        y = registry.get(ctx.backend).npr_conv2d(x, weight, bias, *ctx.convolution).relu_()
        _, argmax = torch.ops.aten.max_pool2d_with_indices(y, *POOLING)
        grad = torch.ops.aten.max_pool2d_with_indices_backward(grad, y, *POOLING, (1, 1), False, argmax)
        return *_convolution_gradients(ctx, grad * (y > 0), x, weight), None, None


def _convolution_gradients(ctx, grad: Tensor, x: Tensor, weight: Tensor):
    """Gradients to (x, weight, bias) of a convolution whose output has the gradient ``grad``; None where not asked."""
    backend = registry.get(ctx.backend)
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    return (
        backend.npr_conv2d_grad_input(grad, x, weight, *ctx.convolution) if needs_x else None,
        backend.npr_conv2d_grad_weight(grad, x, weight, *ctx.convolution) if needs_weight else None,
        grad.sum((0, 2, 3)) if needs_bias else None,
    )

"""The ``torch.autograd.Function`` classes: what is saved for backward, and which kernel computes each gradient.

A backend (:mod:`npr_kernels.backends`) brings plain forward and gradient kernels; these classes make them
differentiable. Gradients are computed only for the inputs that ask. Each ``grid`` is ``(grid_size, anchor)``, each
``convolution`` is ``(stride, padding, grid_size, anchor, scale)`` in the normal form of :mod:`npr_kernels.arguments`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from npr_kernels import arguments
from npr_kernels.backends import registry


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
        backend = registry.get(ctx.backend)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        return (
            backend.npr_conv2d_grad_input(grad, x, weight, *ctx.convolution) if needs_x else None,
            backend.npr_conv2d_grad_weight(grad, x, weight, *ctx.convolution) if needs_weight else None,
            grad.sum((0, 2, 3)) if needs_bias else None,
            None,
            None,
        )


class NPRStem(torch.autograd.Function):
    """Saves the image and one byte a pooled value: where its window had the maximum. Nothing of the convolution's size.

    The kernels take ``weight`` and ``bias`` in ``dtype``, the result's; the gradients go to them as they are given, so
    that parameters folded in a wider type get gradients which have not been rounded. ``dense`` serves the gradient to
    the image, which is as large as the convolution's output.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        convolution: tuple,
        backend: str,
        dense: str | None,
    ) -> Tensor:
        pooled, argmax = registry.get(backend).npr_stem_argmax(x, *in_dtype(dtype, weight, bias), *convolution)
        ctx.save_for_backward(x, weight, argmax)
        ctx.convolution, ctx.backend, ctx.dense = convolution, backend, dense
        ctx.bias_dtype = None if bias is None else bias.dtype
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight, argmax = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = grad_bias = None
        if needs_weight or needs_bias:
            products, sums = registry.get(ctx.backend).npr_stem_grad_weight(
                grad, argmax, x, tuple(weight.shape[2:]), *ctx.convolution
            )
            grad_weight = products.to(weight.dtype) if needs_weight else None
            grad_bias = sums.to(ctx.bias_dtype) if needs_bias else None
        if needs_x:
            size = arguments.convolution_output_size(x, weight, *ctx.convolution[:3])
            grad_x = registry.get(ctx.dense).npr_conv2d_grad_input(
                unpool(grad.to(x.dtype), argmax, size), x, weight.to(x.dtype), *ctx.convolution
            )
        return grad_x, grad_weight, grad_bias, None, None, None, None


class PatchMoments(torch.autograd.Function):
    """Sums over all output positions of the patches P that the convolution sees, and of P P^T: (K,), (K, K), float64.

    K = C * KH * KW, in the order of ``weight.flatten(1)``. ``dense`` serves the gradient to the image.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        kernel: tuple[int, int],
        convolution: tuple,
        backend: str,
        dense: str | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        ctx.kernel, ctx.convolution, ctx.dense = kernel, convolution, dense
        return registry.get(backend).npr_moments(x, kernel, *convolution)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_first: Tensor, grad_second: Tensor):
        """dP = grad_first + (grad_second + grad_second^T) P at each position: a convolution to K channels."""
        (x,) = ctx.saved_tensors
        dense = registry.get(ctx.dense)
        dtype = x.dtype if x.dtype == torch.float64 else torch.float32
        wide, shape = x.to(dtype), (grad_first.numel(), x.shape[1], *ctx.kernel)
        weight = (grad_second + grad_second.T).to(dtype).view(shape)
        grad = dense.npr_conv2d(wide, weight, grad_first.to(dtype), *ctx.convolution)
        identity = torch.eye(shape[0], dtype=dtype, device=x.device).view(shape)
        grad = dense.npr_conv2d_grad_input(grad, wide, identity, *ctx.convolution)
        return grad.to(x.dtype), None, None, None, None


def in_dtype(dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def unpool(grad: Tensor, argmax: Tensor, size: tuple[int, int]) -> Tensor:
    """The gradient at the stem's convolution output, (N, O, *size), from the pooled one and the maxima's positions.

    Windows overlap, so every position in the window is added on its own: deterministic on any device.
    """
    (n, channels), (height, width) = grad.shape[:2], grad.shape[2:]
    padded = grad.new_zeros((n, channels, 2 * height + 1, 2 * width + 1)).contiguous(memory_format=torch.channels_last)
    for k in range(9):
        row, column = divmod(k, 3)
        target = padded[:, :, row : row + 2 * height : 2, column : column + 2 * width : 2]
        target += grad.masked_fill(argmax != k, 0)
    return padded[:, :, 1 : 1 + size[0], 1 : 1 + size[1]]

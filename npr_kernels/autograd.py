"""Makes the operators differentiable, to any order in reverse mode, with ``torch.autograd.Function`` classes.

A backend (:mod:`npr_kernels.backends`) has kernels for the operators and their gradients. The convolution of NPR is
linear in the image (except for the anchor "max") and in the weight. So the convolution and its two gradients are each
other's derivatives, and three kernels are enough for every order. The gradient of the fused stem is that of the
convolution at the positions of the maxima. If a graph of the backward pass is needed, it is computed with these three
kernels. With the anchor "max", second derivatives use the `eager` backend.

Gradients are computed only for the inputs that need them. Only the `eager` backend serves forward-mode differentiation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from npr_kernels import reference
from npr_kernels.backends import eager, registry
from npr_kernels.backends.base import Call, Convolution, transforms_are_active
from npr_kernels.reference import Anchor

Gradients = tuple[Tensor | None, ...]  # one for each argument of forward


def npr(x: Tensor, grid_size: int, anchor: Anchor, backend: str) -> Tensor:
    """Compute the NPR map with the named backend, differentiable in x."""
    if registry.get(backend).DIFFERENTIABLE or not _recorded(x):
        return registry.get(backend).npr(x, grid_size, anchor)
    return NPRFunction.apply(x, grid_size, anchor, backend)


def npr_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution, backend: str) -> Tensor:
    """Compute the convolution with the named backend, differentiable in x, weight and bias."""
    if registry.get(backend).DIFFERENTIABLE or not _recorded(x, weight, bias):
        return registry.get(backend).npr_conv2d(x, weight, bias, convolution)
    return NPRConv2dFunction.apply(x, weight, bias, convolution, backend)


def npr_stem(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    convolution: Convolution,
    backend: str,
    dense: str | None,
) -> Tensor:
    """Compute the stem in ``dtype`` with the named backend, differentiable in x, weight and bias.

    ``dense`` names the backend for the gradient of the image, which needs the whole convolution. It is None if this
    gradient is not needed.
    """
    if registry.get(backend).DIFFERENTIABLE or not _recorded(x, weight, bias) or torch.compiler.is_exporting():
        return registry.get(backend).npr_stem(x, *in_dtype(dtype, weight, bias), convolution)
    return NPRStemFunction.apply(x, weight, bias, dtype, convolution, backend, dense)[0]


def patch_moments(
    x: Tensor, kernel: tuple[int, int], convolution: Convolution, backend: str, dense: str | None
) -> tuple[Tensor, Tensor]:
    """Sum the patches P that the convolution sees, and P P^T, over all positions: (K,) and (K, K), float64.

    K = C * KH * KW, in the order of ``weight.flatten(1)``. ``dense`` names the backend for the gradient of the image.
    """
    if not _recorded(x):
        return registry.get(backend).npr_moments(x, kernel, convolution)
    return PatchMomentsFunction.apply(x, kernel, convolution, backend, dense)


class NPRFunction(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, grid_size: int, anchor: Anchor, backend: str) -> Tensor:
        return registry.get(backend).npr(x, grid_size, anchor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        x, ctx.grid_size, ctx.anchor, ctx.backend = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        (x,) = ctx.saved_tensors
        return _npr_backward(grad, x, ctx.grid_size, ctx.anchor, ctx.backend), None, None, None


class NPRBackwardFunction(Function):
    """The gradient of NPR in the image. It is linear in ``grad``, and its derivative is NPR."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, x: Tensor, grid_size: int, anchor: Anchor, backend: str) -> Tensor:
        return registry.get(backend).npr_backward(grad, x, grid_size, anchor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        _, _, ctx.grid_size, ctx.anchor, ctx.backend = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        return npr(grad, ctx.grid_size, ctx.anchor, ctx.backend), None, None, None, None


class NPRConv2dFunction(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution, backend: str) -> Tensor:
        return registry.get(backend).npr_conv2d(x, weight, bias, convolution)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        x, weight, _, ctx.convolution, ctx.backend = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        return (
            _grad_input(grad, x, weight, ctx.convolution, ctx.backend) if needs_x else None,
            _grad_weight(grad, x, weight, ctx.convolution, ctx.backend) if needs_weight else None,
            grad.sum((0, 2, 3)) if needs_bias else None,
            None,
            None,
        )


class NPRConv2dGradInputFunction(Function):
    """The gradient of the convolution in the image. It is linear in ``grad`` and in the weight."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, x: Tensor, weight: Tensor, convolution: Convolution, backend: str) -> Tensor:
        return registry.get(backend).npr_conv2d_grad_input(grad, x, weight, convolution)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        grad, _, weight, ctx.convolution, ctx.backend = inputs
        ctx.save_for_backward(grad, weight)

    @staticmethod
    def backward(ctx: Any, image: Tensor) -> Gradients:
        """``image`` is the gradient of the result, which has the image's shape."""
        grad, weight = ctx.saved_tensors
        needs_grad, _, needs_weight = ctx.needs_input_grad[:3]
        return (
            npr_conv2d(image, weight, None, ctx.convolution, ctx.backend) if needs_grad else None,
            None,
            _grad_weight(grad, image, weight, ctx.convolution, ctx.backend) if needs_weight else None,
            None,
            None,
        )


class NPRConv2dGradWeightFunction(Function):
    """The gradient of the convolution in the weight. It is linear in ``grad`` and in the image."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, x: Tensor, weight: Tensor, convolution: Convolution, backend: str) -> Tensor:
        return registry.get(backend).npr_conv2d_grad_weight(grad, x, weight, convolution)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        grad, x, _, ctx.convolution, ctx.backend = inputs
        ctx.save_for_backward(grad, x)

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> Gradients:
        """``weight`` is the gradient of the result, which has the weight's shape."""
        grad, x = ctx.saved_tensors
        needs_grad, needs_x = ctx.needs_input_grad[:2]
        return (
            npr_conv2d(x, weight, None, ctx.convolution, ctx.backend) if needs_grad else None,
            _grad_input(grad, x, weight, ctx.convolution, ctx.backend) if needs_x else None,
            None,
            None,
            None,
        )


class NPRStemFunction(Function):
    """The stem. For the backward pass it saves the image and one byte per pooled value: the position of the maximum.

    The kernels receive ``weight`` and ``bias`` in ``dtype``, that of the result. Their gradients have the dtypes of the
    arguments, so they are not rounded if the parameters were folded in a wider type.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        convolution: Convolution,
        backend: str,
        dense: str | None,
    ) -> tuple[Tensor, Tensor]:
        return registry.get(backend).npr_stem_argmax(x, *in_dtype(dtype, weight, bias), convolution)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        x, weight, bias, _, ctx.convolution, ctx.backend, ctx.dense = inputs
        _, argmax = output
        ctx.mark_non_differentiable(argmax)
        ctx.save_for_backward(x, weight, argmax)
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> Gradients:
        x, weight, argmax = ctx.saved_tensors
        kernel, convolution = tuple(weight.shape[2:]), ctx.convolution
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = grad_bias = None
        if torch.is_grad_enabled():  # a graph of these gradients is needed, so compute them with the convolution
            image = x if x.dtype == torch.uint8 else x.to(weight.dtype)
            dense = reference.unpool(grad.to(weight.dtype), argmax, convolution.output_size(x, kernel))
            backend = ctx.dense or _convolution_backend(image, weight, convolution, ctx.backend)
            grad_weight = _grad_weight(dense, image, weight, convolution, backend) if needs_weight else None
            grad_bias = dense.sum((0, 2, 3)).to(ctx.bias_dtype) if needs_bias else None
            grad_x = _grad_input(dense, image, weight, convolution, backend).to(x.dtype) if needs_x else None
            return grad_x, grad_weight, grad_bias, None, None, None, None
        if needs_weight or needs_bias:
            products, sums = registry.get(ctx.backend).npr_stem_grad_weight(grad, argmax, x, kernel, convolution)
            grad_weight = products.to(weight.dtype) if needs_weight else None
            grad_bias = sums.to(ctx.bias_dtype) if needs_bias else None
        if needs_x:
            dense = reference.unpool(grad.to(x.dtype), argmax, convolution.output_size(x, kernel))
            backend = ctx.dense or _convolution_backend(x, weight.to(x.dtype), convolution, ctx.backend)
            grad_x = _grad_input(dense, x, weight.to(x.dtype), convolution, backend)
        return grad_x, grad_weight, grad_bias, None, None, None, None


class PatchMomentsFunction(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, kernel: tuple[int, int], convolution: Convolution, backend: str, dense: str | None
    ) -> tuple[Tensor, Tensor]:
        return registry.get(backend).npr_moments(x, kernel, convolution)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        x, ctx.kernel, ctx.convolution, ctx.backend, ctx.dense = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad_first: Tensor, grad_second: Tensor) -> Gradients:
        """Compute dP = grad_first + (grad_second + grad_second^T) P at each position: a convolution to K channels."""
        (x,) = ctx.saved_tensors
        dtype = x.dtype if x.dtype == torch.float64 else torch.float32
        image, shape = x.to(dtype), (grad_first.numel(), x.shape[1], *ctx.kernel)
        weight = (grad_second + grad_second.T).to(dtype).view(shape)
        backend = ctx.dense or _convolution_backend(image, weight, ctx.convolution, ctx.backend)
        grad = npr_conv2d(image, weight, grad_first.to(dtype), ctx.convolution, backend)
        identity = torch.eye(shape[0], dtype=dtype, device=x.device).view(shape)
        grad = _grad_input(grad, image, identity, ctx.convolution, backend)
        return grad.to(x.dtype), None, None, None, None


def in_dtype(dtype: torch.dtype, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Cast both to ``dtype``; None stays None."""
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def _recorded(*tensors: Tensor | None) -> bool:
    """Return whether gradients of these tensors may be needed.

    Transforms of torch.func hide requires_grad of the tensors that they wrap. torch has no public function that tells
    whether a transform is active.
    """
    if not torch.is_grad_enabled():
        return False
    if not torch.compiler.is_compiling() and transforms_are_active():
        return True
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _convolution_backend(x: Tensor, weight: Tensor, convolution: Convolution, preferred: str) -> str:
    """Return the name of a backend that serves the whole convolution: ``preferred`` if it can."""
    call = Call.of("npr_conv2d", x, weight.dtype, convolution, weight)
    return preferred if registry.get(preferred).unsupported_reason(call) is None else registry.select(call)


def _npr_backward(grad: Tensor, x: Tensor, grid_size: int, anchor: Anchor, backend: str) -> Tensor:
    if not torch.is_grad_enabled():
        return registry.get(backend).npr_backward(grad, x, grid_size, anchor)
    if anchor == "max":  # the positions of the maxima depend on x
        return eager.npr_backward(grad, x, grid_size, anchor)
    return NPRBackwardFunction.apply(grad, x, grid_size, anchor, backend)


def _grad_input(grad: Tensor, x: Tensor, weight: Tensor, convolution: Convolution, backend: str) -> Tensor:
    if not torch.is_grad_enabled():
        return registry.get(backend).npr_conv2d_grad_input(grad, x, weight, convolution)
    if convolution.anchor == "max":
        return eager.npr_conv2d_grad_input(grad, x, weight, convolution)
    return NPRConv2dGradInputFunction.apply(grad, x, weight, convolution, backend)


def _grad_weight(grad: Tensor, x: Tensor, weight: Tensor, convolution: Convolution, backend: str) -> Tensor:
    if not torch.is_grad_enabled():
        return registry.get(backend).npr_conv2d_grad_weight(grad, x, weight, convolution)
    if convolution.anchor == "max":
        return eager.npr_conv2d_grad_weight(grad, x, weight, convolution)
    return NPRConv2dGradWeightFunction.apply(grad, x, weight, convolution, backend)

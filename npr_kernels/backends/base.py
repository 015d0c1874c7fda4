"""What a backend is: the calls that it may be asked to serve, and the operators that it then provides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from npr_kernels import arguments
from npr_kernels.reference import Anchor


class Convolution(NamedTuple):
    """How a convolution slides over the NPR map, in normal form: pairs are (height, width).

    The defaults leave the NPR map as it is: that is the operator ``npr``.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    grid_size: int = 2
    anchor: Anchor = 0
    scale: tuple[float, ...] = (1.0,)  # factor on the NPR map: one, or one per channel

    def output_size(self, x: Tensor, kernel: tuple[int, int]) -> tuple[int, int]:
        """Return (OH, OW) for an image (N, C, H, W)."""
        return arguments.convolution_output_size(x, kernel, self.stride, self.padding, self.grid_size)


@dataclass(frozen=True)
class Call:
    """A call without its tensors' sizes: all that decides whether a backend can serve it.

    ``operator``: npr, npr_conv2d, npr_stem or npr_batch_norm_stem. ``dtype``: the weight's, in which the call computes.
    ``weight_shape``: (O, C, KH, KW), or None where there is no weight, or any would do.
    """

    operator: str
    device: torch.device
    x_dtype: torch.dtype
    dtype: torch.dtype
    convolution: Convolution
    weight_shape: tuple[int, int, int, int] | None = None
    channels_last: bool = True  # memory format of x
    image_gradient: bool = False  # whether a backward to the image may follow
    parameter_gradients: bool = False  # whether one to the parameters may follow
    forward_mode: bool = False  # whether an input carries a tangent of forward-mode differentiation

    @classmethod
    def of(
        cls,
        operator: str,
        x: Tensor,
        dtype: torch.dtype,
        convolution: Convolution,
        weight: Tensor | None = None,
        *parameters: Tensor | None,
    ) -> Call:
        """Describe the call ``operator`` on these tensors."""
        recorded, tensors = torch.is_grad_enabled(), (weight, *parameters)
        return cls(
            operator, x.device, x.dtype, dtype, convolution,
            weight_shape=None if weight is None else tuple(weight.shape),
            channels_last=x.shape[1] > 1 and x.stride(1) == 1,
            image_gradient=recorded and x.requires_grad,
            parameter_gradients=recorded and any(t is not None and t.requires_grad for t in tensors),
            forward_mode=any(t is not None and _has_tangent(t) for t in (x, *tensors)),
        )  # fmt: skip


def _has_tangent(tensor: Tensor) -> bool:
    return not torch.compiler.is_compiling() and forward_ad.unpack_dual(tensor).tangent is not None


class StemBackend(Protocol):
    """Serves the stem (NPR, convolution, bias, ReLU and 3x3/2 max-pool) in one pass, and what its training needs.

    The module of a backend has these names as functions. Arguments are checked and in normal form: ``x`` (N, C, H, W),
    ``weight`` (O, C, KH, KW), ``bias`` (O,) or None. The operators record no gradients, as :mod:`npr_kernels.autograd`
    does, unless DIFFERENTIABLE says that PyTorch differentiates them as they are.
    """

    DIFFERENTIABLE: bool

    def refusal(self, call: Call) -> str | None:
        """Return why this backend cannot serve ``call``, or None if it can."""

    def npr_stem(self, x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
        """Return the pooled values, (N, O, PH, PW) in weight's dtype."""

    def npr_stem_argmax(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution
    ) -> tuple[Tensor, Tensor]:
        """Return the pooled values, and each maximum's place in its 3x3 window: 0 .. 8, 9 if it is not positive."""

    def npr_stem_grad_weight(
        self, grad: Tensor, argmax: Tensor, x: Tensor, kernel: tuple[int, int], convolution: Convolution
    ) -> tuple[Tensor, Tensor]:
        """Return the stem's gradients to the weight and to the bias, in float32, or float64 for float64 inputs."""

    def npr_moments(self, x: Tensor, kernel: tuple[int, int], convolution: Convolution) -> tuple[Tensor, Tensor]:
        """Return the sums of the patches P that the convolution sees and of P P^T: (K,) and (K, K), float64.

        K = C * KH * KW, in the order of ``weight.flatten(1)``.
        """


class Backend(StemBackend, Protocol):
    """Serves every operator."""

    def npr(self, x: Tensor, grid_size: int, anchor: Anchor) -> Tensor:
        """Return the NPR map, (N, C, H', W') of the trimmed size."""

    def npr_backward(self, grad: Tensor, x: Tensor, grid_size: int, anchor: Anchor) -> Tensor:
        """Return the gradient to the image, of x's shape and dtype, from that to the NPR map."""

    def npr_conv2d(self, x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
        """Return the convolution of the NPR map, (N, O, OH, OW) in weight's dtype and x's memory format."""

    def npr_conv2d_grad_weight(self, grad: Tensor, x: Tensor, weight: Tensor, convolution: Convolution) -> Tensor:
        """Return the gradient to the weight, of weight's shape and dtype."""

    def npr_conv2d_grad_input(self, grad: Tensor, x: Tensor, weight: Tensor, convolution: Convolution) -> Tensor:
        """Return the gradient to the image, of x's shape and dtype."""

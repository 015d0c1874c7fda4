"""The interface of a backend: the description of a call, and the operators that a backend provides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from npr_kernels import arguments
from npr_kernels.reference import Anchor
from npr_kernels.tracing import constant

_ANCHOR_CODES = {"mean": -1, "max": -2}  # as in csrc/common/geometry.h and triton/patches.py


def anchor_code(anchor: Anchor) -> int:
    """Return an anchor as compiled operators take it: the index of a pixel, or a negative number."""
    return _ANCHOR_CODES[anchor] if isinstance(anchor, str) else anchor


class Convolution(NamedTuple):
    """The options of a convolution of the NPR map. Pairs are (height, width).

    The defaults describe the operator ``npr``, which leaves the NPR map as it is.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    grid_size: int = 2
    anchor: Anchor = 0
    scale: tuple[float, ...] = (1.0,)  # factor on the NPR map: one, or one per channel

    def output_size(self, x: Tensor, kernel: tuple[int, int]) -> tuple[int, int]:
        """Return (OH, OW) for an image (N, C, H, W)."""
        return arguments.convolution_output_size(x, kernel, self.stride, self.padding, self.grid_size)

    def coded(self) -> tuple:
        """Return the arguments of compiled operators, in their order."""
        return tuple(self._replace(anchor=anchor_code(self.anchor)))


@dataclass(frozen=True)
class Call:
    """Everything that decides whether a backend can serve a call. The sizes of images do not.

    Attributes:
        operator: "npr", "npr_conv2d", "npr_stem" or "npr_batch_norm_stem".
        device, x_dtype: Those of the image.
        dtype: That of the weight, in which the call computes.
        convolution: Stride, padding, cells and scale.
        weight_shape: (O, C, KH, KW); None without a weight, or if every shape counts as served.
        channels_last: Memory format of the image.
        image_gradient, parameter_gradients: Whether a backward pass to the image, or to the parameters, may follow.
        plain_only: What the call needs that only plain PyTorch can do, in words; None if it needs nothing of the kind.
    """

    operator: str
    device: torch.device
    x_dtype: torch.dtype
    dtype: torch.dtype
    convolution: Convolution
    weight_shape: tuple[int, ...] | None = None
    channels_last: bool = True
    image_gradient: bool = False
    parameter_gradients: bool = False
    plain_only: str | None = None

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
        """Describe a call of ``operator`` with these tensors."""
        recorded, tensors = torch.is_grad_enabled(), (weight, *parameters)
        return cls(
            operator, x.device, x.dtype, dtype, convolution,
            weight_shape=None if weight is None else tuple(weight.shape),
            channels_last=x.shape[1] > 1 and x.stride(1) == 1,
            image_gradient=recorded and x.requires_grad,
            parameter_gradients=recorded and any(t is not None and t.requires_grad for t in tensors),
            plain_only=_plain_only(x, *tensors),
        )  # fmt: skip


def _plain_only(*tensors: Tensor | None) -> str | None:
    """Name the kind of differentiation that only plain PyTorch serves.

    Transforms of torch.func hide the tangents of the tensors that they wrap, and torch.compile the gradients, too: a
    compiled operator would silently be a constant. torch has no public name for either question.
    """
    if torch.compiler.is_compiling():
        return "transforms of torch.func inside torch.compile" if transforms_are_active() else None
    if forward_ad._current_level < 0:
        return None
    if transforms_are_active():
        return "forward-mode derivatives"
    tangents = (forward_ad.unpack_dual(tensor).tangent for tensor in tensors if tensor is not None)
    return "forward-mode derivatives" if any(tangent is not None for tangent in tangents) else None


@constant
def transforms_are_active() -> bool:
    """Return whether the call is inside a transform of torch.func, such as grad or vmap."""
    return torch._C._are_functorch_transforms_active()


class StemBackend(Protocol):
    """Serves the stem (NPR, convolution, bias, ReLU and a 3x3 max-pool with stride 2) and its training.

    The module of a backend has functions with these names. Their arguments are checked and normalised: ``x`` (N, C, H,
    W), ``weight`` (O, C, KH, KW), ``bias`` (O,) or None. DIFFERENTIABLE says whether PyTorch can differentiate the
    operators by itself. If not, :mod:`npr_kernels.autograd` makes them differentiable.
    """

    NAME: str
    DIFFERENTIABLE: bool
    EXAMPLE: Call  # a plain call that the backend is made for, to tell whether it is available
    SELF_TEST_SIZES: tuple[tuple[int, int], ...]  # results (rows, columns) of the self-test; none: it needs no test

    def unsupported_reason(self, call: Call) -> str | None:
        """Return why this backend cannot serve ``call``, or None if it can."""

    def npr_stem(self, x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
        """Return the pooled values, (N, O, PH, PW) in weight's dtype."""

    def npr_stem_argmax(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution
    ) -> tuple[Tensor, Tensor]:
        """Return the pooled values and the positions of the maxima in their 3x3 windows.

        A position is 0 .. 8, row by row, or 9 if the maximum is not positive.
        """

    def npr_stem_grad_weight(
        self, grad: Tensor, argmax: Tensor, x: Tensor, kernel: tuple[int, int], convolution: Convolution
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of the stem's weight and bias, in float32, or float64 for float64 inputs."""

    def npr_moments(self, x: Tensor, kernel: tuple[int, int], convolution: Convolution) -> tuple[Tensor, Tensor]:
        """Return the sums over all positions of the convolution's patches P and of P P^T: (K,) and (K, K), float64.

        K = C * KH * KW, in the order of ``weight.flatten(1)``.
        """


class Backend(StemBackend, Protocol):
    """Serves every operator."""

    def npr(self, x: Tensor, grid_size: int, anchor: Anchor) -> Tensor:
        """Return the NPR map, (N, C, H', W') of the trimmed size."""

    def npr_backward(self, grad: Tensor, x: Tensor, grid_size: int, anchor: Anchor) -> Tensor:
        """Return the gradient of the image, in x's shape and dtype, from the gradient of the NPR map."""

    def npr_conv2d(self, x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
        """Return the convolution of the NPR map, (N, O, OH, OW) in weight's dtype and x's memory format."""

    def npr_conv2d_grad_weight(self, grad: Tensor, x: Tensor, weight: Tensor, convolution: Convolution) -> Tensor:
        """Return the gradient of the weight, in its shape and dtype."""

    def npr_conv2d_grad_input(self, grad: Tensor, x: Tensor, weight: Tensor, convolution: Convolution) -> Tensor:
        """Return the gradient of the image, in its shape and dtype."""

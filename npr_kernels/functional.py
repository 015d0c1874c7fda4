"""The public functions: check the arguments, choose a backend, run it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from npr_kernels import arguments, autograd, reference
from npr_kernels.backends import registry
from npr_kernels.reference import Anchor


def npr(x: Tensor, grid_size: int = 2, anchor: Anchor = 0, *, edge: str = "trim", backend: str | None = None) -> Tensor:
    """Neighbouring Pixel Relationships: every pixel minus its cell's anchor, per channel (paper, equation 4).

    Args:
        x: (N, C, H, W), any strides; uint8 (raw pixels) or floating point.
        grid_size: side of a cell in pixels, >= 2; cells are laid from the top-left corner.
        anchor: index of the anchor pixel in its cell, row-major, 0 .. grid_size**2 - 1 (the paper's w_j is anchor
            j - 1), or "mean" or "max" of the cell (among equal maxima the first takes the gradient).
        edge: "trim" leaves out trailing rows and columns that fill no cell; "error" refuses such sizes.
        backend: name of the backend to use; None chooses one (:func:`npr_kernels.backends`).

    Returns:
        (N, C, H', W'), the trimmed size, in x's dtype; float32 for uint8.

    Raises:
        ValueError, TypeError: an argument is out of its range; the message names it.
        BackendError: the chosen backend cannot serve the call; the message says why.
    """
    arguments.check_grid(grid_size, anchor)
    arguments.check_image(x, grid_size, edge)
    chosen = registry.select(registry.Call("npr", x.device.type, x.dtype, x.dtype, grid_size, anchor), backend)
    if chosen == "eager":
        return reference.npr(x, grid_size, anchor)
    return autograd.NPR.apply(x, (grid_size, anchor), chosen)


def npr_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 2,
    padding: int | tuple[int, int] = 1,
    grid_size: int = 2,
    anchor: Anchor = 0,
    scale: float | Sequence[float] = 2 / 3,
    edge: str = "trim",
    backend: str | None = None,
) -> Tensor:
    """``conv2d(scale * npr(x), weight, bias, stride, padding)`` without writing the NPR map to memory.

    Args:
        x: (N, C, H, W), any strides; uint8 (raw pixels, exact differences) or weight's dtype.
        weight: (O, C, KH, KW), floating point. bias: (O,) or None.
        stride, padding: int or (height, width); padding surrounds the NPR map, not the image, with zeros.
        grid_size, anchor, edge, backend: as in :func:`npr`.
        scale: factor on the NPR map, one or one per channel; 2/3 is the authors'. For uint8 images
            ``(2/3) / (255 * std[c])`` stands in for normalisation by ``std``; the means cancel.

    Returns:
        (N, O, H_out, W_out) in weight's dtype, in the memory format of x. Under autocast weight, bias and a floating
        point x are cast to the autocast dtype first. Differentiable once to x, weight and bias.

    Raises:
        As :func:`npr`.
    """
    x, weight, bias, convolution, chosen = _prepare(
        "npr_conv2d", x, weight, bias, stride, padding, grid_size, anchor, scale, edge, backend
    )
    if chosen == "eager":
        return reference.npr_conv2d(x, weight, bias, *convolution)
    return autograd.NPRConv2d.apply(x, weight, bias, convolution, chosen)


def npr_stem(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 2,
    padding: int | tuple[int, int] = 1,
    grid_size: int = 2,
    anchor: Anchor = 0,
    scale: float | Sequence[float] = 2 / 3,
    edge: str = "trim",
    backend: str | None = None,
) -> Tensor:
    """``max_pool2d(relu(npr_conv2d(...)), 3, stride=2, padding=1)`` in one pass over the image.

    The first layers of the authors' network in evaluation mode, with the batch norm folded into weight and bias by
    :func:`fold_batch_norm`. Arguments and errors as in :func:`npr_conv2d`.

    Returns:
        (N, O, H_pooled, W_pooled) in weight's dtype; the fused backends return channels_last strides. Differentiable
        once; backward computes the convolution again instead of keeping its output.
    """
    x, weight, bias, convolution, chosen = _prepare(
        "npr_stem", x, weight, bias, stride, padding, grid_size, anchor, scale, edge, backend
    )
    if chosen == "eager":
        return reference.npr_stem(x, weight, bias, *convolution)
    return autograd.NPRStem.apply(x, weight, bias, convolution, chosen)


def fold_batch_norm(weight: Tensor, bias: Tensor | None, batch_norm: torch.nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight (O, C, KH, KW) and bias (O,) of the convolution that equals conv + batch norm in evaluation mode."""
    if batch_norm.running_mean is None or batch_norm.running_var is None:
        raise ValueError("batch_norm keeps no running statistics (track_running_stats=False); it cannot be folded")
    factor = torch.rsqrt(batch_norm.running_var + batch_norm.eps)
    if batch_norm.weight is not None:
        factor = factor * batch_norm.weight
    offset = -batch_norm.running_mean * factor
    if bias is not None:
        offset = offset + bias * factor
    if batch_norm.bias is not None:
        offset = offset + batch_norm.bias
    return weight * factor.view(-1, 1, 1, 1), offset


def explain(x: Tensor, weight: Tensor | None = None, *, grid_size: int = 2, anchor: Anchor = 0) -> registry.Explanation:
    """Which backend would serve ``npr_conv2d(x, weight, ...)`` (or ``npr(x, ...)`` without weight) now, and why.

    Prints as a table of every backend with its reason; takes the context manager and the environment into account.
    """
    arguments.check_grid(grid_size, anchor)
    arguments.check_image(x, grid_size, "trim")
    if weight is None:
        return registry.explain(registry.Call("npr", x.device.type, x.dtype, x.dtype, grid_size, anchor))
    x, weight, _ = _autocast(x, weight, None)
    arguments.check_convolution(x, weight, None)
    return registry.explain(registry.Call("npr_conv2d", x.device.type, x.dtype, weight.dtype, grid_size, anchor))


def _autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Under autocast, what ``conv2d`` would do: everything floating point in the autocast dtype (float64 stays)."""
    if not torch.is_autocast_enabled(x.device.type) or weight.dtype == torch.float64:
        return x, weight, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    return (
        x.to(dtype) if x.is_floating_point() else x,
        weight.to(dtype),
        None if bias is None else bias.to(dtype),
    )


def _prepare(operator, x, weight, bias, stride, padding, grid_size, anchor, scale, edge, backend):
    """Checked arguments in normal form, and the name of the backend that serves them."""
    arguments.check_grid(grid_size, anchor)
    arguments.check_image(x, grid_size, edge)
    x, weight, bias = _autocast(x, weight, bias)
    arguments.check_convolution(x, weight, bias)
    stride = arguments.pair("stride", stride, 1)
    padding = arguments.pair("padding", padding, 0)
    arguments.check_output_size(x, weight, stride, padding, grid_size)
    convolution = (stride, padding, grid_size, anchor, arguments.scale_factors(scale, x.shape[1]))
    geometry = registry.Geometry(x.shape[1], weight.shape[0], tuple(weight.shape[2:]), stride, padding)
    call = registry.Call(operator, x.device.type, x.dtype, weight.dtype, grid_size, anchor, geometry)
    return x, weight, bias, convolution, registry.select(call, backend)

"""The public functions: check the arguments, choose a backend, run it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function, has_torch_function_unary

from npr_kernels import arguments, autograd, batch_norm, reference
from npr_kernels.backends import registry
from npr_kernels.backends.base import Call, Convolution
from npr_kernels.distributed import sum_over_processes
from npr_kernels.reference import Anchor


def npr(x: Tensor, grid_size: int = 2, anchor: Anchor = 0, *, edge: str = "trim", backend: str | None = None) -> Tensor:
    """Neighbouring Pixel Relationships: every pixel minus its cell's anchor, per channel (paper, equation 4).

    Args:
        x: (N, C, H, W), any strides; uint8 (raw pixels) or floating point.
        grid_size: side of a cell in pixels, >= 2; cells are laid from the top-left corner.
        anchor: index of the anchor pixel in its cell, row-major, 0 .. grid_size**2 - 1 (the paper's w_j is anchor
            j - 1), or "mean" or "max" of the cell (among equal maxima the first takes the gradient).
        edge: "trim" leaves out trailing rows and columns that fill no cell; "error" refuses such sizes.
        backend: name of the backend to use; None chooses one (:func:`which_backend` tells).

    Returns:
        (N, C, H', W'), the trimmed size, in x's dtype; float32 for uint8.

    Raises:
        ValueError, TypeError: an argument is out of its range; the message names it.
        BackendError: the chosen backend cannot serve the call; the message says why.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(npr, (x,), x, grid_size, anchor, edge=edge, backend=backend)
    grid_size, anchor = arguments.grid(grid_size, anchor)
    arguments.check_image(x, grid_size, edge)
    call = Call.of("npr", x, x.dtype, Convolution(grid_size=grid_size, anchor=anchor))
    return autograd.npr(x, grid_size, anchor, registry.select(call, backend))


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
    pixel_std: Sequence[float] | None = None,
    edge: str = "trim",
    backend: str | None = None,
) -> Tensor:
    """``conv2d(scale * npr(x), weight, bias, stride, padding)`` without writing the NPR map to memory.

    Args:
        x: (N, C, H, W), any strides; uint8 (raw pixels, exact differences) or weight's dtype.
        weight: (O, C, KH, KW), floating point. bias: (O,) or None.
        stride, padding: int or (height, width); padding surrounds the NPR map, not the image, with zeros.
        grid_size, anchor, edge, backend: as in :func:`npr`.
        scale: factor on the NPR map, one or one per channel; 2/3 is the authors'.
        pixel_std: for uint8 images: the standard deviation of each channel for pixels in 0 .. 1. The NPR map is also
            divided by ``255 * pixel_std[c]``, which equals normalising the image first, as the means cancel. None
            takes raw pixels as they are. Float images are never changed.

    Returns:
        (N, O, H_out, W_out) in weight's dtype, in the memory format of x. Under autocast weight, bias and a floating
        point x are cast to the autocast dtype first. Differentiable to x, weight and bias, any number of times in
        reverse mode; forward mode is served by the backend "eager".

    Raises:
        As :func:`npr`.
    """
    options = _Options(stride, padding, grid_size, anchor, scale, pixel_std, edge, backend)
    if has_torch_function((x, weight, bias)):
        return handle_torch_function(npr_conv2d, (x, weight, bias), x, weight, bias, **options._asdict())
    x, weight, bias, convolution, chosen = _prepare("npr_conv2d", x, weight, bias, options)
    return autograd.npr_conv2d(x, weight, bias, convolution, chosen)


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
    pixel_std: Sequence[float] | None = None,
    edge: str = "trim",
    backend: str | None = None,
) -> Tensor:
    """``max_pool2d(relu(npr_conv2d(...)), 3, stride=2, padding=1)`` in one pass over the image.

    The first layers of the authors' network in evaluation mode, with the batch norm folded into weight and bias by
    :func:`fold_batch_norm`. Arguments and errors as in :func:`npr_conv2d`.

    Returns:
        (N, O, H_pooled, W_pooled) in weight's dtype; the fused backends return channels_last strides. For backward they
        keep the image and one byte for each pooled value.
    """
    options = _Options(stride, padding, grid_size, anchor, scale, pixel_std, edge, backend)
    if has_torch_function((x, weight, bias)):
        return handle_torch_function(npr_stem, (x, weight, bias), x, weight, bias, **options._asdict())
    x, weight, bias, convolution, chosen = _prepare("npr_stem", x, weight, bias, options)
    dense = _dense_backend(x, weight, convolution, backend)
    if _is_plain(dense):
        chosen = dense
    return autograd.npr_stem(x, weight, bias, weight.dtype, convolution, chosen, dense)


def npr_batch_norm_stem(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool = True,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    stride: int | tuple[int, int] = 2,
    padding: int | tuple[int, int] = 1,
    grid_size: int = 2,
    anchor: Anchor = 0,
    scale: float | Sequence[float] = 2 / 3,
    pixel_std: Sequence[float] | None = None,
    edge: str = "trim",
    process_group: dist.ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    """``max_pool2d(relu(batch_norm(npr_conv2d(...))), 3, stride=2, padding=1)``, storing no map between the layers.

    The first layers of the authors' network, to train them. The batch's statistics come from the moments of the image's
    patches, and all gradients but the image's from one pass over the pooled gradient, a byte for each pooled value
    and the image (:mod:`npr_kernels.batch_norm`).

    Args:
        x, weight, bias, stride, padding, grid_size, anchor, scale, pixel_std, edge, backend: as in :func:`npr_conv2d`.
            With the batch's statistics bias moves nothing but running_mean, and its gradient is exactly zero.
        gamma, beta: (O,), the batch norm's weight and bias, or None; in weight's dtype, or in float32.
        running_mean, running_var: (O,), dtypes as gamma; with ``training`` they are updated in place if given.
        training: normalise by the batch's statistics, else by the running ones.
        momentum: how far the running statistics move; a tensor of one element also serves (1 / number of batches).
        eps: added to the variance.
        process_group: with ``training``, the statistics are those of the batches of all its processes together, which
            must all call; batches may differ in size or be empty. The gradients to the parameters are each process's
            share, and sum up to those of the joined batch; only the gradient to the image needs another exchange.

    Returns:
        (N, O, H_pooled, W_pooled) in weight's dtype, under autocast in the autocast dtype; the parameters and a float32
        image are not rounded to it before the differences are taken.

    Raises:
        As :func:`npr`; ValueError too if ``training`` with one value per channel.
    """
    options = _Options(stride, padding, grid_size, anchor, scale, pixel_std, edge, backend)
    tensors = x, weight, bias, gamma, beta, running_mean, running_var
    if has_torch_function(tensors):
        return handle_torch_function(
            npr_batch_norm_stem, tensors, *tensors, training=training, momentum=momentum, eps=eps,
            process_group=process_group, **options._asdict(),
        )  # fmt: skip
    arguments.check_tensors(x=x, weight=weight)
    if not training:
        arguments.check_batch_norm(weight, training, running_mean, running_var, gamma=gamma, beta=beta)
        folded = batch_norm.fold(weight, bias, running_mean, running_var, gamma, beta, eps)
        return npr_stem(x, *autograd.in_dtype(weight.dtype, *folded), **options._asdict())
    autocast = _autocast_dtype(x, weight)
    dtype = autocast or weight.dtype
    convolution = _convolution(x, weight, bias, options, any_image_dtype=autocast is not None)
    arguments.check_batch_norm(weight, training, running_mean, running_var, gamma=gamma, beta=beta)
    shape = (x.shape[0], weight.shape[0], *convolution.output_size(x, weight.shape[2:]))
    count = shape[0] * shape[2] * shape[3]
    if process_group is not None and dist.get_world_size(process_group) == 1:
        process_group = None
    if process_group is None and count == 1:
        raise ValueError(f"expected more than 1 value per channel when training, got input size {shape}")

    call = Call.of("npr_batch_norm_stem", x, dtype, convolution, weight, gamma, beta)
    chosen, dense = registry.select(call, backend), _dense_backend(x, weight, convolution, backend)
    if _is_plain(chosen) or _is_plain(dense):
        return reference.npr_batch_norm_stem(
            *_autocast(x, weight, bias), gamma, beta, running_mean, running_var, momentum, eps, *convolution,
            process_group=process_group,
        )  # fmt: skip
    first, second = autograd.patch_moments(x, tuple(weight.shape[2:]), convolution, chosen, dense)
    if process_group is not None:
        first, second, count = sum_over_processes(process_group, first, second, first.new_tensor(count))
    elif count == 0:  # nothing to normalise, and nothing to learn from
        running_mean, running_var, count = None, None, 1
    mean, variance = batch_norm.batch_statistics(weight, first, second, count)
    batch_norm.update_running_statistics(running_mean, running_var, mean, variance, bias, count, momentum)
    folded, offset = batch_norm.fold(weight.double(), None, mean, variance, gamma, beta, eps)
    if bias is not None:
        offset = offset + 0 * bias  # it cancels; its gradient is to be zero, not missing
    wide = torch.promote_types(weight.dtype, torch.float32)
    return autograd.npr_stem(x, *autograd.in_dtype(wide, folded, offset), dtype, convolution, chosen, dense)


def fold_batch_norm(weight: Tensor, bias: Tensor | None, bn: torch.nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight (O, C, KH, KW) and bias (O,) of the convolution that equals conv + batch norm in evaluation mode."""
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError("bn keeps no running statistics (track_running_stats=False); it cannot be folded")
    return batch_norm.fold(weight, bias, bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.eps)


def which_backend(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    operator: str = "npr_conv2d",
    stride: int | tuple[int, int] = 2,
    padding: int | tuple[int, int] = 1,
    grid_size: int = 2,
    anchor: Anchor = 0,
    scale: float | Sequence[float] = 2 / 3,
) -> registry.Explanation:
    """Which backend would serve a call now, and why no other: prints as a table of all backends with their reasons.

    Autocast, gradients that are recorded, :func:`use_backend` and the environment count as in the call itself. A GPU
    backend that was not yet tried on a small case is tried now (:mod:`npr_kernels.backends.proof`).

    Args:
        x, weight, stride, padding, grid_size, anchor, scale: as in :func:`npr_conv2d`; without weight it is the call
            ``npr(x, grid_size, anchor)``.
        operator: "npr_conv2d", "npr_stem" or "npr_batch_norm_stem" (in training mode).

    Raises:
        ValueError, TypeError: as the call itself, and for another operator.
    """
    options = _Options(stride, padding, grid_size, anchor, scale, None, "trim", None)
    if weight is None:
        grid_size, anchor = arguments.grid(grid_size, anchor)
        arguments.check_image(x, grid_size, "trim")
        return registry.which_backend(Call.of("npr", x, x.dtype, Convolution(grid_size=grid_size, anchor=anchor)))
    if operator not in ("npr_conv2d", "npr_stem", "npr_batch_norm_stem"):
        raise ValueError(f'operator must be "npr_conv2d", "npr_stem" or "npr_batch_norm_stem", got {operator!r}')
    training, dtype = operator == "npr_batch_norm_stem", _autocast_dtype(x, weight) or weight.dtype
    if not training:
        x, weight, _ = _autocast(x, weight, None)
    convolution = _convolution(x, weight, None, options, any_image_dtype=training)
    return registry.which_backend(Call.of(operator, x, dtype, convolution, weight))


class _Options(NamedTuple):
    """The options that the functions on a convolution share, as the caller gave them."""

    stride: int | tuple[int, int]
    padding: int | tuple[int, int]
    grid_size: int
    anchor: Anchor
    scale: float | Sequence[float]
    pixel_std: Sequence[float] | None
    edge: str
    backend: str | None


def _prepare(
    operator: str, x: Tensor, weight: Tensor, bias: Tensor | None, options: _Options
) -> tuple[Tensor, Tensor, Tensor | None, Convolution, str]:
    """Return the arguments, checked and in normal form, and the name of the backend that serves them."""
    arguments.check_tensors(x=x, weight=weight)
    x, weight, bias = _autocast(x, weight, bias)
    convolution = _convolution(x, weight, bias, options)
    call = Call.of(operator, x, weight.dtype, convolution, weight, bias)
    return x, weight, bias, convolution, registry.select(call, options.backend)


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, options: _Options, any_image_dtype: bool = False
) -> Convolution:
    grid_size, anchor = arguments.grid(options.grid_size, options.anchor)
    arguments.check_image(x, grid_size, options.edge)
    arguments.check_convolution(x, weight, bias, any_image_dtype)
    stride = arguments.pair("stride", options.stride, 1)
    padding = arguments.pair("padding", options.padding, 0)
    arguments.check_output_size(x, weight, padding, grid_size)
    pixel_std = options.pixel_std if x.dtype == torch.uint8 else None
    scale = arguments.scale_factors(options.scale, pixel_std, x.shape[1])
    return Convolution(stride, padding, grid_size, anchor, scale)


def _autocast_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks ``conv2d`` to compute in, None without autocast (float64 is left alone)."""
    device = x.device.type
    if weight.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return None
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Under autocast, what ``conv2d`` would do: everything floating point in the autocast dtype."""
    dtype = _autocast_dtype(x, weight)
    if dtype is None:
        return x, weight, bias
    return x.to(dtype) if x.is_floating_point() else x, *autograd.in_dtype(dtype, weight, bias)


def _dense_backend(x: Tensor, weight: Tensor, convolution: Convolution, backend: str | None) -> str | None:
    """Name of the backend for a stem's gradient to the image, which needs the whole convolution; None if unwanted."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return None
    return registry.select(Call.of("npr_conv2d", x, x.dtype, convolution, weight), backend)


def _is_plain(backend: str | None) -> bool:
    """Whether this is plain PyTorch, which autograd differentiates as it is."""
    return backend is not None and registry.get(backend).DIFFERENTIABLE

"""The public functions. They check their arguments, choose a backend and run it."""

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
from npr_kernels.distributed import check_count, is_empty, sum_over_processes
from npr_kernels.reference import Anchor

# Computed at import, because torch.compile of torch 2.11 cannot trace the function.
_AUTOCAST_DEVICES = frozenset(
    device for device in ("cpu", "cuda", "hpu", "mps", "xpu") if torch.amp.is_autocast_available(device)
)


def npr(x: Tensor, grid_size: int = 2, anchor: Anchor = 0, *, edge: str = "trim", backend: str | None = None) -> Tensor:
    """Compute Neighbouring Pixel Relationships: every pixel minus its cell's anchor, per channel (paper, equation 4).

    Args:
        x: (N, C, H, W) with any strides; uint8 (raw pixels) or floating point.
        grid_size: Side of a cell in pixels, at least 2. The first cell is in the top-left corner.
        anchor: Index of the anchor pixel in its cell, row by row, 0 .. grid_size**2 - 1 (the paper's w_j is anchor
            j - 1); or "mean" or "max" of the cell. The first of equal maxima receives the gradient.
        edge: "trim" leaves out trailing rows and columns that fill no cell. "error" refuses such sizes.
        backend: Name of the backend to use. None chooses one; :func:`which_backend` says which.

    Returns:
        (N, C, H', W'), trimmed to whole cells, in x's dtype, or float32 for uint8.

    Raises:
        ValueError, TypeError: An argument is not valid; the message names it.
        BackendError: The chosen backend cannot serve the call; the message says why.
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
    """Compute ``conv2d(scale * npr(x), weight, bias, stride, padding)`` without writing the NPR map to memory.

    Args:
        x: (N, C, H, W) with any strides; uint8 (raw pixels, exact differences) or weight's dtype.
        weight: (O, C, KH, KW), floating point.
        bias: (O,), of weight's dtype, or None.
        stride: Int or (height, width), at least 1.
        padding: Int or (height, width). It surrounds the NPR map, not the image, with zeros.
        grid_size: As in :func:`npr`.
        anchor: As in :func:`npr`.
        scale: Factor on the NPR map: one, or one per channel. The authors use 2/3.
        pixel_std: Standard deviation of each channel for pixels in 0 .. 1, for uint8 images. The NPR map is also
            divided by ``255 * pixel_std[c]``. This equals normalising the image first, because the means cancel. None
            uses raw pixels. Float images are never changed.
        edge: As in :func:`npr`.
        backend: As in :func:`npr`.

    Returns:
        (N, O, H_out, W_out) in weight's dtype and x's memory format. Under autocast, weight, bias and a floating point
        x are cast to the autocast dtype first. The result is differentiable in x, weight and bias, to any order in
        reverse mode; only the backend "eager" serves forward mode.

    Raises:
        ValueError, TypeError, BackendError: As in :func:`npr`.
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
    """Compute ``max_pool2d(relu(npr_conv2d(...)), 3, stride=2, padding=1)`` in one pass over the image.

    These are the first layers of the authors' network in evaluation mode, if :func:`fold_batch_norm` has folded the
    batch norm into weight and bias. Arguments and errors are those of :func:`npr_conv2d`.

    Returns:
        (N, O, H_pooled, W_pooled) in weight's dtype. The fused backends return channels_last strides. For the backward
        pass they store the image and one byte per pooled value.
    """
    options = _Options(stride, padding, grid_size, anchor, scale, pixel_std, edge, backend)
    if has_torch_function((x, weight, bias)):
        return handle_torch_function(npr_stem, (x, weight, bias), x, weight, bias, **options._asdict())
    x, weight, bias, convolution, chosen = _prepare("npr_stem", x, weight, bias, options)
    dense = _image_gradient_backend(x, weight, convolution, backend)
    if dense is not None and _is_plain(dense):
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
    """Compute ``max_pool2d(relu(batch_norm(npr_conv2d(...))), 3, stride=2, padding=1)`` and store no map in between.

    These are the first layers of the authors' network, for training. The statistics of the batch come from the moments
    of the image's patches. All gradients except that of the image come from one pass over the pooled gradient, one byte
    per pooled value and the image (:mod:`npr_kernels.batch_norm`).

    Args:
        x, weight, bias, stride, padding, grid_size, anchor, scale, pixel_std, edge, backend: As in :func:`npr_conv2d`.
            With batch statistics, bias only changes running_mean, and its gradient is exactly zero.
        gamma, beta: (O,): weight and bias of the batch norm, or None; in weight's dtype or float32.
        running_mean, running_var: (O,), with the dtypes of gamma, or None. With ``training`` they are updated in place.
        training: Normalise with the statistics of the batch; else with the running statistics.
        momentum: Weight of the batch in the running statistics; a float or a tensor with one element.
        eps: Number that is added to the variance.
        process_group: With ``training``, use the statistics of the batches of all its processes. All of them must call.
            Their batches may differ in size and may be empty. The parameter gradients of a process are its share of the
            gradients of the joined batch. Only the gradient of the image needs another exchange.

    Returns:
        (N, O, H_pooled, W_pooled) in weight's dtype, or in the autocast dtype under autocast. Differences of pixels are
        computed before the parameters and a float32 image are rounded to it.

    Raises:
        ValueError, TypeError, BackendError: As in :func:`npr`; also ValueError if ``training`` sees only one value per
            channel.
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
        assert running_mean is not None and running_var is not None  # as was checked
        folded = batch_norm.fold(weight, bias, running_mean, running_var, gamma, beta, eps)
        return npr_stem(x, *autograd.in_dtype(weight.dtype, *folded), **options._asdict())
    autocast = _autocast_dtype(x, weight)
    dtype = autocast or weight.dtype
    convolution = _convolution(x, weight, bias, options, any_image_dtype=autocast is not None)
    arguments.check_batch_norm(weight, training, running_mean, running_var, gamma=gamma, beta=beta)
    kernel = weight.shape[2], weight.shape[3]
    shape = (x.shape[0], weight.shape[0], *convolution.output_size(x, kernel))
    count: int | Tensor = shape[0] * shape[2] * shape[3]
    if process_group is not None and dist.get_world_size(process_group) == 1:
        process_group = None
    if process_group is None and count == 1:
        raise ValueError(f"expected more than 1 value per channel when training, got input size {shape}")

    call = Call.of("npr_batch_norm_stem", x, dtype, convolution, weight, bias, gamma, beta)
    chosen, dense = registry.select(call, backend), _image_gradient_backend(x, weight, convolution, backend)
    if _is_plain(chosen) or _is_plain(dense):
        return reference.npr_batch_norm_stem(
            *_autocast(x, weight, bias), gamma, beta, running_mean, running_var, momentum, eps, *convolution,
            process_group=process_group,
        )  # fmt: skip
    first, second = autograd.patch_moments(x, kernel, convolution, chosen, dense)
    if process_group is not None:
        first, second, count = sum_over_processes(process_group, first, second, first.new_tensor(count))
        check_count(count, shape)
    if is_empty(count):  # an empty batch has no statistics and no gradients
        running_mean, running_var, count = None, None, 1
    mean, variance = batch_norm.batch_statistics(weight, first, second, count)
    batch_norm.update_running_statistics(running_mean, running_var, mean, variance, bias, count, momentum)
    kernels, offset = batch_norm.fold(weight.double(), None, mean, variance, gamma, beta, eps)
    if bias is not None:
        offset = offset + 0 * bias  # bias cancels; this makes its gradient zero instead of None
    wide = torch.promote_types(weight.dtype, torch.float32)
    return autograd.npr_stem(x, *autograd.in_dtype(wide, kernels, offset), dtype, convolution, chosen, dense)


def fold_batch_norm(weight: Tensor, bias: Tensor | None, bn: torch.nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of one convolution that equals a convolution and its batch norm in evaluation mode.

    Args:
        weight: (O, C, KH, KW).
        bias: (O,) or None.
        bn: The batch norm after the convolution. It must have running statistics.

    Returns:
        Weight (O, C, KH, KW) and bias (O,).

    Raises:
        ValueError: ``bn`` has no running statistics.
    """
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
) -> registry.BackendChoice:
    """Return which backend would serve a call now, and why the others would not; it prints as a table.

    Autocast, recorded gradients, :func:`use_backend` and the environment count as in the call itself. A GPU backend
    that has not yet passed its self-test is tested now (:mod:`npr_kernels.backends.proof`).

    Args:
        x, weight, stride, padding, grid_size, anchor, scale: As in :func:`npr_conv2d`. Without weight, the call is
            ``npr(x, grid_size, anchor)``.
        operator: "npr_conv2d", "npr_stem" or "npr_batch_norm_stem" (in training mode).

    Raises:
        ValueError, TypeError: As in the call itself; ValueError also for another operator.
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
    """The options that the convolution functions share, as the caller gave them."""

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
    """Check the arguments. Return them in normal form, with the name of the backend that serves the call."""
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
    """Return the dtype in which autocast makes ``conv2d`` compute; None without autocast and for float64."""
    device = x.device.type
    if weight.dtype == torch.float64 or device not in _AUTOCAST_DEVICES:
        return None
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Under autocast, cast floating point arguments to the autocast dtype, as ``conv2d`` does."""
    dtype = _autocast_dtype(x, weight)
    if dtype is None:
        return x, weight, bias
    return x.to(dtype) if x.is_floating_point() else x, *autograd.in_dtype(dtype, weight, bias)


def _image_gradient_backend(x: Tensor, weight: Tensor, convolution: Convolution, backend: str | None) -> str | None:
    """Return the backend for a stem's image gradient, which needs the whole convolution; None if it is not needed."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return None
    return registry.select(Call.of("npr_conv2d", x, x.dtype, convolution, weight), backend)


def _is_plain(backend: str | None) -> bool:
    """Return whether this is the plain PyTorch backend, which autograd can differentiate by itself."""
    return backend is not None and registry.get(backend).DIFFERENTIABLE

"""The specification: Neighbouring Pixel Relationships (NPR) in plain PyTorch.

Source: Tan et al., "Rethinking the Up-Sampling Operations in CNN-based Generative Network for Generalizable Deepfake
Detection", CVPR 2024, section 3.3, equation 4. These functions define the correct results of all other backends. They
are also the ``eager`` backend, for any device and every kind of automatic differentiation.

The functions do not check their arguments; :mod:`npr_kernels.functional` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from npr_kernels.distributed import synchronised_batch_norm

Anchor = int | str


def trim(x: Tensor, grid_size: int) -> Tensor:
    """Return x (N, C, H, W) without the trailing rows and columns that fill no cell: (N, C, H', W'), a view."""
    height, width = x.shape[-2:]
    return x[..., : height - height % grid_size, : width - width % grid_size]


def anchors(x: Tensor, grid_size: int, anchor: Anchor) -> Tensor:
    """Return the value of each cell's anchor: (N, C, H, W) -> (N, C, H / grid_size, W / grid_size), floating point."""
    if anchor == "mean":
        return F.avg_pool2d(x, grid_size)
    if anchor == "max":  # the first of equal maxima in row-major order receives the gradient
        return F.max_pool2d(x, grid_size)
    row, column = divmod(cast(int, anchor), grid_size)
    return x[..., row::grid_size, column::grid_size]


def npr(x: Tensor, grid_size: int = 2, anchor: Anchor = 0, dtype: torch.dtype | None = None) -> Tensor:
    """Return every pixel minus its cell's anchor, per channel (equation 4).

    x is (N, C, H, W), uint8 or floating point. The result is (N, C, H', W') in ``dtype`` (default: that of x, float32
    for uint8). H' and W' are the largest multiples of grid_size up to H and W.
    """
    dtype = dtype or (x.dtype if x.is_floating_point() else torch.float32)
    x = trim(x, grid_size).to(dtype)
    if x.shape[0] == 0:  # some versions of torch refuse to pool or interpolate empty batches
        return x.clone()
    return x - F.interpolate(anchors(x, grid_size, anchor), scale_factor=grid_size, mode="nearest")


def npr_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (2, 2),
    padding: tuple[int, int] = (1, 1),
    grid_size: int = 2,
    anchor: Anchor = 0,
    scale: Sequence[float] = (2 / 3,),
) -> Tensor:
    """Return ``conv2d(scale * npr(x), weight, bias, stride, padding)``. Padding surrounds the NPR map with zeros.

    x is (N, C, H, W) in weight's dtype, or uint8. weight is (O, C, KH, KW). scale is one factor, or one per channel.
    The result is (N, O, H_out, W_out) in weight's dtype.
    """
    if len(scale) == 1:
        factors: float | Tensor = scale[0]
    else:  # created on x's device, because a copy from the host would end the capture of a CUDA graph
        factors = torch.cat([x.new_full((1,), factor, dtype=weight.dtype) for factor in scale]).view(1, -1, 1, 1)
    seen = npr(x, grid_size, anchor, weight.dtype) * factors
    if weight.shape[2:] == (1, 1):
        # The same convolution without a stride. With a stride, oneDNN's weight gradient writes past the end of its
        # memory on AVX2, for channels_last images with few channels (github.com/uxlfoundation/oneDNN/issues/6035).
        (height, width), (vertical, horizontal) = padding, stride
        seen = F.pad(seen, (width, width, height, height))[:, :, ::vertical, ::horizontal]
        stride, padding = (1, 1), (0, 0)
    return F.conv2d(seen, weight, bias, stride, padding)


def npr_stem(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (2, 2),
    padding: tuple[int, int] = (1, 1),
    grid_size: int = 2,
    anchor: Anchor = 0,
    scale: Sequence[float] = (2 / 3,),
) -> Tensor:
    """Return ``max_pool2d(relu(npr_conv2d(...)), 3, stride=2, padding=1)``: the first layers of the authors' network.

    A batch norm in evaluation mode must be folded into weight and bias (:func:`npr_kernels.fold_batch_norm`). The
    result is (N, O, H_pooled, W_pooled) in weight's dtype.
    """
    y = F.relu(npr_conv2d(x, weight, bias, stride, padding, grid_size, anchor, scale))
    return F.max_pool2d(y, 3, stride=2, padding=1)


def npr_batch_norm_stem(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float | Tensor,
    eps: float,
    *convolution: Any,
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Return ``max_pool2d(relu(batch_norm(npr_conv2d(...))), 3, stride=2, padding=1)`` with the batch's statistics.

    The statistics are those of all processes in ``process_group``. They also update the running statistics, by
    ``momentum``. The result is (N, O, H_pooled, W_pooled) in weight's dtype.
    """
    y = npr_conv2d(x, weight, bias, *convolution)
    if process_group is None:
        y = F.batch_norm(y, running_mean, running_var, gamma, beta, True, float(momentum), eps)
    else:
        y = synchronised_batch_norm(y, running_mean, running_var, gamma, beta, float(momentum), eps, process_group)
    return F.max_pool2d(F.relu(y), 3, stride=2, padding=1)


def npr_moments(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (2, 2),
    padding: tuple[int, int] = (1, 1),
    grid_size: int = 2,
    anchor: Anchor = 0,
    scale: Sequence[float] = (2 / 3,),
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Return sums over all positions of the convolution, in ``dtype``: of its patches P, (K,), and of P P^T, (K, K).

    K = C * KH * KW, in the order of ``weight.flatten(1)``.
    """
    seen = npr(x, grid_size, anchor, dtype) * torch.tensor(scale, dtype=dtype, device=x.device).view(1, -1, 1, 1)
    patches = F.unfold(seen, kernel, 1, padding, stride)
    return patches.sum((0, 2)), torch.einsum("nkp,nlp->kl", patches, patches)


def unpool(grad: Tensor, argmax: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the gradient of the convolution's output, (N, O, *size), from that of the pooled output.

    ``argmax`` has the position of the maximum in each window. Windows overlap, so the nine positions are added one
    after another. This is deterministic on every device.
    """
    (n, channels), (height, width) = grad.shape[:2], grad.shape[2:]
    padded = grad.new_zeros((n, 2 * height + 1, 2 * width + 1, channels)).permute(0, 3, 1, 2)
    for k in range(9):
        row, column = divmod(k, 3)
        target = padded[:, :, row : row + 2 * height : 2, column : column + 2 * width : 2]
        target += grad.masked_fill(argmax != k, 0)
    return padded[:, :, 1 : 1 + size[0], 1 : 1 + size[1]]

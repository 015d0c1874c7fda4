"""Folding a batch norm into the convolution in front of it, by running statistics or by those of the batch.

The batch's statistics need no output of the convolution. It is linear in the patches P that it sees, so with their mean
m and covariance C the mean of an output channel is W m and its variance W C W^T, by the channel's row W of the weight.
:func:`fold` then makes it the convolution by factor * W with the bias beta - factor * W m, where factor = gamma / sigma
and sigma^2 = W C W^T + eps. Its gradients, D = sum dz P^T to the weight and s = sum dz to the bias, are all that is
needed of the positions: through these few small steps autograd makes of them

    q = (W . D - (W m) s) / sigma,    dW = factor * (D - s m - (q / sigma) W C),    dgamma = q,    dbeta = s.

They are taken in float64: D and s m nearly cancel where the patches' mean is large.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fold(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Weight (O, C, KH, KW) and bias (O,) of the convolution that equals conv + batch norm with these statistics."""
    factor = torch.rsqrt(variance + eps)
    if gamma is not None:
        factor = factor * gamma
    offset = -mean * factor
    if bias is not None:
        offset = offset + bias * factor
    if beta is not None:
        offset = offset + beta
    return weight * factor.view(-1, 1, 1, 1), offset


def batch_statistics(weight: Tensor, first: Tensor, second: Tensor, count: int | Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (biased) of conv2d's output channels without bias, (O,) each, float64; differentiable.

    ``first`` (K,) and ``second`` (K, K): sums of the patches and of their products over ``count`` positions.
    """
    weight = weight.flatten(1).double()
    mean = first / count
    covariance = torch.addr(second / count, mean, mean, alpha=-1)
    variance = ((weight @ covariance) * weight).sum(1)
    return weight @ mean, variance.clamp_min(0)  # rounding can leave less than nothing of a constant


@torch.no_grad()
def update_running_statistics(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    bias: Tensor | None,
    count: int | Tensor,
    momentum: float | Tensor,
) -> None:
    """As torch's batch norm, in place: by ``momentum`` towards the batch's mean and unbiased variance.

    ``mean`` is that of the convolution's output without ``bias``.
    """
    if running_mean is None or running_var is None:
        return
    if bias is not None:
        mean = mean + bias
    unbiased = variance * (count / (count - 1))
    for running, value in ((running_mean, mean), (running_var, unbiased)):
        step = momentum.to(running.dtype) if isinstance(momentum, Tensor) else momentum
        running.lerp_(value.to(running.dtype), step)

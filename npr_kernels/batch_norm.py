"""Folds a batch norm into the convolution before it, with running statistics or with those of the batch.

The statistics of the batch can be computed without the convolution's output. The convolution is linear in the patches P
that it sees. With their mean m and covariance C, an output channel has the mean W m and the variance W C W^T, where W
is the channel's row of the weight. :func:`fold` then gives a convolution with the weight factor * W and the bias beta -
factor * W m, where factor = gamma / sigma and sigma^2 = W C W^T + eps.

The backward pass needs only two sums over positions: D = sum dz P^T and s = sum dz, the gradients of the folded weight
and bias. Autograd goes back through the steps above and gives

    q = (W . D - (W m) s) / sigma,    dW = factor * (D - s m - (q / sigma) W C),    dgamma = q,    dbeta = s.

The steps are computed in float64, because D and s m nearly cancel if the mean of the patches is large.
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
    """Return weight (O, C, KH, KW) and bias (O,) of one convolution that equals the convolution and its batch norm."""
    factor = torch.rsqrt(variance + eps)
    if gamma is not None:
        factor = factor * gamma
    offset = -mean * factor
    if bias is not None:
        offset = offset + bias * factor
    if beta is not None:
        offset = offset + beta
    return weight * factor[:, None, None, None], offset


def batch_statistics(weight: Tensor, first: Tensor, second: Tensor, count: int | Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of the output channels of a convolution without bias, (O,) float64 each.

    ``first`` (K,) and ``second`` (K, K) are sums over ``count`` positions: of the patches and of their products. The
    result is differentiable.
    """
    weight = weight.flatten(1).double()
    mean = first / count
    covariance = torch.addr(second / count, mean, mean, alpha=-1)
    variance = ((weight @ covariance) * weight).sum(1)
    return weight @ mean, variance.clamp_min(0)  # rounding can make the variance of a constant negative


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
    """Update the running statistics in place with the batch's mean and unbiased variance, as torch's batch norm does.

    ``mean`` is the mean of the convolution's output without ``bias``.
    """
    if running_mean is None or running_var is None:
        return
    if bias is not None:
        mean = mean + bias
    unbiased = variance * (count / (count - 1))
    for running, value in ((running_mean, mean), (running_var, unbiased)):
        step = momentum.to(running.dtype) if isinstance(momentum, Tensor) else momentum
        running.lerp_(value.to(running.dtype), step)

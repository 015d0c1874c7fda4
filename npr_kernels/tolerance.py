"""The tolerance rule, by which tests, benchmarks and the self-tests on the user's machine judge a result.

A result is correct if its largest error against float64 is at most twice that of eager PyTorch in the same dtype, plus
one rounding. For float64 results there is no better reference, so a few roundings are allowed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def error(result: Tensor, truth: Tensor) -> float:
    """Return the largest absolute difference, relative to the largest magnitude of ``truth``.

    It is infinite unless NaN and inf are at the same places in both.

    Raises:
        AssertionError: The shapes differ.
    """
    result, truth = result.detach().double(), truth.detach().double()
    if result.shape != truth.shape:
        raise AssertionError(f"shape {tuple(result.shape)} instead of {tuple(truth.shape)}")
    finite = truth.isfinite()
    if not torch.equal(finite, result.isfinite()) or not torch.equal(truth.isnan(), result.isnan()):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = truth[finite].abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return ((result - truth)[finite].abs().max() / scale).item()


def allowed(eager_error: float, dtype: torch.dtype) -> float:
    """Return the largest allowed error of a result of ``dtype``, given eager PyTorch's error in that dtype."""
    roundings = 16 if dtype == torch.float64 else 1
    return 2 * eager_error + roundings * torch.finfo(dtype).eps


def pool_at(argmax: Tensor) -> Callable[[Tensor], Tensor]:
    """Return ReLU and max-pool as a function of the convolution's output that takes the values at ``argmax``.

    Which of nearly equal values is the maximum depends on rounding, so gradients are compared for a given choice.
    """
    positive = argmax != 9
    position = argmax.long().where(positive, 4)  # the middle of a window is never outside
    row, column = (2 * torch.arange(n, device=argmax.device) - 1 for n in argmax.shape[2:])

    def pool(y: Tensor) -> Tensor:
        chosen = (row[:, None] + position // 3) * y.shape[3] + column + position % 3
        return y.flatten(2).gather(2, chosen.flatten(2)).view_as(chosen) * positive

    return pool

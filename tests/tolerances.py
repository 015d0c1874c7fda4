"""How wrong a result may be: one rule for every test and benchmark.

A fast path is right when its largest error against float64 is no worse than twice that of eager PyTorch in the same
dtype, plus one rounding of the result. In float64 there is nothing better to compare with, so a few roundings are
allowed instead.
"""

from __future__ import annotations

import torch
from torch import Tensor


def error(result: Tensor, truth: Tensor) -> float:
    """Largest absolute difference, relative to the largest magnitude of ``truth``; NaN and inf must agree in place."""
    result, truth = result.detach().double(), truth.detach().double()
    assert result.shape == truth.shape, f"shape {tuple(result.shape)} instead of {tuple(truth.shape)}"
    finite = truth.isfinite()
    if not torch.equal(finite, result.isfinite()) or not torch.equal(truth.isnan(), result.isnan()):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = truth[finite].abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return ((result - truth)[finite].abs().max() / scale).item()


def allowed(eager_error: float, dtype: torch.dtype) -> float:
    """Largest error a result of ``dtype`` may have where eager PyTorch's, in that dtype, is ``eager_error``."""
    roundings = 16 if dtype == torch.float64 else 1
    return 2 * eager_error + roundings * torch.finfo(dtype).eps


def assert_close(result: Tensor, eager: Tensor, truth: Tensor) -> None:
    """``result`` obeys the rule, ``eager`` being PyTorch's result in the same dtype and ``truth`` the float64 one."""
    assert result.dtype == eager.dtype, f"dtype {result.dtype} instead of {eager.dtype}"
    found, limit = error(result, truth), allowed(error(eager, truth), result.dtype)
    assert found <= limit, f"error {found:.3g} against float64, at most {limit:.3g} is allowed"

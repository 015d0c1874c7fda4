"""Whether a result is right: its error against float64, and how large an error the tolerance rule allows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from npr_kernels.testing import allowed, error


@dataclass(frozen=True)
class Parity:
    """Error of a result against float64, and the largest allowed one; ``details`` go into the report."""

    error: float
    allowed: float
    details: dict[str, float] = field(default_factory=dict)

    @property
    def green(self) -> bool:
        return self.error <= self.allowed  # False for NaN


def worst(errors: list[float], limits: list[float], details: dict[str, float] | None = None) -> Parity:
    """Return the parity of the error that is largest relative to its limit."""
    error, limit = max(zip(errors, limits, strict=True), key=lambda pair: pair[0] / pair[1])
    return Parity(error, limit, details or {})


def judge_by_rule(
    truth: Callable[[], tuple[Tensor, ...]], eager: Callable[[torch.dtype], tuple[Tensor, ...]]
) -> Callable[[tuple[Tensor, ...], torch.dtype], Parity]:
    """Return a judge of tensors that obeys the tolerance rule of :mod:`npr_kernels.tolerance`.

    Args:
        truth: Computes the tensors in float64.
        eager: Computes them in a dtype by plain PyTorch.
    """
    truth = functools.cache(truth)

    @functools.cache
    def limits(dtype: torch.dtype) -> list[float]:
        return [allowed(error(result, exact), dtype) for result, exact in zip(eager(dtype), truth(), strict=True)]

    def judge(results: tuple[Tensor, ...], dtype: torch.dtype) -> Parity:
        errors = [error(result.view_as(exact), exact) for result, exact in zip(results, truth(), strict=True)]
        return worst(errors, limits(dtype))

    return judge

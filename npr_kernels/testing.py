"""The table of test cases for every backend, with the tolerance rule as an assertion.

Tests and benchmarks import what they need for a comparison from here; nothing in the package imports this module.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from npr_kernels.backends.cases import DEFAULT, Case, on
from npr_kernels.tolerance import allowed, error, pool_at

__all__ = [
    "GRIDS",
    "IMAGE_DTYPES",
    "LAYOUTS",
    "TABLE",
    "Case",
    "allowed",
    "assert_close",
    "error",
    "on",
    "pool_at",
]

IMAGE_DTYPES = (torch.uint8, torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded", "permuted", "offset", "pitched")
GRIDS = [(size, anchor) for size in (2, 3, 4) for anchor in (*range(size**2), "mean", "max")]


def assert_close(result: Tensor, eager: Tensor, truth: Tensor) -> None:
    """Require that ``result`` follows the tolerance rule.

    ``eager`` is PyTorch's result in the same dtype, ``truth`` the float64 result.

    Raises:
        AssertionError: The error is too large; the message has the error and the limit.
    """
    if result.dtype != eager.dtype:
        raise AssertionError(f"dtype {result.dtype} instead of {eager.dtype}")
    difference, limit = error(result, truth), allowed(error(eager, truth), result.dtype)
    if difference > limit:
        raise AssertionError(f"error {difference:.3g} against float64, at most {limit:.3g} is allowed")


def _table() -> list[Case]:
    # Products in bfloat16, if the processor has them.
    low: dict[str, Any] = {"dtype": torch.uint8, "weight_dtype": torch.bfloat16}
    types: list[dict[str, Any]] = [*({"dtype": d} for d in IMAGE_DTYPES), low]
    turns = itertools.cycle(types)
    cases = []
    for grid_size, anchor in GRIDS:  # in larger cells, the anchors between the first and the last take turns
        all_types = grid_size == 2 or anchor in (0, grid_size**2 - 1, "mean", "max")
        for dtypes in types if all_types else [next(turns)]:
            cases.append(Case(grid_size=grid_size, anchor=anchor, height=13, width=17, **dtypes))
    cases += [Case(dtype=d, layout=layout, out_channels=64) for d in IMAGE_DTYPES for layout in LAYOUTS]
    cases += [Case(dtype=torch.uint8, weight_dtype=d, out_channels=64) for d in IMAGE_DTYPES[1:]]
    cases += [Case(dtype=d, layout="pitched", width=w) for d in (torch.uint8, torch.float32) for w in (13, 14, 19)]
    cases += [replace(DEFAULT, batch=0, dtype=d) for d in IMAGE_DTYPES]
    several: list[dict[str, Any]] = [{"dtype": torch.uint8}, low, {"dtype": torch.float32}, {"dtype": torch.bfloat16}]
    for number, dtypes in enumerate(several):
        cases += [Case(**dtypes, height=h, width=w) for h, w in ((2, 2), (2, 9), (3, 2), (5, 5), (6, 7), (33, 66))]
        cases += [Case(**dtypes, out_channels=o, bias=False) for o in (1, 15, 33, 64, 65, 130)]
        cases += [Case(**dtypes, channels=c, layout=LAYOUTS[(number + i) % 2]) for i, c in enumerate((1, 2, 4, 7))]
        for kernel, stride, padding in (
            ((1, 1), 1, 0),
            ((1, 1), 2, 0),  # with the paper's anchor, every tap sees the anchor, so the result is the bias
            ((2, 2), 2, 0),
            ((3, 3), 1, 1),
            ((3, 3), 2, 0),
            ((3, 3), 3, 2),
            ((4, 4), 4, 0),
            ((5, 3), (2, 1), (0, 2)),
            ((7, 7), 2, 3),
            ((3, 3), 2, 5),
        ):
            cases.append(Case(**dtypes, kernel=kernel, stride=stride, padding=padding))
    return list(dict.fromkeys(cases))


TABLE = _table()

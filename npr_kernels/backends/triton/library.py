"""The operators of the `triton` backend, as torch.library operators: schemas, results without data (fakes), launches.

As operators of torch's dispatcher they appear as one node in graphs of torch.compile and torch.export. Each
kernel's file defines its operators with two functions: one makes the results, which is all that a fake needs, and one
fills them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from npr_kernels.backends import vmap
from npr_kernels.backends.triton.launch import INTERPRETED

CONVOLUTION = "int[] stride, int[] padding, int grid_size, int anchor, float[] scale"  # of schemas
implementations: dict[str, Callable] = {}  # by the operator's name; torch's dispatcher calls them

_LIBRARY = torch.library.Library("npr_kernels_triton", "DEF")


def operator(schema: str, results: Callable, fill: Callable) -> None:
    """Define an operator that returns ``results(*args)`` after ``fill(results, *args)``."""
    name = schema.partition("(")[0]

    def implementation(*args):
        made = results(*args)
        fill(made, *args)
        return made

    implementations[name] = implementation
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, implementation, "CPU" if INTERPRETED else "CUDA")
    torch.library.register_fake(f"npr_kernels_triton::{name}", results, lib=_LIBRARY)
    vmap.register(getattr(torch.ops.npr_kernels_triton, name).default, _LIBRARY)

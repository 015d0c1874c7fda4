"""Registers the operators of the `triton` backend with torch.library.

So each operator is one node in graphs of torch.compile and torch.export. A file with kernels defines its operators with
two functions. The first creates the empty results; tracing without data needs only this one. The second fills them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from npr_kernels.backends import vmap
from npr_kernels.triton_runtime import DEVICE

CONVOLUTION = "int[] stride, int[] padding, int grid_size, int anchor, float[] scale"  # part of schemas
implementations: dict[str, Callable] = {}  # by the name of the operator; torch's dispatcher calls them

_LIBRARY = torch.library.Library("npr_kernels_triton", "DEF")


def operator(schema: str, results: Callable, fill: Callable) -> None:
    """Define an operator. ``results(*args)`` creates its results, and ``fill(results, *args)`` fills them."""
    name = schema.partition("(")[0]

    def implementation(*args: Any) -> Any:
        made = results(*args)
        fill(made, *args)
        return made

    implementations[name] = implementation
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, implementation, DEVICE.upper())
    torch.library.register_fake(f"npr_kernels_triton::{name}", results, lib=_LIBRARY)
    vmap.register(getattr(torch.ops.npr_kernels_triton, name).default, _LIBRARY)

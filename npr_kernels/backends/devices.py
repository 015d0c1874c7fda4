"""What backends must know of a GPU, and how to ask while a graph is traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

F = TypeVar("F", bound=Callable)
_capabilities: dict[torch.device, tuple[int, int]] = {}


def constant(function: F) -> F:
    """torch.compile calls ``function`` while it traces, and takes what it returns as a constant.

    As ``torch.compiler.assume_constant_result``, which would import the compiler. Arguments must be constants, too.
    """
    function._dynamo_marked_constant = True
    return function


@constant
def capability(device: torch.device) -> tuple[int, int]:
    """The CUDA compute capability of ``device``: (9, 0) for an H100."""
    if device not in _capabilities:
        _capabilities[device] = torch.cuda.get_device_capability(device)
    return _capabilities[device]

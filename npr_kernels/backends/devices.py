"""Facts about a GPU that backends need, in a form that torch.compile can trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

F = TypeVar("F", bound=Callable)
_capabilities: dict[torch.device, tuple[int, int]] = {}


def constant(function: F) -> F:
    """Make torch.compile call ``function`` while it traces, and treat the result as a constant.

    ``torch.compiler.assume_constant_result`` does the same, but imports the compiler. Arguments must be constants, too.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant
def capability(device: torch.device) -> tuple[int, int]:
    """Return the CUDA compute capability of ``device``, e.g. (9, 0) for an H100."""
    if device not in _capabilities:
        _capabilities[device] = torch.cuda.get_device_capability(device)
    return _capabilities[device]

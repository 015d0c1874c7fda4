"""A mark for functions whose results torch.compile may take for constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable)


def constant(function: F) -> F:
    """Make torch.compile call ``function`` while it traces, and treat the result as a constant.

    ``torch.compiler.assume_constant_result`` does the same, but imports the compiler. Arguments must be constants, too.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function

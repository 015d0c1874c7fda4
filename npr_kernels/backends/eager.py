"""The `eager` backend: plain PyTorch (:mod:`npr_kernels.reference`), any device, any kind of differentiation."""

from __future__ import annotations


def refusal(call) -> str | None:
    """The reference serves everything that passes the argument checks."""
    return None

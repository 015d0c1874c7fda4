"""What backends must know of a GPU."""

from __future__ import annotations

import functools

import torch


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """The CUDA compute capability of ``device``: (9, 0) for an H100."""
    return torch.cuda.get_device_capability(device)

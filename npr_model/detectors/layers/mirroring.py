"""Extending small images, for detectors that need a least size."""

from __future__ import annotations

import torch
from torch import Tensor


def mirrored(images: Tensor, side: int) -> Tensor:
    """Extend height and width to at least ``side`` by mirroring: (N, 3, H, W) -> (N, 3, max(H, side), max(W, side))."""
    for axis in (2, 3):
        if (size := images.shape[axis]) < side:
            positions = torch.arange(side, device=images.device) % (2 * size)
            images = images.index_select(axis, torch.minimum(positions, 2 * size - 1 - positions))
    return images

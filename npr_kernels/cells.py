"""A compiled count of the cells of an image that are not of one colour."""

from __future__ import annotations

import torch
from torch import Tensor

from npr_kernels import extension


def detailed_cells(parts: Tensor, grid_size: int, *, enough: int) -> int:
    """Return in how many cells the first and the last pixel differ. Counting ends once there are ``enough``.

    Args:
        parts: (P, H, W, 3) uint8, contiguous: images of one size.
        grid_size: side of a cell, at least 1. Pixels beyond the last whole cell count for nothing.
        enough: a number of cells.

    Raises:
        RuntimeError: an argument does not have this form, or the extension is not loaded.
    """
    extension.require("detailed_cells")
    return torch.ops.npr_kernels.detailed_cells(parts, grid_size, enough)

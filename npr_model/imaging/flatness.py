"""Whether an image is flat: nearly all of its cells are of one colour, so there is nothing to judge."""

from __future__ import annotations

import numpy as np
import torch

from npr_kernels import cells
from npr_kernels.capabilities import is_compiled

LEAST_DETAIL = 0.1  # share of cells that are not of one colour; an image with less is flat


def is_flat(parts: np.ndarray, grid_size: int) -> bool:
    """Return whether the first and last pixel differ in less than LEAST_DETAIL of the cells of parts (P, H, W, 3)."""
    count, height, width, _ = parts.shape
    total = count * (height // grid_size) * (width // grid_size)
    if not is_compiled():
        return plain_detailed_cells(parts, grid_size) / total < LEAST_DETAIL
    images = torch.from_numpy(parts if parts.flags.carray else np.require(parts, requirements=["C", "W"]))
    return cells.detailed_cells(images, grid_size, enough=int(LEAST_DETAIL * total) + 1) / total < LEAST_DETAIL


def plain_detailed_cells(parts: np.ndarray, grid_size: int) -> int:
    """The same as the compiled operator, in NumPy, for all cells."""
    count, height, width, _ = parts.shape
    rows = parts.reshape(count, height, 3 * width)
    height, width = (side // grid_size * grid_size for side in (height, width))
    # Whole rows are compared, as long runs of bytes: ten times faster than cell by cell.
    first, last = (rows[:, start:height:grid_size] for start in (0, grid_size - 1))
    differ = first[:, :, : 3 * (width - grid_size + 1)] != last[:, :, 3 * (grid_size - 1) : 3 * width]
    red, green, blue = (differ[:, :, channel :: 3 * grid_size] for channel in range(3))
    return int(np.count_nonzero(red | green | blue))

"""Views: which pixels of an image the network sees."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from npr_model.errors import InputError
from npr_model.imaging.errors import ImageError
from npr_model.imaging.filters import resize
from npr_model.imaging.limits import MAX_SIDE


@dataclass(frozen=True)
class View:
    """Which pixels of an image the network sees.

    - ``native``: all of them (the network trims odd edges).
    - ``crop:S``: the central S x S. A side shorter than S stays whole; no pixels are added.
    - ``resize:S``: bilinear with antialiasing to S x S, as the paper does with 256. In images much larger than S it
      removes most of the traces that NPR looks for.
    - ``tile:S``: images smaller than S are repeated side by side, then ``crop:S`` ("translate duplicate" in the
      authors' code). They are trimmed to whole cells first, so that every copy starts on a cell.

    Crops start at a multiple of the grid size. Up-sampling leaves traces in steps of two from the top-left corner; an
    odd offset would pair pixels across the cells that the detector was trained on.
    """

    kind: str
    size: int | None = None

    KINDS = ("native", "crop", "resize", "tile")

    def __post_init__(self) -> None:
        sized = self.kind != "native"
        if self.kind not in self.KINDS or sized != (self.size is not None) or (self.size is not None and self.size < 2):
            raise InputError(f"unknown view {str(self)!r}: use native, crop:S, resize:S or tile:S, e.g. crop:256")
        if self.size is not None and self.size > MAX_SIDE:
            raise InputError(f"view {str(self)!r} is too large: the size must be at most {MAX_SIDE}")

    def __str__(self) -> str:
        return self.kind if self.size is None else f"{self.kind}:{self.size}"

    @classmethod
    def parse(cls, text: str) -> View:
        """Parse text such as "native" or "crop:256". Raises InputError."""
        kind, colon, size = text.partition(":")
        if colon and not re.fullmatch("[0-9]{1,9}", size):
            raise InputError(f"view {text!r} has no valid size: write it like crop:256")
        return cls(kind, int(size) if colon else None)

    def apply(self, pixels: np.ndarray, grid_size: int = 2) -> np.ndarray:
        """Apply to (H, W, 3) uint8 pixels; returns (H', W', 3) uint8.

        Raises ImageError if less than one cell is left.
        """
        check_cell(pixels, grid_size)
        size = self.size
        if size is None:
            return pixels
        if self.kind == "resize":
            pixels = resize(pixels, size, size)
        if self.kind == "tile":
            pixels = tile(pixels, size, grid_size)
        if self.kind in ("crop", "tile"):
            top, left = (max(0, side - size) // 2 // grid_size * grid_size for side in pixels.shape[:2])
            pixels = pixels[top : top + size, left : left + size].copy()  # frees the rest
        check_cell(pixels, grid_size)
        return pixels


def tile(pixels: np.ndarray, size: int, grid_size: int = 2) -> np.ndarray:
    """Repeat an image along each side shorter than ``size``; a repeated side is first trimmed to whole cells.

    (H, W, 3), at least one cell, to (H', W', 3).
    """
    for axis in (0, 1):
        side = pixels.shape[axis]
        if side < size:
            side -= side % grid_size
            index = np.arange(-(-size // side) * side) % side
            pixels = pixels.take(index, axis)
    return pixels


def check_cell(pixels: np.ndarray, grid_size: int) -> None:
    """Raise ImageError if the image is smaller than one cell."""
    height, width = pixels.shape[:2]
    if height < grid_size or width < grid_size:
        raise ImageError(
            f"the image is {width}x{height} pixels, smaller than one cell of {grid_size}x{grid_size}", "too_small"
        )

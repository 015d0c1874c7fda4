"""Views: which pixels of an image the network sees."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from npr_model.errors import InputError
from npr_model.imaging import sampling
from npr_model.imaging.errors import ImageError
from npr_model.imaging.filters import resize
from npr_model.imaging.limits import MAX_PIXELS, MAX_SIDE

MOST_TILES, LEAST_TILE = 1024, 8  # of a sample: their number, and their side


@dataclass(frozen=True)
class View:
    """Which pixels of an image the network sees.

    - ``native``: all of them (the network trims odd edges).
    - ``crop:S``: the central S x S. A side shorter than S stays whole; no pixels are added.
    - ``resize:S``: bilinear with antialiasing to S x S, as the paper does with 256. In images much larger than S it
      removes most of the traces that NPR looks for.
    - ``sample:KxS``: K tiles of S x S, spread over the image (:mod:`npr_model.imaging.sampling`); the logit is the mean
      of theirs. An image of at most K * S * S pixels is seen whole. So the cost of an image is bounded.
    - ``tile:S``: images smaller than S are repeated side by side, then ``crop:S`` ("translate duplicate" in the
      authors' code). They are trimmed to whole cells first, so that every copy starts on a cell.

    Crops start at a multiple of the grid size. Up-sampling leaves traces in steps of two from the top-left corner; an
    odd offset would pair pixels across the cells that the detector was trained on.
    """

    kind: str
    size: int | None = None
    count: int | None = None

    KINDS = ("native", "crop", "resize", "tile", "sample")

    def __post_init__(self) -> None:
        sized, sampled = self.kind != "native", self.kind == "sample"
        fits = self.kind in self.KINDS and sized == (self.size is not None) and sampled == (self.count is not None)
        if not fits or (self.size is not None and self.size < 2) or (self.count is not None and self.count < 1):
            raise InputError(
                f"unknown view {str(self)!r}: use native, crop:S, resize:S, tile:S or sample:KxS, e.g. crop:256 or "
                "sample:8x128"
            )
        if self.size is not None and (self.size > MAX_SIDE or (self.count or 1) * self.size**2 > MAX_PIXELS):
            raise InputError(f"view {str(self)!r} is too large: at most {MAX_SIDE} per side, and {MAX_PIXELS} pixels")
        if self.count is not None and (self.count > MOST_TILES or (self.size or 0) < LEAST_TILE):
            raise InputError(f"view {str(self)!r} has more than {MOST_TILES} tiles, or tiles below {LEAST_TILE} pixels")

    def __str__(self) -> str:
        size = self.size if self.count is None else f"{self.count}x{self.size}"
        return self.kind if size is None else f"{self.kind}:{size}"

    @classmethod
    def parse(cls, text: str) -> View:
        """Parse text such as "native", "crop:256" or "sample:8x128". Raises InputError."""
        kind, colon, numbers = text.partition(":")
        if not colon:
            return cls(kind)
        if not (match := re.fullmatch("(?:([0-9]{1,9})x)?([0-9]{1,9})", numbers)):
            raise InputError(f"view {text!r} has no valid size: write it like crop:256 or sample:8x128")
        count, size = match.groups()
        return cls(kind, int(size), None if count is None else int(count))

    def parts(self, pixels: np.ndarray, grid_size: int = 2) -> np.ndarray:
        """Return the parts of an image that are scored: (H, W, 3) to (P, H', W', 3) uint8. Only ``sample`` has P > 1.

        Raises ImageError if less than one cell is left.
        """
        if self.size is None or self.count is None:
            return self.apply(pixels, grid_size)[None]
        check_cell(pixels, grid_size)
        if pixels.shape[0] * pixels.shape[1] <= self.count * self.size**2:
            return pixels[None]
        parts = sampling.tiles(pixels, self.count, self.size, grid_size)
        check_cell(parts[0], grid_size)
        return parts

    def apply(self, pixels: np.ndarray, grid_size: int = 2) -> np.ndarray:
        """As :meth:`parts`, for views with one part: returns (H', W', 3).

        Raises InputError for a ``sample`` view.
        """
        if self.kind == "sample":
            raise InputError(f"view {self} has several parts: use native, crop:S, resize:S or tile:S here")
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

"""Which tiles of a large image the network sees: spread over the image, and where there is something to see.

The image is cut into as many regions as there are tiles. Each region gives one tile. Of nine places in the region, the
tile goes to the one with the largest differences between neighbouring pixels, because flat sky and clipped highlights
hold no traces of up-sampling. All positions are multiples of the grid size, so that the cells keep their places.
"""

from __future__ import annotations

import numpy as np

PLACES = 3  # candidates along each side of a region
_STEP = 8  # rows between those whose differences are measured


def tiles(pixels: np.ndarray, count: int, size: int, grid_size: int) -> np.ndarray:
    """Return ``count`` tiles of an image.

    Args:
        pixels: (H, W, 3) uint8.
        count: Number of tiles.
        size: Side of the tiles. An image that is lower or narrower gives lower or narrower tiles.
        grid_size: Tiles start at multiples of it.

    Returns:
        (count, S', S'', 3) uint8. The same image always gives the same tiles.
    """
    height, width = (min(size, side) for side in pixels.shape[:2])
    chosen = np.empty((count, height, width, 3), np.uint8)
    for number, (top, left) in enumerate(positions(pixels, count, height, width, grid_size)):
        chosen[number] = pixels[top : top + height, left : left + width]
    return chosen


def positions(pixels: np.ndarray, count: int, height: int, width: int, grid_size: int) -> list[tuple[int, int]]:
    """Return top and left of each tile of height x width pixels, region by region."""
    chosen = []
    for region in regions(count, *pixels.shape[:2]):
        tops, lefts = (
            _candidates(first, last, side, whole, grid_size)
            for (first, last), side, whole in zip(region, (height, width), pixels.shape, strict=False)
        )
        places = [(top, left) for top in tops for left in lefts]
        details = [_detail(pixels[top : top + height, left : left + width]) for top, left in places]
        chosen.append(places[int(np.argmax(details))])
    return chosen


def regions(count: int, height: int, width: int) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Cut height x width pixels into ``count`` regions of nearly equal size and shape: (top, bottom), (left, right)."""
    rows = min(count, max(1, round((count * height / width) ** 0.5)))
    cut = []
    for row in range(rows):
        columns = (row + 1) * count // rows - row * count // rows
        for column in range(columns):
            top, bottom = row * height / rows, (row + 1) * height / rows
            cut.append(((top, bottom), (column * width / columns, (column + 1) * width / columns)))
    return cut


def _candidates(first: float, last: float, side: int, whole: int, grid_size: int) -> list[int]:
    """Return where tiles of ``side`` pixels may begin in first .. last; a smaller region has one, around its middle."""
    end = last - side
    places = np.linspace(first, end, PLACES) if end > first else np.array([(first + end) / 2])
    return sorted({int(place) // grid_size * grid_size for place in places.clip(0, whole - side)})


def _detail(tile: np.ndarray) -> float:
    """Return the mean absolute difference between neighbouring green pixels, in some pairs of rows."""
    even = len(tile) // 2 * 2
    upper, lower = (tile[start:even:_STEP, :, 1].astype(np.int16) for start in (0, 1))
    across, down = np.diff(upper, axis=1), lower - upper
    return float(sum(np.abs(part).mean() for part in (across, down) if part.size))

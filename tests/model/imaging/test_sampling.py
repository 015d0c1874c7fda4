"""The view ``sample``: tiles that are spread over a large image, lie on whole cells and look where there is detail."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npr_model.imaging import sampling
from npr_model.imaging.views import View
from tests.model.conftest import noise


def numbered(height: int, width: int) -> np.ndarray:
    """Pixels that hold their row and column, for images of up to 256 x 256."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = np.indices((height, width))
    return pixels


@settings(deadline=None)
@given(
    st.integers(2, 120),
    st.integers(2, 120),
    st.integers(1, 12),
    st.integers(3, 40),
    st.integers(2, 3),
    st.integers(0, 9),
)
def test_tiles_are_parts_of_the_image_on_whole_cells(height, width, count, size, grid_size, seed):
    pixels = numbered(height, width)
    pixels[..., 1] = noise(height, width, seed)[..., 1]
    if min(height, width) < grid_size:
        return
    tiles = sampling.tiles(pixels, count, size, grid_size)
    assert tiles.shape == (count, min(size, height), min(size, width), 3)
    for tile in tiles:
        top, left = int(tile[0, 0, 0]), int(tile[0, 0, 2])
        assert top % grid_size == left % grid_size == 0
        np.testing.assert_array_equal(tile, pixels[top : top + size, left : left + size][: len(tile), : tile.shape[1]])
    np.testing.assert_array_equal(sampling.tiles(pixels.copy(), count, size, grid_size), tiles)


@given(st.integers(1, 40), st.integers(1, 5000), st.integers(1, 5000))
def test_regions_cover_the_image_once(count, height, width):
    regions = sampling.regions(count, height, width)
    areas = [(bottom - top) * (right - left) for (top, bottom), (left, right) in regions]
    assert len(regions) == count and sum(areas) == pytest.approx(height * width)
    assert max(areas) <= 2 * min(areas) * (1 + 1e-9)


@pytest.mark.parametrize(("size", "rows"), [((300, 400), 3), ((400, 300), 4), ((20, 2000), 1), ((2000, 20), 12)])
def test_regions_follow_the_shape_of_the_image(size, rows):
    assert len({vertical for vertical, _ in sampling.regions(12, *size)}) == rows


def test_tiles_look_where_there_is_detail():
    """Everything is flat but one corner of each quarter."""
    pixels = np.full((400, 400, 3), 90, np.uint8)
    corners = [(0, 0), (0, 336), (336, 0), (336, 336)]
    for number, (top, left) in enumerate(corners):
        pixels[top : top + 64, left : left + 64] = noise(64, 64, number)
    assert sampling.positions(pixels, 4, 64, 64, 2) == corners


def test_small_images_are_seen_whole():
    view = View.parse("sample:4x32")
    for size in ((64, 64), (65, 63), (2, 2), (16, 256)):
        pixels = noise(*size)
        np.testing.assert_array_equal(view.parts(pixels), pixels[None])
    assert view.parts(noise(64, 65)).shape == (4, 32, 32, 3)
    assert str(view) == "sample:4x32" and View.parse(str(view)) == view


@pytest.mark.parametrize("view", ["native", "crop:16", "resize:24", "tile:64"])
def test_other_views_have_one_part(view):
    pixels, view = noise(40, 50), View.parse(view)
    np.testing.assert_array_equal(view.parts(pixels), view.apply(pixels)[None])

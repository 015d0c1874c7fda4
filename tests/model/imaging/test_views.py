"""Views: the part of an image that the network sees, which keeps to the cells."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from npr_model.errors import InputError
from npr_model.imaging.errors import ImageError
from npr_model.imaging.views import View
from tests.model.conftest import noise

VIEWS = ["native", "crop:256", "resize:256", "tile:224"]


@pytest.mark.parametrize("text", VIEWS)
def test_view_round_trip(text):
    assert str(View.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "crop",
        "crop:",
        "crop:0",
        "crop:1",
        "crop:-4",
        "crop:x",
        "native:3",
        "zoom:3",
        "crop:²",
        "resize:13378",
        "tile:1" + "0" * 5000,
        "sample:8",
        "crop:8x8",
        "sample:0x64",
        "sample:-1x64",
        "sample:11000x128",
        "sample:2000x16",
        "sample:4x7",
    ],
)
def test_bad_view(text):
    with pytest.raises(InputError, match="view"):
        View.parse(text)


@pytest.mark.parametrize("size", [(10, 10), (11, 13), (14, 15), (9, 40)], ids=str)
@pytest.mark.parametrize("grid_size", [2, 3])
def test_crop_is_central_and_begins_on_a_cell(size, grid_size):
    pixels = np.empty((*size, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.indices(size)
    view = View.parse("crop:8").apply(pixels, grid_size)
    assert view.shape == (8, 8, 3)
    for offset, side in zip(view[0, 0, :2].tolist(), size, strict=True):
        assert offset % grid_size == 0
        assert 0 <= (side - 8) / 2 - offset < grid_size


def test_a_crop_lets_go_of_the_rest():
    pixels = np.zeros((500, 10, 3), np.uint8)
    assert View("crop", 10).apply(pixels).base is None


def test_crop_keeps_a_short_side_whole():
    pixels = noise(6, 20)
    np.testing.assert_array_equal(View.parse("crop:8").apply(pixels), pixels[:, 6:14])


def test_tile_repeats_whole_cells_then_crops():
    pixels = noise(5, 20)
    np.testing.assert_array_equal(View.parse("tile:8").apply(pixels), pixels[[0, 1, 2, 3, 0, 1, 2, 3], 6:14])


def test_tile_leaves_large_images_to_the_crop():
    pixels = noise(30, 31)
    np.testing.assert_array_equal(View.parse("tile:8").apply(pixels), View.parse("crop:8").apply(pixels))


def test_resize_is_pillows_bilinear():
    pixels = noise(30, 31)
    expected = Image.fromarray(pixels).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(View.parse("resize:16").apply(pixels), np.asarray(expected))


@pytest.mark.parametrize("view", ["native", "crop:8", "resize:8", "tile:8", "sample:1x8"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)], ids=str)
def test_image_without_a_whole_cell(view, size):
    height, width = size
    with pytest.raises(ImageError, match=f"is {width}x{height} pixels, smaller than one cell of 2x2"):
        View.parse(view).parts(noise(*size))

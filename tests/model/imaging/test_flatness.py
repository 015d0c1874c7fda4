"""Whether there is anything to judge in an image, compiled and in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from npr_kernels import extension
from npr_model.imaging.flatness import is_flat, plain_detailed_cells

needs_extension = pytest.mark.skipif(bool(extension.LOAD_ERROR), reason=str(extension.LOAD_ERROR))


def with_detail(
    cells: int, *, parts: int = 1, side: int = 40, grid_size: int = 2, last_first: bool = False
) -> np.ndarray:
    """Grey parts (P, H, W, 3) with so many cells whose first and last pixel differ."""
    pixels = np.full((parts, side, side + 1, 3), 90, np.uint8)
    places = [(part, y, x) for part in range(parts) for y in range(side // grid_size) for x in range(side // grid_size)]
    for number, (part, y, x) in enumerate(places[::-1][:cells] if last_first else places[:cells]):
        pixels[part, (y + 1) * grid_size - 1, (x + 1) * grid_size - 1, number % 3] += 1
    return pixels


@pytest.fixture(params=[pytest.param("compiled", marks=needs_extension), "plain"])
def either(request, monkeypatch) -> None:
    if request.param == "plain":
        monkeypatch.setattr(extension, "LOAD_ERROR", "not built")


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("last_first", [False, True], ids=["above", "below"])
@pytest.mark.parametrize(("cells", "flat"), [(0, True), (39, True), (40, False), (41, False), (400, False)])
def test_an_image_is_flat_below_a_tenth(cells, flat, last_first):
    assert is_flat(with_detail(cells, last_first=last_first), 2) is flat


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(("cells", "flat"), [(79, True), (80, False)])
def test_all_parts_count_together(cells, flat):
    assert is_flat(with_detail(cells, parts=2), 2) is flat


@pytest.mark.usefixtures("either")
def test_any_array_of_pixels_is_read():
    pixels = with_detail(400)
    pixels.flags.writeable = False
    assert not is_flat(pixels, 2) and not is_flat(pixels.transpose(0, 2, 1, 3), 2)


@needs_extension
@pytest.mark.parametrize("grid_size", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [(1, 8, 8), (1, 9, 17), (3, 64, 33), (2, 31, 250)], ids=str)
def test_the_compiled_operator_counts_the_same(size, grid_size):
    count = torch.ops.npr_kernels.detailed_cells
    for most in (2, 256):
        parts = np.random.default_rng(0).integers(0, most, (*size, 3), np.uint8)
        expected = plain_detailed_cells(parts, grid_size)
        assert count(torch.from_numpy(parts), grid_size, 2**62) == expected
        for enough in (-1, 0, 1, expected // 2, expected):
            assert min(enough, expected) <= count(torch.from_numpy(parts), grid_size, enough) <= expected


@needs_extension
def test_the_compiled_operator_refuses_what_it_cannot_read():
    count, parts = torch.ops.npr_kernels.detailed_cells, torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    for wrong, grid_size, message in (
        (parts[0], 2, "parts"),
        (parts.float(), 2, "parts"),
        (parts[:, :, ::2], 2, "parts"),
        (parts[..., :2].contiguous(), 2, "parts"),
        (parts, 0, "grid_size"),
        (parts, -2, "grid_size"),
    ):
        with pytest.raises(RuntimeError, match=message):
            count(wrong, grid_size, 1)
    for shape, grid_size in (((0, 8, 8, 3), 2), ((1, 0, 0, 3), 2), ((1, 8, 8, 3), 9), ((1, 8, 8, 3), 2**40)):
        assert count(torch.zeros(shape, dtype=torch.uint8), grid_size, 1) == 0

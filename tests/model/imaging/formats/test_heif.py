"""HEIF: whole files are decoded as stored, files with missing data are refused."""

from __future__ import annotations

import io

import numpy as np
import pillow_heif
import pytest

from npr_model.imaging.decode import decode, from_pillow
from npr_model.imaging.errors import ImageError
from npr_model.imaging.formats import boxes
from npr_model.imaging.headers import header_size, read_encoding
from tests.model.conftest import noise
from tests.model.imaging.files import heif


def picture(height: int = 96, width: int = 160) -> np.ndarray:
    rows, columns = np.indices((height, width))
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], 2).astype(np.uint8)


def test_pixels_format_and_decoder():
    pixels = picture()
    found = decode(heif(pixels))
    np.testing.assert_array_equal(found.pixels, pixels)
    assert found.format == "HEIF" and found.decoder.startswith("pillow-heif ")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_stored_pixels_whatever_the_orientation(orientation, tmp_path):
    """The encoder turns EXIF orientation into rotation and mirroring of the container."""
    pixels = picture(64, 96)
    data = heif(pixels, orientation=orientation)
    np.testing.assert_array_equal(decode(data).pixels, pixels)
    encoding = read_encoding(data)
    assert (encoding.width, encoding.height, encoding.format) == (96, 64, "HEIF")
    (tmp_path / "a.heic").write_bytes(data)
    assert header_size(tmp_path / "a.heic") == (96, 64)


@pytest.mark.parametrize("tile", [0, 64])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_missing_data_is_refused(monkeypatch, tile, share):
    data = heif(noise(256, 192), monkeypatch, tile=tile)
    with pytest.raises(ImageError, match=r"truncated|damaged") as caught:
        decode(data[: int(share * len(data))])
    assert caught.value.code == "damaged"


def test_tiles_are_joined(monkeypatch):
    pixels = picture(150, 200)
    data = heif(pixels, monkeypatch, tile=64)
    assert sum(item.kind == b"hvc1" for item in boxes.items(data)) == 12
    np.testing.assert_array_equal(decode(data).pixels, pixels)


def test_too_large():
    with pytest.raises(ImageError, match="more than the limit of 1000") as caught:
        decode(heif(picture()), max_pixels=1000)
    assert caught.value.code == "too_large"


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"heix"])
def test_what_only_begins_like_heif(brand):
    with pytest.raises(ImageError, match="HEIF") as caught:
        decode(b"\0\0\0\x18ftyp" + brand + bytes(4) + b"mif1heic" + bytes(300))
    assert caught.value.code == "damaged"


def test_damage_raises_nothing_else():
    data, random = heif(noise(64, 64)), np.random.default_rng(0)
    for _ in range(150):
        changed = bytearray(data[: random.integers(1, len(data) + 1)])
        for place in random.integers(0, min(len(changed), 1200), random.integers(1, 5)):
            changed[place] = random.integers(256)
        try:
            decode(bytes(changed), max_pixels=10**6)
        except ImageError:
            continue


def test_a_program_that_registered_the_format_with_pillow():
    pixels = picture()
    with pillow_heif.open_heif(io.BytesIO(heif(pixels))).to_pillow() as image:
        np.testing.assert_array_equal(from_pillow(image).pixels, pixels)

"""A file is scored if the data of all its pixels is there, and with exactly those pixels; otherwise it is an error."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image

from npr_model.imaging.decode import decode, from_pillow
from npr_model.imaging.errors import ImageError
from npr_model.imaging.headers import read_encoding
from tests.model.conftest import encoded
from tests.model.imaging import files
from tests.model.imaging.files import every_kind, picture, stored_pixels
from tests.model.imaging.kinds import KINDS

SIZES = [(1, 1), (2, 9), (7, 5), (16, 64), (45, 38), (150, 203)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_whole_files_have_the_pixels_of_pillow(size):
    for name, data in every_kind(*size).items():
        decoded = decode(data)
        assert decoded.format == name.split()[0], name
        np.testing.assert_array_equal(decoded.pixels, stored_pixels(data), name)
        encoding = read_encoding(data)
        assert (encoding.height, encoding.width) == size, name


@pytest.mark.parametrize("name", KINDS)
def test_cut_files(name):
    data, whole = KINDS[name], stored_pixels(KINDS[name])
    for length in {*range(len(data) - 30, len(data)), *random.Random(0).sample(range(len(data)), 30)}:
        try:
            pixels = decode(data[:length]).pixels
        except ImageError:
            continue
        np.testing.assert_array_equal(pixels, whole, f"{length} of {len(data)} bytes")


# PNG


# JPEG


# Other formats


# Rules that Pillow does not follow on its own


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["TIFF", "JPEG", "PNG", "WEBP", "AVIF"])
def test_stored_pixels_whatever_the_orientation(format, orientation):
    if format not in Image.OPEN:
        pytest.skip("this Pillow has no AVIF")
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}}.get(format, {})
    data = encoded(picture(20, 30), format, exif=exif, **options)
    expected = stored_pixels(encoded(picture(20, 30), format, **options))
    np.testing.assert_array_equal(decode(data).pixels, expected)
    encoding = read_encoding(data)
    assert (encoding.width, encoding.height) == (30, 20)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(from_pillow(image).pixels, expected)


def test_an_image_opened_by_pillow_is_decoded_by_the_same_rules():
    for name, data in KINDS.items():
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(from_pillow(image).pixels, stored_pixels(data), name)
    rows = files.png_rows(10, 8, 2, 8, False)
    with Image.open(io.BytesIO(files.png_of_rows(8, 20, rows))) as image, pytest.raises(ImageError, match="truncated"):
        from_pillow(image)


def test_images_that_pillow_decodes_in_another_way_stay_so():
    data = encoded(picture(64, 64), "JPEG")
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (32, 32))
        assert from_pillow(image).width == 32
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (0, 200)]
    with Image.open(io.BytesIO(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]))) as image:
        image.seek(1)
        assert from_pillow(image).pixels[0, 0, 0] == 200


# Formats that are not supported


def test_messages_have_no_memory_addresses():
    for data in (
        b"\xff\xd8\xff\xe0",
        b"BM" + bytes(90),
        b"P6 x",
        b"II*\0\x08\0\0\0",
        b"RIFF\4\0\0\0WEBPVP8 ",
        b"GIF89a",
    ):
        for read in (decode, read_encoding):
            with pytest.raises(ImageError) as caught:
                read(data)
            assert "0x" not in str(caught.value)

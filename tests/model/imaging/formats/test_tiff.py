"""TIFF: a file is scored if the data of all its pixels is there; otherwise it is an error."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from npr_model.imaging.decode import decode
from npr_model.imaging.headers import header_size
from tests.model.imaging import files
from tests.model.imaging.files import picture, stored_pixels
from tests.model.imaging.kinds import refused


def test_tiff_strips_and_tiles_that_are_missing():
    pixels = picture(64, 48)
    for options in ({}, {"tile": (16, 16)}, {"planar": True}):
        for compression in ("raw", "lzw", "deflate", "packbits"):
            data = files.tiff(pixels, compression, **options)
            np.testing.assert_array_equal(decode(data).pixels, pixels)
            counts, offsets = (325, 324) if "tile" in options else (279, 273)
            count = len(Image.open(io.BytesIO(data)).tag_v2[counts])
            refused(files.tiff(pixels, compression, **options, tags={counts: (4, [0] * count)}), "missing")
            refused(files.tiff(pixels, compression, **options, tags={counts: (4, [5] * count)}))
            refused(files.tiff(pixels, compression, **options, tags={offsets: (4, [8] * (count - 1))}), "of")
            refused(files.tiff(pixels, compression, **options, tags={offsets: (4, [10**6] * count)}), "missing")
            refused(files.tiff(pixels, compression, **options, tags={257: (4, [128])}))


def test_tiff_jpeg_strips_closed_with_an_end_marker():
    pixels = picture(16, 48)
    data = files.tiff(pixels, "jpeg", rows_per_strip=16)
    end = data.index(b"\xff\xd9")
    for cut in (4, 50, 300):
        changed = bytearray(data)
        changed[end - cut : end + 2] = b"\xff\xd9" + bytes(cut)
        refused(bytes(changed), "truncated or damaged")


@pytest.mark.parametrize("compression", [2, 3, 4, 6, 32809, 12345])
def test_tiff_compression_that_cannot_be_proved_whole(compression):
    refused(files.tiff(picture(16, 16), tags={259: (3, [compression])}), "compression", "unsupported")


@pytest.mark.parametrize("compression", ["raw", "deflate", "jpeg"])
@pytest.mark.parametrize("kind", [1, 3, 4])
def test_orientation_of_a_tiff_in_any_integer_and_in_xmp(kind, compression, tmp_path):
    pixels = picture(20, 30)
    expected = stored_pixels(files.tiff(pixels, compression))
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for tags in ({274: (kind, [6])}, {700: (1, xmp)}):
        data = files.tiff(pixels, compression, tags=tags)
        np.testing.assert_array_equal(decode(data).pixels, expected)
        (tmp_path / "a.tif").write_bytes(data)
        assert header_size(tmp_path / "a.tif") == (30, 20)

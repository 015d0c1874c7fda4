"""PNG: a file is scored if the data of all its pixels is there; otherwise it is an error."""

from __future__ import annotations

import random
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import PngImagePlugin

from npr_model.imaging.decode import decode
from npr_model.imaging.errors import ImageError
from npr_model.imaging.headers import read_encoding
from tests.model.conftest import encoded, noise
from tests.model.imaging import files
from tests.model.imaging.files import picture, stored_pixels
from tests.model.imaging.kinds import KINDS, refused


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("kind", files.PNG_KINDS, ids=str)
def test_png_whose_data_does_not_match_its_header(kind, interlaced):
    colour_type, depth = kind
    palette = files.chunk(b"PLTE", noise(1, 1 << depth).tobytes()) if colour_type == 3 else b""
    rows = files.png_rows(21, 17, *kind, interlaced)

    def png(height: int, width: int, rows: bytes) -> bytes:
        return files.png_of_rows(width, height, rows, *kind, interlaced, palette)

    assert decode(png(21, 17, rows)).pixels.shape == (21, 17, 3)
    for length in (0, 1, len(rows) // 2, len(rows) - 1):
        refused(png(21, 17, rows[:length]), "truncated")
    refused(png(42, 17, rows), "truncated")
    refused(png(21, 40, rows), "truncated")
    for more in (b"\0", rows):
        refused(png(21, 17, rows + more), "more data")
    refused(png(20, 17, rows), "more data")


def test_png_whose_stream_ends_at_any_byte():
    rows = files.png_rows(9, 8, 2, 8, False)
    stream = zlib.compress(rows)
    whole = decode(files.png_of_stream(8, 9, stream)).pixels
    for length in range(len(stream)):
        data = files.png_of_stream(8, 9, stream[:length])
        if length < len(stream) - 4:  # all rows, without the checksum
            refused(data, "truncated")
        else:
            np.testing.assert_array_equal(decode(data).pixels, whole)
    for junk in (b"\0", b"junk" * 100):
        np.testing.assert_array_equal(decode(files.png_of_stream(8, 9, stream + junk)).pixels, whole)
    for place in range(1, 5):
        changed = bytearray(stream)
        changed[-place] ^= 1
        refused(files.png_of_stream(8, 9, bytes(changed)), "incorrect data check")


@pytest.mark.parametrize("name", ["PNG pillow", "PNG stored", "PNG 3 4", "PNG 2 8 interlaced", "PNG animated"])
def test_a_flipped_bit_breaks_a_checksum(name):
    data = KINDS[name]
    start = data.index(b"IDAT") - 4
    (length,) = struct.unpack_from(">I", data, start)
    places = [*range(8, start), *random.Random(0).sample(range(start, start + 12 + length), 200)]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        try:
            pixels = decode(bytes(changed)).pixels
        except ImageError:
            continue
        assert place < start  # in a chunk that no pixel depends on
        np.testing.assert_array_equal(pixels, stored_pixels(data))


def test_chunks_that_no_pixel_depends_on_may_be_damaged():
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "a" * 100)
    data = bytearray(encoded(picture(20, 30), pnginfo=info))
    data[data.index(b"aaaa")] = 0
    np.testing.assert_array_equal(decode(bytes(data)).pixels, picture(20, 30))


def test_unknown_critical_chunks_are_not_supported():
    data = KINDS["PNG pillow"]
    refused(data[:8] + files.chunk(b"CgBI", bytes(4)) + data[8:], "CgBI", "unsupported")


def test_palette_without_the_colours_that_are_used():
    rows = b"".join(b"\0" + bytes(range(8)) for _ in range(4))
    colours = files.chunk(b"PLTE", noise(1, 8).tobytes())
    assert decode(files.png_of_rows(8, 4, rows, 3, 8, extra=colours)).width == 8
    refused(files.png_of_rows(8, 4, rows, 3, 8, extra=files.chunk(b"PLTE", noise(1, 7).tobytes())), "palette")
    refused(files.png_of_rows(8, 4, rows, 3, 8), "palette")
    refused(files.png_of_rows(8, 4, rows, 3, 8, extra=files.chunk(b"PLTE", bytes(22))), "palette")


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iTXt compressed", "iCCP"])
def test_png_with_much_text_or_a_large_profile(kind):
    info, profile = PngImagePlugin.PngInfo(), None
    text = "x" * 50_000_000
    if kind == "iCCP":
        profile = bytes(50_000_000)
    elif kind.startswith("iTXt"):
        info.add_itxt("workflow", text, zip="compressed" in kind)
    else:
        info.add_text("workflow", text, zip=kind == "zTXt")
    data = encoded(picture(20, 30), pnginfo=info, icc_profile=profile)
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(decode(data).pixels, picture(20, 30))
        assert read_encoding(data).width == 30
        assert tracemalloc.get_traced_memory()[1] < 2**20  # its content is never unpacked
    finally:
        tracemalloc.stop()

"""JPEG 2000: a file is scored if the data of all its pixels is there; otherwise it is an error."""

from __future__ import annotations

import struct

import numpy as np

from tests.model.conftest import encoded
from tests.model.imaging.files import picture, stored_pixels
from tests.model.imaging.kinds import refused


def tile_parts(data: bytes) -> list[tuple[int, int]]:
    """Where the parts of a JPEG 2000 code stream begin and end."""
    position, parts = data.index(b"\xff\x90"), []
    while data[position : position + 2] == b"\xff\x90":
        (length,) = struct.unpack_from(">I", data, position + 6)
        parts.append((position, position + length))
        position += length
    return parts


def test_jpeg_2000_without_some_of_its_tiles():
    data = encoded(picture(48, 64), "JPEG2000", tile_size=(16, 16), no_jp2=True, num_resolutions=3)
    parts = tile_parts(data)
    assert len(parts) == 12
    for start, end in parts:
        refused(data[:start] + data[end:], "11 of 12 tiles")


def test_jpeg_2000_whose_last_packets_are_missing():
    image = picture(48, 64)
    data = encoded(image, "JPEG2000", no_jp2=True, irreversible=True, quality_mode="rates", quality_layers=[60, 30, 10])
    ((start, end),) = tile_parts(data)
    whole = stored_pixels(data)
    silent = 0
    for length in range(end - start - 1, 20, -1):  # the tile's length is set right
        cut = data[: start + 6] + struct.pack(">I", length) + data[start + 10 : start + length] + b"\xff\xd9"
        try:
            silent += not np.array_equal(stored_pixels(cut), whole)
        except OSError:
            continue
        refused(cut)
    assert silent > 5  # so many has Pillow decoded to other pixels


def test_jpeg_2000_whose_headers_claim_different_sizes():
    data = encoded(picture(48, 64), "JPEG2000")
    start = data.index(b"ihdr") + 4
    refused(data[:start] + struct.pack(">II", 96, 64) + data[start + 8 :], "different sizes")

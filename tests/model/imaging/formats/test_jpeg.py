"""JPEG: a file is scored if the data of all its pixels is there; otherwise it is an error."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from npr_model.imaging import headers
from npr_model.imaging.decode import decode
from npr_model.imaging.errors import ImageError
from npr_model.imaging.formats import jpeg
from npr_model.imaging.formats.jpeg import Header
from npr_model.imaging.headers import read_encoding
from tests.model.conftest import encoded, noise
from tests.model.imaging import files
from tests.model.imaging.files import picture, stored_pixels
from tests.model.imaging.kinds import KINDS, of_format, refused

JPEGS = of_format("JPEG")


@pytest.mark.parametrize("name", JPEGS)
def test_jpeg_cut_and_closed_with_an_end_marker(name):
    data, whole = KINDS[name], stored_pixels(KINDS[name])
    start = data.index(b"\xff\xda") + 14
    for length in range(start, len(data) - 3, 7):
        for end in (b"\xff\xd9", b"\xff\xd0\xff\xd9"):
            try:
                pixels = decode(data[:length] + end).pixels
            except ImageError:
                continue
            np.testing.assert_array_equal(pixels, whole, f"{length} of {len(data)} bytes")


@pytest.mark.parametrize("name", JPEGS)
def test_jpeg_without_its_end_marker_has_all_pixels(name):
    data, whole = KINDS[name], stored_pixels(KINDS[name])
    for without in (data[:-2], data[:-1]):
        np.testing.assert_array_equal(decode(without).pixels, whole)
    refused(data[:-12])
    refused(data[:-12] + bytes(700))


def test_jpeg_without_its_end_marker_may_end_in_zeros():
    """They were reserved on the disk and never written."""
    for progressive in (False, True):
        data = encoded(picture(40, 50), "JPEG", progressive=progressive)
        np.testing.assert_array_equal(decode(data[:-2] + bytes(700)).pixels, stored_pixels(data))
        refused(data[: len(data) // 2] + bytes(len(data) // 2))


def test_progressive_jpeg_without_its_last_scans():
    data = encoded(picture(40, 50), "JPEG", progressive=True, quality=90)
    starts = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]
    tables = [data.rindex(b"\xff\xc4", 0, start) for start in starts]
    assert len(starts) > 5
    for start, table in zip(starts[1:], tables[1:], strict=True):
        refused(data[:start] + b"\xff\xd9", "last scans are missing")
        refused(data[:table] + b"\xff\xd9", "last scans are missing")


@pytest.mark.parametrize("factors", [files.SAMPLING["4:4:4"], files.SAMPLING["4:1:0"], files.FOUR["cmyk"]], ids=str)
def test_sequential_jpeg_without_its_last_scan(factors):
    data = files.jpeg(20, 30, factors, interleaved=False)
    refused(data[: data.rindex(b"\xff\xda")] + b"\xff\xd9", "last scans are missing")


ODD_SEGMENTS = {
    "short JFIF": files.segment(0xE0, b"JFIF\0\1"),
    "empty APP0": files.segment(0xE0, b""),
    "short Adobe": files.segment(0xEE, b"Adobe"),
    "short Adobe, without the transform": files.segment(0xEE, b"Adobe\0\x64\0\0"),
    "empty APP14": files.segment(0xEE, b""),
    "JFIF 2": files.segment(0xE0, b"JFIF\0\2\1\0\0\1\0\1\0\0"),
    "broken EXIF": files.segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "empty EXIF": files.segment(0xE1, b"Exif\0\0"),
    "broken profile": files.segment(0xE2, b"ICC_PROFILE\0\0\2"),
    "short profile": files.segment(0xE2, b"ICC_PROFILE\0"),
    "broken MPF": files.segment(0xE2, b"MPF\0II*\0\x08\0\0\0\x01\0\xff\xff"),
    "broken Photoshop": files.segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\x00"),
    "comment": files.segment(0xFE, b"x" * 65000),
}


@pytest.mark.parametrize("sampling", ["4:2:0", "4:1:0", "ycck 4:2:0"])
@pytest.mark.parametrize("name", ODD_SEGMENTS)
def test_jpeg_with_odd_segments(name, sampling):
    factors = {**files.SAMPLING, **files.FOUR}[sampling]
    data = files.jpeg(20, 30, factors, extra=ODD_SEGMENTS[name])
    plain = files.jpeg(20, 30, factors)
    np.testing.assert_array_equal(decode(data).pixels, stored_pixels(plain))
    encoding = read_encoding(data)
    assert encoding.subsampling == read_encoding(plain).subsampling
    assert (encoding.width, encoding.height) == (30, 20)
    refused(data[: len(data) * 9 // 10] + b"\xff\xd9")


def outcome(data: bytes, header: Header | None) -> tuple:
    """What decoding gives: the names and the pixels, or the error."""
    try:
        decoded = decode(data, header=header)
    except ImageError as error:
        return str(error), error.code
    return decoded.format, decoded.decoder, decoded.pixels.tobytes()


@pytest.mark.parametrize("name", [*of_format("JPEG"), *of_format("MPO"), *ODD_SEGMENTS])
def test_a_header_that_was_read_before_changes_nothing(name):
    data = KINDS.get(name) or files.jpeg(20, 30, files.SAMPLING["4:2:0"], extra=ODD_SEGMENTS[name])
    for length in (len(data), len(data) - 2, len(data) - 20):
        header = read_encoding(data[:length]).jpeg
        assert header is not None and outcome(data[:length], header) == outcome(data[:length], None)


LIST = files.segment(0xE2, b"MPF\0II*\0\x08\0\0\0\0\0")
LONGEST = files.segment(0xE1, 65533 * b"x")


@pytest.mark.parametrize(
    ("extra", "format"),
    [
        (b"", "JPEG"),
        (LIST, "MPO"),
        (4 * LONGEST + LIST, "MPO"),
        (LIST[:-10] + 10 * b"\xff", "MPO"),
        (files.segment(0xE2, b"MPF"), "JPEG"),
        (files.segment(0xE1, b"MPF\0"), "JPEG"),
        (files.segment(0xFE, LIST), "JPEG"),
    ],
    ids=["none", "list", "behind long segments", "broken", "short", "other marker", "in a comment"],
)
def test_a_jpeg_that_lists_others_is_an_mpo(extra, format):
    assert decode(files.jpeg(20, 30, files.SAMPLING["4:2:0"], extra=extra)).format == format


def test_jpeg_whose_header_claims_another_size():
    data = encoded(picture(64, 64), "JPEG")
    start = data.index(b"\xff\xc0") + 5
    for height, width in ((32, 64), (128, 64), (64, 32), (64, 128)):
        refused(data[:start] + struct.pack(">HH", height, width) + data[start + 4 :], "truncated or damaged")


@pytest.mark.parametrize("frame, name", [(0xC3, "lossless"), (0xC9, "arithmetic"), (0xC5, "hierarchical")])
def test_kinds_of_jpeg_that_cannot_be_proved_whole(frame, name):
    data = encoded(picture(16, 16), "JPEG").replace(b"\xff\xc0", bytes((0xFF, frame)))
    refused(data, name, "unsupported")


def test_12_bit_jpeg_is_named():
    data = bytearray(encoded(picture(16, 16), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    refused(bytes(data), "12-bit JPEG", "unsupported")


SUBSAMPLING = {
    **{name: files.jpeg(16, 24, factors) for name, factors in files.SAMPLING.items()},
    "4:4:0 by factors of two": files.jpeg(16, 24, ((2, 2), (2, 1), (2, 1))),
    "4:2:2 by factors of two": files.jpeg(16, 24, ((2, 2), (1, 2), (1, 2))),
    "none: grey": encoded(Image.fromarray(noise(16, 16)).convert("L"), "JPEG"),
    "none: grey with factors": files.jpeg(16, 24, ((2, 2),)),
    "none: CMYK": encoded(Image.fromarray(noise(16, 16)).convert("CMYK"), "JPEG"),
    "none: CMYK by Adobe": files.jpeg(16, 24, files.FOUR["cmyk"], extra=files.adobe(0)),
    "none: RGB": encoded(noise(16, 16), "JPEG", keep_rgb=True),
    "none: RGB by its identifiers": files.jpeg(16, 24, files.SAMPLING["4:4:4"], identifiers=b"RGB"),
    "4:2:0 of YCCK": files.jpeg(16, 24, files.FOUR["ycck 4:2:0"], extra=files.adobe(2)),
    "4:1:1 of YCCK": files.jpeg(16, 24, files.FOUR["ycck 4:1:1"], extra=files.adobe(2)),
    "4:1:1 by simplejpeg": simplejpeg.encode_jpeg(noise(16, 32), colorsubsampling="411"),
    "4:4:0 by simplejpeg": simplejpeg.encode_jpeg(noise(16, 32), colorsubsampling="440"),
}


@pytest.mark.parametrize("name", SUBSAMPLING)
def test_chroma_subsampling_is_the_true_one(name):
    expected = None if name.startswith("none") else name.split()[0]
    assert read_encoding(SUBSAMPLING[name]).subsampling == expected


def test_headers_with_many_tables_are_not_kept():
    """A segment may have 64 KB, and nothing limits their number."""
    data = encoded(noise(16, 16), "JPEG")
    (length,) = struct.unpack(">H", data[data.index(b"\xff\xdb") + 2 :][:2])
    table = data[data.index(b"\xff\xdb") :][: length + 2]
    many = data[:2] + 60 * table + data[2:]
    jpeg._header.cache_clear(), headers._jpeg_encoding.cache_clear()
    assert read_encoding(many).quantization == read_encoding(many).quantization
    assert jpeg._header.cache_info().currsize == headers._jpeg_encoding.cache_info().currsize == 0
    read_encoding(data)
    assert jpeg._header.cache_info().currsize == headers._jpeg_encoding.cache_info().currsize == 1

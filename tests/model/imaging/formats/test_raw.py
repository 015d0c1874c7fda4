"""Camera raw files: each is named, and its largest JPEG is found, whatever else looks like one."""

from __future__ import annotations

import struct
import time

import numpy as np
import pytest

from npr_model.imaging.decode import decode
from npr_model.imaging.errors import ImageError
from npr_model.imaging.formats.raw import camera_raw_name, largest_jpeg
from npr_model.imaging.views import View
from npr_model.scoring.decoding import Decoder
from npr_model.scoring.items import in_memory
from tests.model.conftest import encoded
from tests.model.imaging import files
from tests.model.imaging.files import picture, segment

SMALL, LARGE = encoded(picture(30, 40), "JPEG"), encoded(picture(60, 80), "JPEG", quality=92, subsampling="4:2:2")
WITH_THUMBNAIL = LARGE[:2] + segment(0xE1, b"Exif\0\0" + SMALL) + LARGE[2:]
LOSSLESS = b"\xff\xd8" + segment(0xC4, bytes(20)) + segment(0xC3, struct.pack(">BHHB", 14, 4000, 6000, 2) + bytes(6))
PREVIEWS = SMALL + bytes(50) + WITH_THUMBNAIL + bytes(50) + 40 * LOSSLESS + SMALL


def decoded(data: bytes, **options):
    return Decoder(View("native"), "model", 2, **options).decode(in_memory("a", data))


@pytest.mark.parametrize("name", files.camera_raw(b""))
def test_the_largest_jpeg_is_scored_on_request(name):
    data = files.camera_raw(PREVIEWS)[name]
    assert camera_raw_name(data) == name
    found = decoded(data, raw_previews=True)
    assert found.row.error is None
    np.testing.assert_array_equal(found.parts[0], decode(LARGE).pixels)
    row = found.row
    assert (row.width, row.height, row.format, row.jpeg_quality, row.subsampling) == (80, 60, name, 92, "4:2:2")
    assert row.condition == "jpeg-90-100"
    assert row.decoder == f"{decode(LARGE).decoder} (preview in {name})"


@pytest.mark.parametrize("name", files.camera_raw(b""))
def test_else_the_error_names_the_option(name):
    row = decoded(files.camera_raw(PREVIEWS)[name]).row
    assert row.error_code == "unsupported" and name in row.error and "--raw-previews" in row.error


def test_an_earlier_score_of_the_preview_does_not_count_without_the_option():
    data = files.camera_raw(PREVIEWS)["DNG"]
    known = decoded(data, raw_previews=True).row
    decoder = Decoder(View("native"), "model", 2)
    assert decoder.decode(in_memory("a", data), find=lambda row: known).row.error_code == "unsupported"


@pytest.mark.parametrize(
    "preview, code",
    [
        (b"", "unsupported"),
        (LOSSLESS, "unsupported"),
        (LARGE[:20], "unsupported"),
        (LARGE[: len(LARGE) // 2], "damaged"),
        (LARGE[: len(LARGE) // 2] + SMALL, "damaged"),
        (files.jpeg(16, 16, files.FOUR["cmyk"]), "unsupported"),
    ],
)
def test_without_a_whole_preview(preview, code):
    row = decoded(files.camera_raw(preview)["DNG"], raw_previews=True).row
    assert row.error_code == code and "\n" not in row.error


def test_too_large():
    row = decoded(files.camera_raw(PREVIEWS)["DNG"], raw_previews=True, max_pixels=4000).row
    assert row.error_code == "too_large"


def test_lossy_tiles_of_a_dng_are_no_preview():
    pixels = picture(64, 96)
    data = files.tiff(pixels, "jpeg", tile=(64, 96), tags={262: (3, [files.LOSSY_RAW_DATA]), 50706: (1, [1, 4, 0, 0])})
    assert largest_jpeg(data + SMALL) == SMALL
    with pytest.raises(ImageError, match="no JPEG preview"):
        largest_jpeg(data)


def test_the_raw_file_says_that_a_camera_took_it():
    base = files.tiff(picture(16, 16), tags={files.MAKE: (1, b"Leica\0"), 0x8769: (4, [0]), 50706: (1, [1, 4, 0, 0])})
    pointer = struct.pack("<HHI", 0x8769, 4, 1)
    place = base.index(pointer) + len(pointer)
    exif = struct.pack("<HHHIfI", 1, 0x829A, 5, 1, 0, 0)
    data = base[:place] + struct.pack("<I", len(base)) + base[place + 4 :] + exif + LARGE
    row = decoded(data, raw_previews=True).row
    assert (row.declared, row.declared_by) == ("camera", "EXIF: Leica")


HOSTILE = {
    "many starts": b"\xff\xd8\xff" * 5_000_000,
    "many segments": (b"\xff\xd8" + segment(0xE0, b"")) * 2_000_000,
    "many segments in one": 20_000 * (b"\xff\xd8" + 99 * segment(0xE0, b"")),
    "fill bytes": b"\xff\xd8" + b"\xff" * 10_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_cost_little(name):
    data = files.camera_raw(b"")["DNG"] + HOSTILE[name]
    began = time.thread_time()
    assert decoded(data, raw_previews=True).row.error_code == "unsupported"
    assert time.thread_time() - began < 2


def test_damage_raises_nothing_else():
    random = np.random.default_rng(0)
    for name, data in files.camera_raw(PREVIEWS).items():
        for _ in range(10):
            changed = bytearray(data)
            for place in random.integers(0, len(changed), 30):
                changed[place] = random.integers(256)
            row = decoded(bytes(changed), raw_previews=True).row
            assert row.error_code != "unreadable", (name, row.error)

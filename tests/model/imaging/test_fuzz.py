"""Damaged files of every kind: scored with exactly the pixels of the whole file, or refused.

NPR_FUZZ_CASES sets the number of cases, and --hypothesis-seed draws others.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib

import numpy as np
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import ImageFile

from npr_model.imaging.decode import decode
from npr_model.imaging.errors import ImageError
from npr_model.imaging.headers import read_encoding
from tests.model.imaging.files import every_kind, stored_pixels

CASES = int(os.environ.get("NPR_FUZZ_CASES", 300))
ENDS = {
    "JPEG": (b"\xff\xd9", b"\xff\xd9\xff\xd9", b"\xff\xd0\xff\xd9"),
    "PNG": (b"\0\0\0\0IEND\xaeB`\x82", b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xaeB`\x82"),
    "GIF": (b"\0;", b";"),
    "JPEG2000": (b"\xff\xd9",),
}
FOREIGN_ENDS = (b"\n", b"\r\n", bytes(5000), b"\0\1", b"\0\0" * 60 + b"\0\1", b"\x01\x01\0;", b"</html>")
SIZES = {"BMP": ("<i", (18, 22)), "TGA": ("<H", (12, 14)), "GIF": ("<H", (6, 8)), "PNG": (">I", (16, 20))}


def end_png_early(data: bytes, place: int) -> bytes:
    """A PNG whose first data chunk is cut, with its length and checksum set right."""
    start = data.index(b"IDAT")
    (length,) = struct.unpack_from(">I", data, start - 4)
    content = data[start + 4 : start + 4 + place % (length + 1)]
    chunk = b"IDAT" + content
    rest = data[start + 8 + length :]
    return data[: start - 4] + struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + rest


def resize(data: bytes, format: str, axis: int, size: int) -> bytes:
    """Claim another width or height; in a PNG with the right checksum."""
    kind, places = SIZES[format]
    changed = bytearray(data)
    struct.pack_into(kind, changed, places[axis], size)
    if format == "GIF":  # the frame, too
        start = data.index(b"\x2c", 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0))
        struct.pack_into(kind, changed, start + 5 + 2 * axis, size)
    if format == "PNG":
        changed[29:33] = struct.pack(">I", zlib.crc32(changed[12:29]))
    return bytes(changed)


def result(data: bytes) -> np.ndarray | None:
    try:
        pixels = decode(data).pixels
    except ImageError as error:
        assert "\n" not in str(error) and " at 0x" not in str(error)
        return None
    read_encoding(data)  # a file that decodes has a header that can be read
    return pixels


def decodes_to(data: bytes, pixels: np.ndarray) -> bool:
    """Whether Pillow decodes a file to ``pixels``; it needs the end marker of a JPEG, so one is put behind the data."""
    ends = (len(data) - count for count in range(8))
    versions = (data, *(version + b"\xff\xd9" for end in ends for version in (data[:end], data[:end].rstrip(b"\0"))))
    for version in versions:
        with contextlib.suppress(OSError, SyntaxError, ValueError):
            if np.array_equal(stored_pixels(version), pixels):
                return True
    return False


@st.composite
def damage(draw: st.DrawFn, data: bytes, name: str) -> tuple[str, bytes, bool]:
    """What was done, the file, and whether bytes of it were replaced: then it may be another image by now."""
    format = name.split()[0]
    place = draw(st.integers(0, len(data) - 1))
    kinds = ["cut", "cut and continued", "appended", "bit", "bytes", "zeros", "lost", "doubled", "header"]
    kinds += (
        ["cut and closed"] * (format in ENDS) + ["size"] * (format in SIZES) + ["data ended early"] * (format == "PNG")
    )
    kind = draw(st.sampled_from(kinds))
    if kind == "cut":
        return kind, data[:place], False
    if kind == "cut and closed":
        return kind, data[:place] + draw(st.sampled_from(ENDS[format])), False
    if kind == "cut and continued":
        return kind, data[:place] + draw(st.sampled_from(FOREIGN_ENDS)), True
    if kind == "appended":
        return kind, data + draw(st.sampled_from((*FOREIGN_ENDS, *ENDS.get(format, ())))), False
    if kind == "data ended early":
        return kind, end_png_early(data, place), False
    if kind == "size":
        axis = draw(st.integers(0, 1))
        return kind, resize(data, format, axis, draw(st.integers(1, 120))), True
    if kind == "lost":
        return kind, data[:place] + data[place + draw(st.integers(1, 200)) :], True
    if kind == "doubled":
        return kind, data[:place] + data[max(0, place - draw(st.integers(1, 200))) :], True
    if kind == "header":
        place = min(place, draw(st.integers(0, 200)))
    changed = bytearray(data)
    if kind == "bit":
        changed[place] ^= 1 << draw(st.integers(0, 7))
    elif kind == "zeros":
        changed[place : place + 60] = bytes(len(changed[place : place + 60]))
    else:
        length = draw(st.integers(1, 4))
        changed[place : place + length] = draw(st.binary(min_size=length, max_size=length))
    return kind, bytes(changed), True


@settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    derandomize="NPR_FUZZ_CASES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_damaged_files_are_refused_or_give_their_own_pixels(data):
    files = every_kind()
    name = data.draw(st.sampled_from(sorted(files)))
    kind, damaged, changed = data.draw(damage(files[name], name))
    pixels = result(damaged)
    event(f"{kind}: {'refused' if pixels is None else 'scored'}")
    if pixels is None:
        return
    whole = stored_pixels(files[name])
    if np.array_equal(pixels, whole):
        return
    # Where bytes were replaced and no checksum tells, the file may be another image: the one that Pillow decodes.
    assert changed, f"{name}, {kind}: scored with other pixels"
    assert name.split()[0] != "PNG" or kind == "size", f"{name}, {kind}: scored against its checksums"
    assert decodes_to(damaged, pixels), f"{name}, {kind}: scored with pixels that Pillow does not give"


def test_the_programs_own_settings_do_not_matter(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for name, data in every_kind().items():
        pixels = result(data[: len(data) // 2])
        assert pixels is None or np.array_equal(pixels, stored_pixels(data)), name  # the first frame may be whole
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True

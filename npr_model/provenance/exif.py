"""The few EXIF tags that tell of an image's origin. Nothing else of the structure is read."""

from __future__ import annotations

import struct

MOST_ENTRIES = 1000  # of a directory
LONGEST_VALUE = 2**20
_TEXTS = {0x010E: "description", 0x010F: "make", 0x0110: "model", 0x0131: "software"}
_DIRECTORY, _USER_COMMENT = 0x8769, 0x9286
_XMP = 0x02BC
_EXPOSURE = (0x829A, 0x829D, 0x8827, 0x920A)  # exposure time, aperture, sensitivity, focal length


def read_exif(data: bytes) -> dict[str, str]:
    """Return the texts "description", "make", "model", "software", "comment" and "xmp", as far as they are there.

    The key "exposure" is there, with an empty text, if the file has exposure time, aperture, sensitivity or focal
    length. ``data`` begins with the byte order mark. What is damaged is left out.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    found: dict[str, str] = {}
    if order is None or len(data) < 8:
        return found
    for tag, value in _entries(data, order, struct.unpack_from(f"{order}I", data, 4)[0]).items():
        if tag in _TEXTS:
            found[_TEXTS[tag]] = value.partition(b"\0")[0].decode("utf-8", "replace").strip()
        elif tag == _XMP:
            found["xmp"] = value.decode("utf-8", "replace")
        elif tag == _DIRECTORY and len(value) == 4:
            inner = _entries(data, order, struct.unpack(f"{order}I", value)[0])
            if _USER_COMMENT in inner:
                found["comment"] = _comment(inner[_USER_COMMENT])
            if any(tag in inner for tag in _EXPOSURE):
                found["exposure"] = ""
    return found


def _entries(data: bytes, order: str, start: int) -> dict[int, bytes]:
    """Return the values of the wanted tags of a directory, as bytes; of other tags that they are there."""
    if start + 2 > len(data):
        return {}
    count = min(struct.unpack_from(f"{order}H", data, start)[0], MOST_ENTRIES, (len(data) - start - 2) // 12)
    values: dict[int, bytes] = {}
    for number in range(count):
        tag, length = struct.unpack_from(f"{order}HxxI", data, start + 2 + 12 * number)
        place = start + 10 + 12 * number
        if tag in _TEXTS or tag in (_USER_COMMENT, _XMP):
            if length > 4:
                place = struct.unpack_from(f"{order}I", data, place)[0]
            values.setdefault(tag, data[place : place + min(length, LONGEST_VALUE)])
        elif tag in (_DIRECTORY, *_EXPOSURE):
            values.setdefault(tag, data[place : place + 4])
    return values


def _comment(value: bytes) -> str:
    """Decode a user comment: eight bytes that name the encoding, then the text."""
    encoding, text = value[:8], value[8:]
    if not encoding.startswith(b"UNICODE"):
        return text.decode("utf-8", "replace").strip("\0 ")
    # UTF-16; the standard leaves the byte order open. Nearly all text has more zeros in the higher bytes.
    big_endian = text[::2].count(0) >= text[1::2].count(0)
    return text.decode("utf-16-be" if big_endian else "utf-16-le", "replace").strip("\0 ")

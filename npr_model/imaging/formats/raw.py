"""Camera raw files: which they are, and the largest JPEG in them, the preview that the camera developed.

LibRaw (package rawpy) could get the preview, too. But a marker begins each JPEG, so it is found without knowing the
camera. That needs no package, and no C++ code sees files that may be hostile. Raw data can hold JPEGs as well: the
lossless ones of many cameras are no pictures, and the lossy tiles of a DNG are known by their places.
"""

from __future__ import annotations

import struct

from npr_model.imaging.errors import ImageError
from npr_model.imaging.formats import tiff
from npr_model.imaging.formats.signatures import CameraRawError, format_of

_START = b"\xff\xd8\xff"
_FRAMES = (0xC0, 0xC1, 0xC2)  # of JPEGs that can be decoded: sequential and progressive
_BEFORE_FRAME = frozenset((0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))  # tables, comments and applications' segments
_MOST_SEGMENTS = 100  # before the frame
_MOST_STARTS = 10_000  # of JPEGs: more than the lossless tiles of any camera


def camera_raw_name(data: bytes) -> str | None:
    """Return the name of a camera raw format, such as "Nikon NEF"; None for other files."""
    try:
        if format_of(data) == "TIFF":
            tiff.read_size(data)
    except CameraRawError as error:
        return error.name
    except ImageError:
        pass
    return None


def largest_jpeg(data: bytes) -> bytes:
    """Return the JPEG with most pixels in a camera raw file, with what follows it. Raises ImageError without one."""
    raw_data = tiff.camera_raw_parts(data)
    most, best, start = 0, 0, -1
    for _ in range(_MOST_STARTS):
        start = data.find(_START, start + 1)
        if start < 0:
            break
        pixels = 0 if start in raw_data else _count_pixels(data, start)
        if pixels > most:
            most, best = pixels, start
    if not most:
        raise ImageError("the camera raw file has no JPEG preview", "unsupported")
    return data[best:]


def _count_pixels(data: bytes, start: int) -> int:
    """The number of pixels that the JPEG at ``start`` claims; 0 if it is none, or of a kind that is no preview."""
    position = start + 2
    for _ in range(_MOST_SEGMENTS):
        if position + 10 > len(data):
            return 0
        fill, marker, length, precision, height, width, components = struct.unpack_from(">BBHBHHB", data, position)
        if fill == 0xFF and marker in _FRAMES:
            return width * height if precision == 8 and components in (1, 3) else 0
        if fill != 0xFF or marker not in _BEFORE_FRAME or length < 2:
            return 0
        position += 2 + length
    return 0

"""WebP: whether an animation's first frame covers the image. libwebp refuses data that is too short."""

from __future__ import annotations

import struct

from npr_model.imaging.errors import ImageError, check_size

_ANIMATED = 2  # a flag of the chunk VP8X


def read_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) from the first bytes of a file. Raises ImageError."""
    if len(data) < 30:
        raise ImageError("the WebP is truncated")
    name = data[12:16]
    if name == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if name == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def whole(data: bytes, max_pixels: int) -> tuple[bytes]:
    """Return the file as it is. Raises ImageError: it is too large, or its first frame is smaller than the image.

    Pillow takes memory for the whole image before its size can be checked.
    """
    check_size(*read_size(data), max_pixels)
    position, size = 12, None
    while position + 24 <= len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        content = data[position + 8 : position + 24]
        if name == b"VP8X" and content[0] & _ANIMATED:
            size = bytes(6) + content[4:10]
        elif name == b"ANMF":  # left, top, width - 1 and height - 1
            if size is not None and content[:12] != size:
                reason = "the WebP's first frame does not cover the image, and the rest has no pixels"
                raise ImageError(reason, "unsupported")
            break
        position += 8 + length + length % 2
    return (data,)

"""WebP: whether an animation's first frame covers the image. libwebp refuses data that is too short."""

from __future__ import annotations

import struct

from npr_model.imaging.errors import ImageError

_ANIMATED = 2  # a flag of the chunk VP8X


def whole(data: bytes, max_pixels: int) -> tuple[bytes]:
    """Return the file as it is. Raises ImageError if the first frame is smaller than the image."""
    position, size = 12, None
    while position + 24 <= len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        content = data[position + 8 : position + 24]
        if name == b"VP8X" and content[0] & _ANIMATED:
            size = bytes(6) + content[4:10]
        elif name == b"ANMF":  # left, top, width - 1 and height - 1
            if size is not None and content[:12] != size:
                raise ImageError(
                    "the WebP's first frame does not cover the image, and the rest has no pixels", "unsupported"
                )
            break
        position += 8 + length + length % 2
    return (data,)

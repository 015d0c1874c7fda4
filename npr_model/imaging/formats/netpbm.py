"""PBM, PGM and PPM: whether the last number is whole. Pillow refuses data that is too short."""

from __future__ import annotations

from npr_model.imaging.errors import ImageError

_TEXT = (b"P2", b"P3")  # numbers as text; in P1 they have one digit


def whole(data: bytes, max_pixels: int) -> tuple[bytes]:
    """Return the file as it is. Raises ImageError if it ends in a digit: 25 may be what is left of 255."""
    if data[:2] in _TEXT and data[-1:].isdigit():
        raise ImageError("the image may be truncated: no white space follows its last number")
    return (data,)

"""HEIF, such as the HEIC files of phones: decoded by libheif, as stored.

libheif paints tiles grey whose data is missing. So every piece of data that the file lists must be in it. Data that is
there but damaged cannot be told from whole data: HEIF has no checksums.
"""

from __future__ import annotations

import io

import numpy as np
import pillow_heif

from npr_model.errors import reason
from npr_model.imaging import pillow
from npr_model.imaging.errors import ImageError, check_size
from npr_model.imaging.formats import boxes

DECODER = f"pillow-heif {pillow_heif.__version__}"


def read_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) as stored. Raises ImageError."""
    image = _open(data)
    width, height = image.size
    return (height, width) if _quarter_turns(image) % 2 else (width, height)


def decode(data: bytes, max_pixels: int) -> np.ndarray:
    """Return the primary image as (H, W, 3) uint8; 10 and 12 bits keep their high byte.

    Rotation and mirroring, which the file asks a viewer for, are undone: like EXIF orientation, they would move the
    cells. A file that asks to cut off the top or the left (a clean aperture) is refused for the same reason. Raises
    ImageError.
    """
    for item in boxes.items(data):
        if any(offset + length > len(data) for offset, length in item.pieces):
            raise ImageError("the image is truncated: the file lists data that is not in it")
    image = _open(data)
    check_size(*image.size, max_pixels)
    transformations = _transformations(image)  # decoding drops them
    if any(kind == "clap" and any(values[:2]) for kind, *values in transformations):
        raise ImageError("the HEIF file cuts off rows or columns, which would move the cells", "unsupported")
    try:
        with pillow.settings():
            pixels = pillow.rgb_pixels(image.to_pillow(), "HEIF")
    except Exception as error:  # libheif's errors come as several types
        raise ImageError(f"the image is truncated, damaged or not supported ({reason(error)})") from error
    for kind, *values in reversed(transformations):
        if kind == "irot":  # in steps of 90 degrees, against the clock
            pixels = np.rot90(pixels, -(values[0] // 90))
        elif kind == "imir":
            pixels = pixels[:, ::-1] if values[0] else pixels[::-1]
    return np.ascontiguousarray(pixels)


def _open(data: bytes) -> pillow_heif.HeifImage:
    """Open the primary image; nothing is decoded yet."""
    try:
        file = pillow_heif.open_heif(io.BytesIO(data))
        return file[file.primary_index]
    except Exception as error:  # libheif's errors come as several types
        raise ImageError(f"the HEIF file is damaged or of a kind that is not supported ({reason(error)})") from error


def _transformations(image: pillow_heif.HeifImage) -> tuple:
    return tuple(image._c_image.transformations)


def _quarter_turns(image: pillow_heif.HeifImage) -> int:
    return sum(values[0] // 90 for kind, *values in _transformations(image) if kind == "irot")

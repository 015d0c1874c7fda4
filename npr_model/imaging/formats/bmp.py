"""BMP: whether run-length data sets every pixel. Pillow refuses uncompressed data that is too short.

Run-length data may end a row early or skip pixels. Decoders fill them with the first colour of the palette.
"""

from __future__ import annotations

import struct

from npr_model.imaging.errors import ImageError, check_size

_RLE8, _RLE4 = 1, 2
_END_OF_LINE, _END_OF_IMAGE, _SKIP = range(3)


def whole(data: bytes, max_pixels: int) -> tuple[bytes]:
    """Return the file as it is. Raises ImageError: the image is too large, truncated, or leaves pixels out."""
    try:
        (start,), (header_size,) = struct.unpack_from("<I", data, 10), struct.unpack_from("<I", data, 14)
        if header_size >= 40:
            width, height, _, compression, length = struct.unpack_from("<iiIII", data, 18)
            check_size(width, abs(height), max_pixels)
            if compression in (_RLE8, _RLE4):
                if start + length > len(data):
                    raise ImageError("the BMP is truncated")
                _check_runs(data, start, width, abs(height), half_bytes=compression == _RLE4)
    except (struct.error, IndexError) as error:
        raise ImageError("the BMP is truncated") from error
    return (data,)


def _check_runs(data: bytes, position: int, width: int, height: int, *, half_bytes: bool) -> None:
    column, row = 0, 0
    while row < height:
        count, value = data[position], data[position + 1]
        position += 2
        if count:  # a run of one colour
            column += count
        elif value == _END_OF_LINE:
            if column != width:
                break
            column, row = 0, row + 1
        elif value in (_END_OF_IMAGE, _SKIP):
            row += column == width
            break
        else:  # single colours, padded to 16 bits
            column += value
            position += 2 * ((value + (3 if half_bytes else 1)) // (4 if half_bytes else 2))
        if column > width or position > len(data):
            break
    if row < height:
        raise ImageError("the BMP is truncated or damaged: its run-length data does not set every pixel")

"""GIF: as many pixels in the first frame as its size claims.

Pillow reads on behind the end of short data, into the next frame, and takes it for pixels.
"""

from __future__ import annotations

import struct

import numpy as np

from npr_model.imaging.errors import ImageError, check_size

_IMAGE, _EXTENSION, _TRAILER = b",", b"!", b";"
_TABLE = 4096  # most entries of the code table
_CODES = 4096  # codes that are unpacked at once


def whole(data: bytes, max_pixels: int) -> tuple[bytes]:
    """Return the file up to the end of its first frame.

    Raises ImageError: the image is too large, truncated or damaged, or its first frame does not cover it.
    """
    try:
        width, height, flags = struct.unpack_from("<HHB", data, 6)
        position = 13 + _palette_length(flags)
        while (kind := data[position : position + 1]) == _EXTENSION:
            _, position = _blocks(data, position + 2)
        if kind != _IMAGE:
            raise ImageError("the GIF has no image" if kind == _TRAILER else "the GIF is truncated or damaged")
        left, top, across, down, flags = struct.unpack_from("<HHHHB", data, position + 1)
        width, height = max(width, left + across), max(height, top + down)  # as Pillow does
        check_size(width, height, max_pixels)
        position += 10 + _palette_length(flags)
        code_size = data[position]
        codes, end = _blocks(data, position + 1)
    except (struct.error, IndexError) as error:
        raise ImageError("the GIF is truncated") from error
    if (left, top, across, down) != (0, 0, width, height):
        raise ImageError("the GIF's first frame does not cover the image, and the rest has no pixels", "unsupported")
    count = _count_pixels(codes, code_size, width * height)
    if count != width * height:
        raise ImageError(f"the GIF is damaged: its first frame has {count} of {width * height} pixels")
    return (data[:end] + _TRAILER,)


def _palette_length(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _blocks(data: bytes, position: int) -> tuple[bytes, int]:
    """Return the contents of a chain of blocks, and the position behind its end mark."""
    parts = []
    while length := data[position]:
        if position + 1 + length >= len(data):
            raise IndexError
        parts.append(data[position + 1 : position + 1 + length])
        position += 1 + length
    return b"".join(parts), position + 1


def _count_pixels(stream: bytes, code_size: int, most: int) -> int:
    """Return how many pixels an LZW stream holds; the count stops soon after ``most``. Raises ImageError.

    Only the lengths of the table's strings are kept: each is one longer than the string of the code before it.
    """
    if not 1 <= code_size <= 8:
        raise ImageError("the GIF is damaged: its code size is not 1 to 8")
    clear = 1 << code_size
    highest = np.minimum(np.arange(_TABLE + _CODES) + clear + 1, _TABLE - 1)  # code that may follow n others
    highest[0] = clear
    widths = np.frexp(highest.astype(np.float64))[1]
    data = np.frombuffer(stream + bytes(3), np.uint8).astype(np.uint32)
    position, total = 0, 0  # position: of a bit
    while total <= most:  # from one clear code to the next
        lengths = [1] * clear + [0, 0]
        append, read, special = lengths.append, 0, None
        while special is None and total <= most:
            width = widths[min(read, _TABLE) :][:_CODES]
            ends = position + np.cumsum(width)
            width = width[ends <= 8 * len(stream)]
            if not len(width):
                return total
            starts = ends[: len(width)] - width
            byte, shift = starts >> 3, (starts & 7).astype(np.uint32)
            window = data[byte] | data[byte + 1] << 8 | data[byte + 2] << 16
            codes = (window >> shift & (1 << width) - 1).tolist()
            count = len(codes)
            for mark in (clear, clear + 1):
                if mark in codes[:count]:
                    special, count = mark, codes.index(mark)
            try:
                for code in codes[:count]:
                    append(lengths[code] + 1)
            except IndexError as error:
                raise ImageError("the GIF is damaged: its data has an impossible code") from error
            total += sum(lengths[len(lengths) - count :]) - count
            position = int(ends[count if special is not None else count - 1])
            read += count
        if special == clear + 1:
            break
    return total

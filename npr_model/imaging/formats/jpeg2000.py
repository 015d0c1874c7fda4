"""JPEG 2000: all tiles, with all of their packets.

OpenJPEG leaves missing tiles black. Where a tile's data ends between two packets, it takes the rest for empty. So the
file is decoded a second time, with bytes added to each tile: they must not change a pixel.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from npr_model.imaging.errors import ImageError, check_size

_START, _SIZE, _TILE_LENGTHS, _TILE, _END = b"\xff\x4f", b"\xff\x51", b"\xff\x55", b"\xff\x90", b"\xff\xd9"
_ADDED = b"\xff" * 64  # as a packet, it asks for more data than there is


class _Part(NamedTuple):
    """One part of a tile: the tile's number, this part's, how many there are (0: not told), and its bytes."""

    tile: int
    number: int
    count: int  # type: ignore[assignment]  # hides tuple's method
    data: bytes


def whole(data: bytes, max_pixels: int) -> tuple[bytes, ...]:
    """Return two versions of the file: the second has bytes added to each tile.

    Raises ImageError: the image is too large, truncated or damaged.
    """
    try:
        front, start, claimed = (b"", 0, None) if data.startswith(_START) else _boxes(data)
        width, height, tiles, main, position = _main_header(data, start)
        check_size(width, height, max_pixels)
        parts = _parts(data, position)
    except (struct.error, IndexError) as error:
        raise ImageError("the JPEG 2000 file is truncated") from error
    if claimed not in (None, (width, height)):
        raise ImageError("the JPEG 2000 file is damaged: its headers claim different sizes")
    last = {part.tile: place for place, part in enumerate(parts)}
    if len(last) != tiles or not _are_complete(parts):
        raise ImageError(f"the JPEG 2000 file is truncated: it has {len(last)} of {tiles} tiles, or lacks parts of one")
    plain = [_part(part, b"") for part in parts]
    added = [_part(part, _ADDED * (last[part.tile] == place)) for place, part in enumerate(parts)]
    return tuple(b"".join((front, main, *version, _END)) for version in (plain, added))


def _are_complete(parts: list[_Part]) -> bool:
    """Whether the parts of each tile are there, in order and as many as one of them tells."""
    counts: dict[int, int] = {}
    for part in parts:
        if part.number != counts.get(part.tile, 0):
            return False
        counts[part.tile] = part.number + 1
    return all(part.count in (0, counts[part.tile]) for part in parts)


def _boxes(data: bytes) -> tuple[bytes, int, tuple[int, int]]:
    """Return what precedes the code stream of a JP2 file, where it begins, and the (width, height) of its header.

    The box of the code stream gets the length 0: it reaches to the end of the file.
    """
    position, size = 0, None
    while True:
        length, name = struct.unpack_from(">I4s", data, position)
        content = position + 8
        if length == 1:
            (length,), content = struct.unpack_from(">Q", data, position + 8), position + 16
        if name == b"jp2c" and size is not None:
            return data[:position] + bytes(4) + name, content, size
        if name == b"jp2h":  # the first box in it is the image header
            height, width = struct.unpack_from(">II", data, content + 8)
            size = width, height
        if length < content - position:
            raise ImageError("the JPEG 2000 file is damaged")
        position += length


def _main_header(data: bytes, start: int) -> tuple[int, int, int, bytes, int]:
    """Return width, height, number of tiles, the main header without tile lengths, and where the first tile begins."""
    if data[start : start + 4] != _START + _SIZE:
        raise ImageError("the JPEG 2000 file is damaged: its code stream has no header")
    right, bottom, left, top, across, down, tiles_left, tiles_top = struct.unpack_from(">8I", data, start + 8)
    if not across or not down:
        raise ImageError("the JPEG 2000 file is damaged: its tiles have no size")
    tiles = -(-(right - tiles_left) // across) * -(-(bottom - tiles_top) // down)
    parts, position = [_START], start + 2
    while (marker := data[position : position + 2]) != _TILE:
        (length,) = struct.unpack_from(">H", data, position + 2)
        if length < 2:
            raise ImageError("the JPEG 2000 file is damaged")
        if marker != _TILE_LENGTHS:  # a second list of the tiles' lengths
            parts.append(data[position : position + 2 + length])
        position += 2 + length
    return right - left, bottom - top, tiles, b"".join(parts), position


def _parts(data: bytes, position: int) -> list[_Part]:
    parts = []
    while data[position : position + 2] == _TILE:
        tile, length, number, count = struct.unpack_from(">HIBB", data, position + 4)
        if not length:  # up to the end marker, or of the file
            length = len(data) - position - (len(_END) if data.endswith(_END) else 0)
        if length < 14 or position + length > len(data):
            raise ImageError("the JPEG 2000 file is truncated in a tile")
        parts.append(_Part(tile, number, count, data[position : position + length]))
        position += length
        if parts[-1].data.endswith(_END):  # no data contains it: so much is missing
            raise ImageError("the JPEG 2000 file is truncated in a tile")
    if data[position : position + 2] not in (_END, _END[:1], b""):
        raise ImageError("the JPEG 2000 file is damaged: something else stands where a tile should")
    return parts


def _part(part: _Part, added: bytes) -> bytes:
    return part.data[:6] + struct.pack(">I", len(part.data) + len(added)) + part.data[10:] + added

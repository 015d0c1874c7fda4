"""Files in boxes (ISO 14496-12), as HEIF and AVIF are: the boxes, and the items that the box "meta" lists."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

MOST = 100_000  # boxes, items and pieces that are looked at: more than any camera writes


class Item(NamedTuple):
    """An item of an image file: its type, such as b"Exif", and the (offset, length) of its pieces in the file."""

    kind: bytes
    pieces: tuple[tuple[int, int], ...]


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, range]]:
    """Yield the type of each box in data[start:end], and the place of its content."""
    position, end = start, len(data) if end is None else end
    for _ in range(MOST):
        if position + 8 > end:
            return
        length, name = struct.unpack_from(">I4s", data, position)
        header = 8
        if length == 1 and position + 16 <= end:
            length, header = struct.unpack_from(">Q", data, position + 8)[0], 16
        if length == 0:
            length = end - position
        if length < header:
            return
        yield name, range(position + header, min(position + length, end))
        position += length


def items(data: bytes) -> list[Item]:
    """Return the items of a file, as far as its box "meta" can be read.

    Items in the box "idat" or in other items have no pieces.
    """
    for name, meta in boxes(data):
        if name == b"meta":
            kinds: dict[int, bytes] = {}
            places: dict[int, tuple[tuple[int, int], ...]] = {}
            for inner, place in boxes(data, meta.start + 4, meta.stop):
                if inner == b"iinf" and place:
                    kinds = _kinds(data, place)
                elif inner == b"iloc" and place:
                    places = _places(data[place.start : place.stop])
            return [Item(kinds.get(number, b""), pieces) for number, pieces in places.items()]
    return []


def _kinds(data: bytes, content: range) -> dict[int, bytes]:
    """Types of the items, by number, from the entries ("infe") of the box "iinf"."""
    kinds = {}
    for name, entry in boxes(data, content.start + (8 if data[content.start] else 6), content.stop):
        if name == b"infe" and len(entry) >= 12:
            # Version 2 has numbers of two bytes, version 3 of four.
            layout = {2: ">HH4s", 3: ">IH4s"}.get(data[entry.start])
            if layout and len(entry) >= 4 + struct.calcsize(layout):
                number, _, kind = struct.unpack_from(layout, data, entry.start + 4)
                kinds[number] = kind
    return kinds


def _places(box: bytes) -> dict[int, tuple[tuple[int, int], ...]]:
    """Pieces of the items, by number, from the content of the box "iloc"; those before the first damage.

    At most MOST pieces are read: they can take no bytes in the file.
    """
    position, places = 0, {}

    def number(size: int) -> int:
        nonlocal position
        if position + size > len(box):
            raise EOFError
        position += size
        return int.from_bytes(box[position - size : position], "big")

    try:
        version = number(1)
        number(3)
        sizes = number(2)
        offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
        long, left = 4 if version == 2 else 2, MOST
        for _ in range(min(number(long), MOST)):
            item, method = number(long), number(2) & 15 if version else 0
            number(2)  # the file that holds the data: always this one
            base, count = number(base_size), number(2)
            left -= count
            if left < 0:
                break
            pieces = []
            for _ in range(count):
                number(index_size if version else 0)
                offset, length = number(offset_size), number(length_size)
                pieces.append((base + offset, length))
            places[item] = tuple(pieces) if method == 0 else ()
    except EOFError:
        pass
    return places

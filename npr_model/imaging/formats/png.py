"""PNG: checksums, and as many rows as the header claims.

The file's data is inflated here and handed to Pillow uncompressed. So its length and checksum are known, and Pillow,
which undoes the filters, need not inflate it a second time. Text, colour profiles and other ancillary chunks are
skipped.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from npr_model.imaging.errors import ImageError, check_size
from npr_model.imaging.formats.signatures import unsupported

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # of Adam7
_PALETTE = 3
_SLICE = 2**16  # compressed bytes that are inflated at once
_BLOCK = 2**16 - 1  # most bytes of an uncompressed block


class _Header(NamedTuple):
    width: int
    height: int
    depth: int
    colour_type: int
    compression: int
    filtering: int
    interlacing: int


def read_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) from the first bytes of a file. Raises ImageError."""
    header = _read_header(next(_chunks(data), (b"", b""))[1])
    return header.width, header.height


def whole(data: bytes, max_pixels: int) -> tuple[bytes]:
    """Return the file with its data uncompressed and without ancillary chunks.

    Raises ImageError: the image is too large, or damaged. Its data must end exactly after the last row.
    """
    header, palette = None, b""
    parts: list[bytes | memoryview] = []
    for name, content in _chunks(data):
        if parts and name != b"IDAT":  # what follows the pixels is not read
            break
        if name == b"IHDR" and header is None:
            header = _read_header(content)
            check_size(header.width, header.height, max_pixels)
        elif name == b"PLTE":
            palette = bytes(content)
        elif name == b"IDAT":
            parts.append(content)
        elif not name[0] & 0x20:
            raise unsupported(f"PNG with the critical chunk {name.decode('latin-1')!r}")
    if header is None:
        raise ImageError("the PNG's header is missing")
    if header.colour_type == _PALETTE and (not palette or len(palette) % 3):
        raise ImageError("the PNG's palette is missing or damaged")
    file = io.BytesIO()
    file.write(_SIGNATURE)
    _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", *header))
    if header.colour_type == _PALETTE:
        _write_chunk(file, b"PLTE", palette)
    _write_uncompressed(file, b"".join(parts), _length(header))
    _write_chunk(file, b"IEND", b"")
    return (file.getvalue(),)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes | memoryview]]:
    """Yield names and contents; critical chunks with checked checksums, ancillary ones with empty contents."""
    if not data.startswith(_SIGNATURE):
        raise ImageError("the PNG's first bytes are damaged, as by a transfer that converts line ends")
    position = len(_SIGNATURE)
    view = memoryview(data)
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        critical = not name[0] & 0x20
        if critical:
            if end > len(data):
                raise ImageError("the PNG is truncated")
            if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
                raise ImageError("the PNG is damaged: a chunk's checksum is wrong")
        if name == b"IEND":
            return
        yield name, view[position + 8 : end - 4] if critical else b""
        position = end


def _read_header(content: bytes | memoryview) -> _Header:
    if len(content) != 13:
        raise ImageError("the PNG's header is missing or damaged")
    header = _Header(*struct.unpack(">IIBBBBB", content))
    known = header.depth in _DEPTHS.get(header.colour_type, ()) and header.interlacing in (0, 1)
    if not known or header.compression or header.filtering:
        raise ImageError("the PNG's header is damaged: it claims a kind of data that does not exist")
    return header


def _length(header: _Header) -> int:
    """Length of the inflated data: rows of all passes, each with the number of its filter."""
    bits = header.depth * _CHANNELS[header.colour_type]
    total = 0
    for left, top, across, down in _PASSES if header.interlacing else ((0, 0, 1, 1),):
        columns, rows = -(-(header.width - left) // across), -(-(header.height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _write_uncompressed(file: BinaryIO, stream: bytes, length: int) -> None:
    """Write a zlib stream as a data chunk without compression.

    Raises ImageError if it does not inflate to ``length`` bytes, or to others than its checksum says.
    """
    inflater, view = zlib.decompressobj(), memoryview(stream)
    start, total, checksum, crc = file.tell(), 0, 1, 0

    def write(content: bytes) -> None:
        nonlocal crc
        file.write(content)
        crc = zlib.crc32(content, crc)

    file.write(bytes(4))  # the chunk's length, known in the end
    write(b"IDAT\x78\x01")
    try:
        for place in range(0, len(stream), _SLICE):
            inflated = inflater.decompress(view[place : place + _SLICE])
            total += len(inflated)
            if total > length:
                raise ImageError(f"the PNG is damaged: it has more data than the {length} bytes that its header claims")
            checksum = zlib.adler32(inflated, checksum)
            for first in range(0, len(inflated), _BLOCK):
                block = inflated[first : first + _BLOCK]
                write(struct.pack("<BHH", 0, len(block), len(block) ^ 0xFFFF))
                write(block)
            if inflater.eof:
                break
    except zlib.error as error:
        raise ImageError(f"the PNG is damaged ({error})") from error
    if total < length:
        raise ImageError(f"the PNG is truncated: it has {total} of the {length} bytes that its header claims")
    write(b"\1\0\0\xff\xff" + checksum.to_bytes(4, "big"))
    end = file.tell()
    file.seek(start)
    file.write(struct.pack(">I", end - start - 8))
    file.seek(end)
    file.write(struct.pack(">I", crc))


def _write_chunk(file: BinaryIO, name: bytes, content: bytes) -> None:
    file.write(struct.pack(">I", len(content)) + name + content)
    file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(name))))

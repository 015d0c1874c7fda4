"""TIFF: every strip or tile of the first page, with the length that its size asks for.

Pillow turns the image by its orientation tag, and fills missing strips with black; libtiff hides what libjpeg makes up.
Only the tags that decide the stored pixels are handed on.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
import zlib
from collections.abc import Iterator

from npr_model.imaging.errors import ImageError, check_size
from npr_model.imaging.formats import jpeg
from npr_model.imaging.formats.signatures import CameraRawError, unsupported

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _MAKE, _SAMPLES, _PLANAR = 256, 257, 258, 259, 262, 271, 277, 284
_STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_LENGTHS = 273, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_LENGTHS = 322, 323, 324, 325
_SUBDIRECTORIES, _JPEG_TABLES, _DNG_VERSION = 330, 347, 50706
_FILL_ORDER, _PREDICTOR, _COLOUR_MAP, _INK_SET, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 266, 317, 320, 332, 338, 339
_YCBCR = (529, 530, 531, 532)
_DECIDE_PIXELS = (
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP),
    *(_STRIP_LENGTHS, _PLANAR, _PREDICTOR, _COLOUR_MAP, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_LENGTHS),
    *(_INK_SET, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _JPEG_TABLES, *_YCBCR),
)

_UNCOMPRESSED, _LZW, _JPEG, _PACKBITS, _LZMA, _ZSTD, _WEBP = 1, 5, 7, 32773, 34925, 50000, 50001
_DEFLATE = (8, 32946)
_LENGTH_CHECKED_BY_LIBTIFF = (_LZW, _PACKBITS, _LZMA, _ZSTD, _WEBP)
_OTHER_COMPRESSION = {2: "CCITT fax", 3: "CCITT fax", 4: "CCITT fax", 6: "old-style JPEG"}

_MOST_SAMPLES = 16  # per pixel
_MOST_SUBDIRECTORIES = 16
_HEADER = 8  # bytes, at least
_CAMERA_RAW = (32803, 34892)  # photometric interpretation: a colour filter array, and linear raw
_MAKERS = {
    b"CANON": "Canon raw",
    b"HASSELBLAD": "Hasselblad 3FR",
    b"KODAK": "Kodak DCR",
    b"EASTMAN": "Kodak DCR",
    b"LEAF": "Leaf MOS",
    b"MAMIYA": "Mamiya MEF",
    b"NIKON": "Nikon NEF",
    b"PENTAX": "Pentax PEF",
    b"PHASE ONE": "Phase One IIQ",
    b"RICOH": "Pentax PEF",
    b"SAMSUNG": "Samsung SRW",
    b"SEIKO EPSON": "Epson ERF",
    b"SONY": "Sony ARW",
}
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}


class _Directory:
    """The directory of a page: its tags, each with one entry."""

    def __init__(self, data: bytes | mmap.mmap, offset: int | None = None) -> None:
        """Read the directory at ``offset``; by default that of the first page. Raises ImageError."""
        self.data = data
        self.order = "<" if data[:2] == b"II" else ">"
        self.big = 43 in data[2:4]
        self.offset_format, self.entry_size = ("Q", 20) if self.big else ("I", 12)
        if offset is None:
            offset = self._unpack(self.offset_format, 8 if self.big else 4)[0]
        count = self._unpack("Q" if self.big else "H", offset)[0]
        start = offset + (8 if self.big else 2)
        if start + count * self.entry_size > len(data):
            raise ImageError("the TIFF is truncated: its directory is not whole")
        self.entries: dict[int, bytes] = {}
        for place in range(start, start + count * self.entry_size, self.entry_size):
            self.entries.setdefault(self._unpack("H", place)[0], data[place : place + self.entry_size])

    def _unpack(self, kind: str, offset: int) -> tuple[int, ...]:
        if offset + struct.calcsize(kind) > len(self.data):
            raise ImageError("the TIFF is truncated")
        return struct.unpack_from(self.order + kind, self.data, offset)

    def content(self, tag: int) -> bytes:
        """The bytes of a tag's value; empty without the tag. Raises ImageError."""
        if tag not in self.entries:
            return b""
        _, kind, count = struct.unpack_from(f"{self.order}HH{self.offset_format}", self.entries[tag])
        length = _TYPE_SIZES.get(kind, 0) * count
        value = self.entries[tag][12 if self.big else 8 :]
        if length <= len(value):
            return value[:length]
        (offset,) = struct.unpack(self.order + self.offset_format, value)
        if offset + length > len(self.data):
            raise ImageError("the TIFF is truncated: a tag's value is missing")
        return self.data[offset : offset + length]

    def numbers(self, tag: int, *default: int) -> tuple[int, ...]:
        """The integers of a tag; ``default`` without the tag. Raises ImageError."""
        content = self.content(tag)
        if not content:
            return default
        (kind,) = struct.unpack_from(self.order + "H", self.entries[tag], 2)
        if kind not in _INTEGERS:
            raise ImageError(f"the TIFF is damaged: its tag {tag} is no integer")
        letter = _INTEGERS[kind]
        return struct.unpack(f"{self.order}{len(content) // struct.calcsize(letter)}{letter}", content)

    def number(self, tag: int, default: int) -> int:
        """The first integer of a tag. Raises ImageError."""
        return self.numbers(tag, default)[0]

    def only(self, tags: tuple[int, ...]) -> bytes:
        """The file with ``tags`` alone and without further pages. Raises ImageError if a value is not in the file."""
        known = sorted(set(tags) & set(self.entries))
        for tag in known:
            self.content(tag)
        kept = [self.entries[tag] for tag in known]
        padding = bytes(len(self.data) % 2)
        offset = struct.pack(self.order + self.offset_format, len(self.data) + len(padding))
        start = 8 if self.big else 4
        count = struct.pack(self.order + ("Q" if self.big else "H"), len(kept))
        end = bytes(struct.calcsize(self.offset_format))
        return b"".join((self.data[:start], offset, self.data[start + len(offset) :], padding, count, *kept, end))


def read_size(data: bytes | mmap.mmap) -> tuple[int, int]:
    """Return (width, height) of the stored pixels. Raises ImageError, also for camera raw files."""
    page = _Directory(data)
    _check_no_camera_raw(page)
    return page.number(_WIDTH, 0), page.number(_HEIGHT, 0)


def whole(data: bytes, max_pixels: int) -> tuple[bytes]:
    """Return the file with only the tags that decide the first page's pixels.

    Raises ImageError: the image is too large, truncated or damaged, its compression is not supported, or it is a camera
    raw file.
    """
    page = _Directory(data)
    _check_no_camera_raw(page)
    width, height = page.number(_WIDTH, 0), page.number(_HEIGHT, 0)
    check_size(width, height, max_pixels)
    compression = page.number(_COMPRESSION, _UNCOMPRESSED)
    if compression not in (_UNCOMPRESSED, _JPEG, *_DEFLATE, *_LENGTH_CHECKED_BY_LIBTIFF):
        name = _OTHER_COMPRESSION.get(compression, f"number {compression}")
        raise unsupported(f"TIFF with compression {name}")
    for part in _parts(page, width, height, compression):
        if compression == _JPEG:
            _check_jpeg(page, *part, max_pixels)
        else:
            _check_length(compression, *part)
    return (page.only(_DECIDE_PIXELS),)


def _check_no_camera_raw(page: _Directory) -> None:
    """Raise ImageError for camera raw files, whose first page is often a thumbnail."""
    if _DNG_VERSION in page.entries:
        raise CameraRawError("DNG")
    if any(_is_raw_data(part) for part in _with_subdirectories(page)):
        make = page.content(_MAKE).upper()
        raise CameraRawError(next((name for key, name in _MAKERS.items() if key in make), "raw of an unknown maker"))


def camera_raw_parts(data: bytes) -> set[int]:
    """Where the strips and tiles of raw data begin in a camera raw file; none if it is no TIFF, or damaged."""
    found: set[int] = set()
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        with contextlib.suppress(ImageError):
            for part in filter(_is_raw_data, _with_subdirectories(_Directory(data))):
                found.update(part.numbers(_STRIP_OFFSETS), part.numbers(_TILE_OFFSETS))
    return found


def _with_subdirectories(page: _Directory) -> list[_Directory]:
    pages = [page]
    for offset in page.numbers(_SUBDIRECTORIES)[:_MOST_SUBDIRECTORIES]:
        with contextlib.suppress(ImageError):
            pages.append(_Directory(page.data, offset))
    return pages


def _is_raw_data(page: _Directory) -> bool:
    return page.number(_PHOTOMETRIC, 0) in _CAMERA_RAW


def _parts(page: _Directory, width: int, height: int, compression: int) -> Iterator[tuple[bytes, int, int, int, int]]:
    """Yield the data of each strip or tile, its width, its rows, the most rows it may have, and the bytes of a row."""
    bits = page.numbers(_BITS, 1)
    samples = page.number(_SAMPLES, 1)
    if not 1 <= samples <= _MOST_SAMPLES:
        raise unsupported(f"TIFF with {samples} samples per pixel")
    bits = (bits * samples)[:samples] if len(bits) == 1 else bits[:samples]
    planes = [(depth,) for depth in bits] if page.number(_PLANAR, 1) == 2 else [bits]
    if _TILE_OFFSETS in page.entries:
        offsets, lengths = page.numbers(_TILE_OFFSETS), page.numbers(_TILE_LENGTHS)
        across, down = page.number(_TILE_WIDTH, 0), page.number(_TILE_HEIGHT, 0)
        if not across or not down:
            raise ImageError("the TIFF is damaged: its tiles have no size")
        columns, padded = -(-width // across), True
    else:
        offsets, lengths = page.numbers(_STRIP_OFFSETS), page.numbers(_STRIP_LENGTHS)
        across, down = width, min(page.number(_ROWS_PER_STRIP, height), height)
        if not down:
            raise ImageError("the TIFF is damaged: its strips have no rows")
        columns, padded = 1, False
    number = len(planes) * columns * -(-height // down)
    if len(offsets) != number or len(lengths) not in ((0, number) if compression == _UNCOMPRESSED else (number,)):
        raise ImageError(f"the TIFF is damaged: it has {min(len(offsets), len(lengths))} of {number} strips or tiles")
    rows = [down if padded else min(down, height - top) for top in range(0, height, down)]
    expected = [(count, (across * sum(depths) + 7) // 8) for depths in planes for count in rows for _ in range(columns)]
    lengths = lengths or tuple(count * length for count, length in expected)
    for offset, length, (count, row) in zip(offsets, lengths, expected, strict=True):
        if not length or not _HEADER <= offset <= len(page.data) - length:
            raise ImageError("the TIFF is truncated: the data of a strip or tile is missing")
        yield page.data[offset : offset + length], across, count, down, row


def _check_length(compression: int, data: bytes, width: int, rows: int, most_rows: int, row: int) -> None:
    """Check that a strip or tile holds its rows and less than one more. The last strip may be as long as the others."""
    if compression in _LENGTH_CHECKED_BY_LIBTIFF:
        return
    length = len(data)
    if compression in _DEFLATE:
        inflater = zlib.decompressobj()
        try:
            length = len(inflater.decompress(data, (most_rows + 1) * row))
        except zlib.error as error:
            raise ImageError(f"the TIFF is damaged ({error})") from error
        if not inflater.eof and not inflater.unconsumed_tail:
            raise ImageError("the TIFF is truncated: its compressed data ends early")
    if not rows * row <= length < (most_rows + 1) * row:
        raise ImageError("the TIFF is truncated or damaged: the data of a strip or tile does not have its length")


def _check_jpeg(
    page: _Directory, data: bytes, width: int, rows: int, most_rows: int, row: int, max_pixels: int
) -> None:
    """Check a strip or tile that is a JPEG, whose tables may be stored apart."""
    tables = page.content(_JPEG_TABLES)
    stream = tables.removesuffix(b"\xff\xd9") + data[2:] if tables else data
    header = jpeg.read_header(stream)
    if header.width < width or not rows <= header.height <= most_rows:
        raise ImageError("the TIFF is damaged: the data of a strip or tile does not have its size")
    decoded = jpeg.decode(stream, header, max_pixels)
    if isinstance(decoded, tuple) and len(decoded) > 1:  # only Pillow can decode it
        raise unsupported("TIFF with unusual chroma sampling")

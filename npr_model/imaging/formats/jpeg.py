"""JPEG: the header, and whether every pixel's data is in the file.

What counts is what a decoder would have to make up, not the end marker. libjpeg warns where data is missing or damaged,
and simplejpeg turns its warnings into errors. Three gaps are left:

- Missing scans. A progressive JPEG that ends after its first scans decodes to a blurred image without a warning. So
  the scans are counted (:func:`_check_scans`).
- Oddities of the header, which cause warnings though no pixel depends on them. They are left out before a second try
  (:func:`_plain`).
- Chroma sampling that simplejpeg cannot read. Pillow decodes such files, but hides the warnings: the decoded pixels
  must not depend on the bytes that follow the data (:func:`_padded`).
"""

from __future__ import annotations

import functools
import operator
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg

from npr_model.errors import reason
from npr_model.imaging.errors import ImageError, check_size
from npr_model.imaging.formats.signatures import unsupported

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_SOS, _DQT, _DHT, _DRI, _APP0, _APP2, _APP14, _COMMENT = 0xDA, 0xDB, 0xC4, 0xDD, 0xE0, 0xE2, 0xEE, 0xFE
_END = _EOI[1]
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), (0xC2,)
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {_DHT, 0xC8, 0xCC}  # start of frame, by kind of compression
_HOLE = bytes(16)
CACHED = 2048  # bytes at most of the segments of a header that is kept; four tables, a frame and a scan have 600
_SEGMENT = struct.Struct(">BBH")  # 0xFF, marker, length
_NO_MARKERS = frozenset((0x00, *range(0xD0, 0xD8), 0xFF))  # stuffed bytes, restart markers, fill bytes
_CHROMA: dict[tuple[float, float], str] = {
    (1, 1): "4:4:4",
    (1, 2): "4:4:0",
    (1, 4): "4:4:1",
    (2, 1): "4:2:2",
    (2, 2): "4:2:0",
    (4, 1): "4:1:1",
    (4, 2): "4:1:0",
}
_ZIGZAG = (
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
)  # fmt: skip
_row_by_row = operator.itemgetter(*(_ZIGZAG.index(place) for place in range(64)))


class Component(NamedTuple):
    """A colour component: its identifier, sampling factors and number of its quantisation table."""

    identifier: int
    horizontal: int
    vertical: int
    table: int


class Header(NamedTuple):
    """Header of a JPEG, up to the first scan.

    Attributes:
        width, height: In pixels.
        precision: Bits per sample.
        frame: Code of the start-of-frame marker, which tells the kind of compression.
        components: Colour components.
        tables: Contents of the segments with quantisation tables.
        jfif: Whether there is a JFIF segment, long enough to count.
        adobe: Colour transform of the Adobe segment; None without one that is long enough.
        scan: Identifiers of the components in the first scan.
        lists_others: Whether there is a segment that lists further JPEGs behind this one, as in MPO files.
    """

    width: int
    height: int
    precision: int
    frame: int
    components: tuple[Component, ...]
    tables: tuple[bytes, ...]
    jfif: bool
    adobe: int | None
    scan: bytes
    lists_others: bool

    @property
    def quantization(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tables of luma and chroma; for a grey image twice the same."""
        tables = dict(table for content in self.tables for table in _tables(content))
        flat = (1,) * 64  # for a table that is missing: such a file cannot be decoded
        first, second = (tables.get(part.table, flat) for part in (self.components[0], self.components[:2][-1]))
        return first, second

    @property
    def subsampling(self) -> str | None:
        """Chroma sampling such as "4:2:0"; None where there is no chroma: grey, RGB and CMYK.

        Sampling without a name is written with the factors of all components, such as "3x1,1x1,1x1".
        """
        if not self._has_chroma:
            return None
        luma, *chroma = self.components[:3]
        steps = {(luma.horizontal / part.horizontal, luma.vertical / part.vertical) for part in chroma}
        factors = ",".join(f"{part.horizontal}x{part.vertical}" for part in self.components)
        return _CHROMA.get(steps.pop(), factors) if len(steps) == 1 else factors

    @property
    def _has_chroma(self) -> bool:
        """Whether libjpeg takes the components for YCbCr or YCCK."""
        if len(self.components) == 4:
            return self.adobe not in (None, 0)
        if len(self.components) != 3 or self.jfif:
            return len(self.components) == 3
        if self.adobe is not None:
            return self.adobe != 0
        return bytes(part.identifier for part in self.components) != b"RGB"

    @property
    def in_one_scan(self) -> bool:
        """Whether the first scan has the data of all pixels."""
        return self.frame in _SEQUENTIAL and len(self.scan) == len(self.components)


def decode(data: bytes, header: Header, max_pixels: int) -> np.ndarray | tuple[bytes, ...]:
    """Decode to (H, W, 3) uint8, or return versions of the file for Pillow that must decode to the same pixels.

    simplejpeg decodes grey, YCbCr and RGB with the usual chroma sampling. CMYK and unusual sampling are left to Pillow.
    ``header``: that of ``data``. Raises ImageError: damaged, unsupported or too_large.
    """
    check_size(header.width, header.height, max_pixels)
    _check_supported(header)
    if not header.in_one_scan:
        _check_scans(data, header)
    for_simplejpeg = len(header.components) != 4
    if for_simplejpeg:
        try:
            return simplejpeg.decode_jpeg(data)
        except ValueError:  # a second try tells whether a pixel depends on it
            pass
    cleaned = _plain(data, header)
    try:
        pixels = simplejpeg.decode_jpeg(cleaned, colorspace="RGB" if for_simplejpeg else "CMYK")
    except ValueError as error:
        if _is_readable(cleaned):
            raise ImageError(f"the JPEG is truncated or damaged ({reason(error)})") from error
        return _padded(cleaned, header)
    return pixels if for_simplejpeg else (cleaned,)


def plain(data: bytes) -> bytes:
    """Return a JPEG that can be decoded as one that any decoder takes: see :func:`_plain`. Raises ImageError."""
    return _plain(data, read_header(data))


def _is_readable(data: bytes) -> bool:
    """Whether simplejpeg knows the chroma sampling."""
    try:
        simplejpeg.decode_jpeg_header(data)
    except KeyError:  # it can read the sampling 4:4:1, but has no name for it
        return True
    except ValueError:
        return False
    return True


def read_header(data: bytes) -> Header:
    """Read a header from the first bytes of a file, or from all of it. Raises ImageError."""
    frame, jfif, adobe, lists_others = None, False, None, False
    tables: list[bytes] = []
    for marker, start, end in _segments(data):
        content = data[start:end]
        if marker == _APP0 and content[:5] == b"JFIF\0" and len(content) >= 14:  # shorter ones count for nothing
            jfif = True
        elif marker == _APP14 and content[:5] == b"Adobe" and len(content) >= 12:
            adobe = content[11]
        elif marker == _APP2 and content[:4] == b"MPF\0":
            lists_others = True
        elif marker == _DQT:
            tables.append(content)
        elif marker in _FRAMES:
            frame = marker, content
        elif marker == _SOS and frame:
            parse = _header if sum(map(len, (*tables, frame[1], content))) <= CACHED else _header.__wrapped__
            return parse(*frame, tuple(tables), jfif, adobe, content, lists_others)
    raise ImageError("the JPEG is truncated in its header, or its header is damaged")


@functools.lru_cache(1024)  # a collection has few different headers
def _header(
    frame: int,
    content: bytes,
    tables: tuple[bytes, ...],
    jfif: bool,
    adobe: int | None,
    scan: bytes,
    lists_others: bool,
) -> Header:
    if len(content) < 6 or len(content) != 6 + 3 * content[5]:
        raise ImageError("the JPEG's header is damaged")
    precision, height, width, count = struct.unpack(">BHHB", content[:6])
    components = tuple(
        Component(content[i], content[i + 1] >> 4, content[i + 1] & 15, content[i + 2])
        for i in range(6, 6 + 3 * count, 3)
    )
    if any(not 1 <= part.horizontal <= 4 or not 1 <= part.vertical <= 4 for part in components):
        raise ImageError("the JPEG's header is damaged: its sampling factors are not 1 to 4")
    identifiers = _scan(scan).identifiers
    return Header(width, height, precision, frame, components, tables, jfif, adobe, identifiers, lists_others)


class _Scan(NamedTuple):
    """Header of a scan: its components, first and last coefficient, and how many of their bits are left for later."""

    identifiers: bytes
    first: int
    last: int
    bits_left: int


def _scan(content: bytes) -> _Scan:
    if not content or len(content) != 4 + 2 * content[0]:
        raise ImageError("the JPEG's header is damaged: a scan's header does not have its length")
    return _Scan(content[1:-3:2], content[-3], content[-2], content[-1] & 15)


def _tables(content: bytes) -> Iterator[tuple[int, tuple[int, ...]]]:
    while content:
        number, kind = content[0] & 15, ">64H" if content[0] >> 4 else ">64B"
        length = 1 + struct.calcsize(kind)
        if len(content) < length:
            return
        yield number, _row_by_row(struct.unpack(kind, content[1:length]))
        content = content[length:]


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of each segment's content, scans' headers and the end marker included.

    Stops where the data ends. The entropy-coded data behind a scan's header is passed over.
    """
    position = 2
    while position + 4 <= len(data):
        fill, marker, length = _SEGMENT.unpack_from(data, position)
        end = position + 2 + length
        if fill != 0xFF or marker in _NO_MARKERS:
            position = _next_marker(data, position)
            if position < 0:
                return
        elif marker == _END:
            break
        elif length < 2 or end > len(data):
            return
        else:
            yield marker, position + 4, end
            position = end
    end = _next_marker(data, position)
    if end >= 0 and data[end + 1] == _END:
        yield _END, end + 2, end + 2


def _next_marker(data: bytes, position: int) -> int:
    """Position of the next marker's last 0xFF; -1 if there is none. Restart markers count as data."""
    while (position := data.find(b"\xff", position)) >= 0:
        code = data[position + 1] if position + 1 < len(data) else 0
        if code not in _NO_MARKERS:
            return position
        position += 1 if code == 0xFF else 2
    return -1


def _end_of_scan(data: bytes, position: int) -> int:
    end = _next_marker(data, position)
    return len(data) if end < 0 else end


def _check_supported(header: Header) -> None:
    """Raise ImageError for the kinds of JPEG that cannot be decoded, or whose completeness cannot be proved."""
    if header.frame not in (*_SEQUENTIAL, *_PROGRESSIVE):
        names = {0xC3: "lossless JPEG", 0xF7: "JPEG-LS", 0xC9: "arithmetic-coded JPEG", 0xCA: "arithmetic-coded JPEG"}
        raise unsupported(names.get(header.frame, "hierarchical JPEG"))
    if header.precision != 8:
        raise unsupported(f"{header.precision}-bit JPEG")
    if len(header.components) not in (1, 3, 4):
        raise unsupported(f"JPEG with {len(header.components)} components")


def _check_scans(data: bytes, header: Header) -> None:
    """Raise ImageError unless the scans have every coefficient of every component to its last bit."""
    missing = {part.identifier: [True] * 64 for part in header.components}
    for marker, start, end in _segments(data):
        if marker == _SOS:
            identifiers, first, last, bits_left = _scan(data[start:end])
            if header.frame in _SEQUENTIAL:
                first, last, bits_left = 0, 63, 0
            if not first <= last <= 63:
                raise ImageError("the JPEG is damaged: a scan claims coefficients that do not exist")
            for identifier in identifiers:
                coefficients = missing.setdefault(identifier, [False] * 64)
                coefficients[first : last + 1] = [bits_left > 0] * (last + 1 - first)
    if any(map(any, missing.values())):
        raise ImageError("the JPEG is truncated: its last scans are missing")


def _plain(data: bytes, header: Header) -> bytes:
    """Return the JPEG with only what decides its pixels, closed with an end marker.

    Other segments are left out, those that tell the colour space are written anew, and the fields of sequential scans
    that have one legal value get it. Many zeros at the end of a file without end marker are left out: they are what a
    file system puts in place of data that was never written.
    """
    parts = [_SOI]
    if header.jfif:
        parts.append(_segment(_APP0, b"JFIF\0\1\1\0\0\1\0\1\0\0"))
    if header.adobe is not None:
        transform = min(header.adobe, 1) * (2 if len(header.components) == 4 else 1)  # as libjpeg understands others
        parts.append(_segment(_APP14, b"Adobe\0\x64\0\0\0\0" + bytes([transform])))
    marker = stop = 0
    for marker, start, end in _segments(data):
        if marker in (_DQT, _DHT, _DRI) or marker in _FRAMES:
            parts.append(_segment(marker, data[start:end]))
        elif marker == _SOS:
            content = data[start:end]
            if header.frame in _SEQUENTIAL:
                content = content[:-3] + b"\0\x3f\0"
            stop = _end_of_scan(data, end)
            coded = data[end:stop].rstrip(b"\xff")  # fill bytes, or half of an end marker
            if stop == len(data) and coded.endswith(_HOLE):
                coded = coded.rstrip(b"\0")
            parts += (_segment(marker, content), coded)
        elif not _APP0 <= marker < _APP0 + 16 and marker not in (_COMMENT, _END):
            raise ImageError(f"the JPEG is damaged: it has the unknown marker {marker:#x}")
    if marker != _END and stop < len(data):
        raise ImageError("the JPEG is truncated in a header")
    return b"".join((*parts, _EOI))


def _segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def _padded(data: bytes, header: Header) -> tuple[bytes, ...]:
    """Return versions of a :func:`_plain` JPEG that decode alike only if no pixel depends on what follows the data.

    Bytes are added in front of restart markers, and where a scan ends as many as a unit of blocks can ask for. Raises
    ImageError if restart markers are missing: there a decoder goes on without reading what follows.
    """
    interval, done = 0, 0
    pieces: list[tuple[bytes, int]] = []  # with the number of bytes that are added behind them
    for marker, start, end in _segments(data):
        if marker == _DRI:
            interval = int.from_bytes(data[start:end], "big")
        elif marker == _SOS:
            stop = _end_of_scan(data, end)
            restarts = list(re.finditer(rb"\xff+([\xd0-\xd7])", data[end:stop]))
            expected = _restarts(_scan(data[start:end]), header, interval)
            if [match[1][0] & 7 for match in restarts] != [number % 8 for number in range(expected)]:
                raise ImageError("the JPEG is truncated or damaged: it does not have its restart markers")
            for place, added in (*((end + match.start(), 64) for match in restarts), (stop, 4096)):
                pieces.append((data[done:place], added))
                done = place
    return tuple(
        b"".join((*(piece + added * filling for piece, added in pieces), data[done:]))
        for filling in (b"\x00", b"\xaa", b"\x5b")
    )


def _restarts(scan: _Scan, header: Header, interval: int) -> int:
    """How many restart markers the scan must have."""
    if not interval:
        return 0
    parts = [part for part in header.components if part.identifier in scan.identifiers]
    factors = (parts[0].horizontal, parts[0].vertical) if len(parts) == 1 else (1, 1)  # of single blocks, or units
    most = max(part.horizontal for part in header.components), max(part.vertical for part in header.components)
    across, down = (
        -(-side * factor // (8 * largest))
        for side, factor, largest in zip((header.width, header.height), factors, most, strict=True)
    )
    return -(-across * down // interval) - 1

"""The metadata blocks of an image file, by format. Hostile files cost little: the bytes of all blocks are bounded."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

LONGEST_BLOCK = 2**20  # bytes of a block; the rest of a longer one is not read
MOST_BLOCKS = 1000  # text chunks, segments and boxes that are looked at

_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_APP1, _APP11, _COMMENT, _SOS = 0xE1, 0xEB, 0xFE, 0xDA
_C2PA_UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")


@dataclass
class Metadata:
    """The blocks of one file, empty where there are none.

    Attributes:
        exif: A TIFF structure, from its byte order mark.
        xmp: XML.
        c2pa: JUMBF boxes, the Content Credentials.
        text: PNG text by keyword, and a JPEG's comments by the keyword "comment".
    """

    exif: bytes = b""
    xmp: bytes = b""
    c2pa: bytes = b""
    text: dict[str, str] = field(default_factory=dict)


def read_metadata(data: bytes, format: str) -> Metadata:
    """Return the metadata of an encoded image. ``format``: as Pillow names it. Damaged blocks are left out."""
    reader = {"JPEG": _read_jpeg, "PNG": _read_png, "WEBP": _read_webp, "TIFF": _read_tiff, "AVIF": _read_boxes}.get(
        format
    )
    metadata = Metadata()
    if reader is not None:
        reader(data, metadata)
    return metadata


def _read_jpeg(data: bytes, metadata: Metadata) -> None:
    manifests: dict[bytes, bytes] = {}  # parts of a JUMBF box, by its number
    for marker, content in _segments(data):
        if marker == _APP1 and content.startswith(_EXIF):
            metadata.exif = metadata.exif or content[len(_EXIF) :]
        elif marker == _APP1 and content.startswith(_XMP):
            metadata.xmp = metadata.xmp or content[len(_XMP) :]
        elif marker == _APP11 and content.startswith(b"JP") and len(content) > 16:
            number, part = content[2:4], content[8:]
            # Each part repeats the length and the type of the box.
            joined = manifests.get(number, b"") + (part[8:] if number in manifests else part)
            manifests[number] = joined[:LONGEST_BLOCK]
        elif marker == _COMMENT:
            metadata.text.setdefault("comment", content.decode("utf-8", "replace"))
    metadata.c2pa = next((box for box in manifests.values() if b"c2pa" in box[:64]), b"")


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of a JPEG's segments before its first scan."""
    position = 2
    for _ in range(MOST_BLOCKS):
        while data[position : position + 2] == b"\xff\xff":  # fill bytes
            position += 1
        if position + 4 > len(data) or data[position] != 0xFF:
            return
        marker, length = struct.unpack_from(">BH", data, position + 1)
        if marker == _SOS or length < 2:
            return
        yield marker, data[position + 4 : position + 2 + length]
        position += 2 + length


def _read_png(data: bytes, metadata: Metadata) -> None:
    position = 8
    for _ in range(MOST_BLOCKS):
        if position + 8 > len(data):
            return
        length, name = struct.unpack_from(">I4s", data, position)
        if name in (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"caBX"):
            content = data[position + 8 : position + 8 + min(length, LONGEST_BLOCK)]
            if name == b"eXIf":
                metadata.exif = content
            elif name == b"caBX":
                metadata.c2pa = content
            else:
                keyword, text = _png_text(name, content)
                if keyword == "XML:com.adobe.xmp":
                    metadata.xmp = text
                else:
                    metadata.text.setdefault(keyword, text.decode("utf-8", "replace"))
        position += 12 + length


def _png_text(name: bytes, content: bytes) -> tuple[str, bytes]:
    """Return keyword and text of a text chunk; the text is Latin-1 in tEXt and zTXt, and UTF-8 in iTXt."""
    keyword, _, rest = content.partition(b"\0")
    is_compressed = name == b"zTXt"
    if name == b"iTXt":
        is_compressed = rest[:1] == b"\1"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # language and translated keyword
    elif name == b"zTXt":
        rest = rest[1:]
    if is_compressed:
        try:
            rest = zlib.decompressobj().decompress(rest, LONGEST_BLOCK)
        except zlib.error:
            rest = b""
    if name != b"iTXt":
        try:  # many writers store UTF-8 here, against the standard
            rest.decode()
        except UnicodeError:
            rest = rest.decode("latin-1").encode()
    return keyword.decode("latin-1"), rest


def _read_webp(data: bytes, metadata: Metadata) -> None:
    position = 12
    for _ in range(MOST_BLOCKS):
        if position + 8 > len(data):
            return
        name, length = struct.unpack_from("<4sI", data, position)
        if name in (b"EXIF", b"XMP ", b"C2PA"):
            content = data[position + 8 : position + 8 + min(length, LONGEST_BLOCK)]
            if name == b"EXIF":
                metadata.exif = content.removeprefix(_EXIF)
            elif name == b"XMP ":
                metadata.xmp = content
            else:
                metadata.c2pa = content
        position += 8 + length + length % 2


def _read_tiff(data: bytes, metadata: Metadata) -> None:
    metadata.exif = data


def _read_boxes(data: bytes, metadata: Metadata) -> None:
    """AVIF: Exif and XMP are items, whose places the box "meta" lists; Content Credentials have a box of their own."""
    for name, content in _boxes(data, 0, len(data)):
        if name == b"uuid" and data[content.start : content.start + 16] == _C2PA_UUID:
            # Version and flags, the purpose as text, and an offset for other purposes come first.
            rest = data[content.start + 20 : content.stop][:LONGEST_BLOCK]
            purpose, _, boxes = rest.partition(b"\0")
            if purpose == b"manifest":
                metadata.c2pa = boxes[8:]
        elif name == b"meta":
            _read_items(data, content, metadata)


def _read_items(data: bytes, meta: range, metadata: Metadata) -> None:
    kinds: dict[int, bytes] = {}
    places: dict[int, tuple[int, int]] = {}
    for name, place in _boxes(data, meta.start + 4, meta.stop):
        try:
            if name == b"iinf" and place:
                kinds = _item_kinds(data, place)
            elif name == b"iloc" and len(place) >= 6:
                places = _item_places(data[place.start : place.stop][:LONGEST_BLOCK])
        except struct.error:
            return
    for item, kind in kinds.items():
        start, length = places.get(item, (0, 0))
        content = data[start : start + min(length, LONGEST_BLOCK)]
        if kind == b"Exif" and len(content) > 4:
            metadata.exif = content[4 + int.from_bytes(content[:4], "big") :]  # from where the TIFF structure begins
        elif kind == b"mime":
            metadata.xmp = content


def _item_kinds(data: bytes, content: range) -> dict[int, bytes]:
    """Types of the items, by number, from the entries (infe, version 2) of the box iinf."""
    version = data[content.start]
    kinds = {}
    for name, entry in _boxes(data, content.start + (6 if version == 0 else 8), content.stop):
        if name == b"infe" and len(entry) >= 12 and data[entry.start] == 2:
            number, _, kind = struct.unpack_from(">HH4s", data, entry.start + 4)
            kinds[number] = kind
    return kinds


def _item_places(box: bytes) -> dict[int, tuple[int, int]]:
    """Offset and length of the items that lie in one piece in the file, by number, from the content of the box iloc."""
    version, sizes = box[0], struct.unpack_from(">H", box, 4)[0]
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    position, places = 6, {}

    def number(size: int) -> int:
        nonlocal position
        if position + size > len(box):
            raise struct.error("the box ends too early")
        position += size
        return int.from_bytes(box[position - size : position], "big")

    for _ in range(min(number(2 if version < 2 else 4), MOST_BLOCKS)):
        item = number(2 if version < 2 else 4)
        method = number(2) & 15 if version else 0
        number(2)  # where the data is: always this file
        base, extents = number(base_size), number(2)
        for _ in range(min(extents, MOST_BLOCKS)):
            if version:
                number(index_size)
            offset, length = number(offset_size), number(length_size)
            if extents == 1 and method == 0:
                places[item] = base + offset, length
    return places


def _boxes(data: bytes, position: int, end: int) -> Iterator[tuple[bytes, range]]:
    """Yield type and place of the content of the boxes (ISO 14496-12) in data[position:end]."""
    for _ in range(MOST_BLOCKS):
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

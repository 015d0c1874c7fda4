"""The metadata blocks of an image file, by format. Hostile files cost little: the bytes of all blocks are bounded."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from npr_model.imaging.formats import boxes

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
    reader = _READERS.get(format)
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
    """AVIF and HEIF: EXIF and XMP are items; Content Credentials have a box of their own."""
    for name, place in boxes.boxes(data):
        if name == b"uuid" and data[place.start : place.start + 16] == _C2PA_UUID:
            # Version and flags, the purpose as text, and an offset for other purposes come first.
            purpose, _, content = data[place.start + 20 : place.stop][:LONGEST_BLOCK].partition(b"\0")
            if purpose == b"manifest":
                metadata.c2pa = content[8:]
    for item in boxes.items(data):
        if len(item.pieces) == 1:
            offset, length = item.pieces[0]
            content = data[offset : offset + min(length, LONGEST_BLOCK)]
            if item.kind == b"Exif" and len(content) > 4:
                metadata.exif = content[4 + int.from_bytes(content[:4], "big") :]  # from where the TIFF begins
            elif item.kind == b"mime":
                metadata.xmp = content


_READERS = {
    "AVIF": _read_boxes,
    "HEIF": _read_boxes,
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "TIFF": _read_tiff,
    "WEBP": _read_webp,
}

"""The metadata blocks of an image file, by format. Of each kind, the first one counts.

Hostile files cost little: the bytes of a block, the blocks and the texts of a file are bounded.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from npr_model.imaging.formats import boxes, jpegxl

LONGEST_BLOCK = 2**20  # bytes of a block; the rest of a longer one is not read
LONGEST_CREDENTIALS = 2**24  # bytes of Content Credentials; longer ones are not read, as the file's own come last
MOST_TEXT = 2**21  # bytes of all texts together
MOST_BLOCKS = 1000  # texts, and other blocks of interest
MOST_STEPS = 100_000  # chunks and segments that are passed
MOST_BROTLI = 8  # boxes of a JPEG XL file that are decompressed

_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_APP1, _APP11, _COMMENT, _SOS = 0xE1, 0xEB, 0xFE, 0xDA
_JPEG_BLOCKS = (_APP1, _APP11, _COMMENT)
_SEGMENT = struct.Struct(">BH")  # marker, length
_FILL = re.compile(rb"\xff{2,}")  # before a marker
_PNG_BLOCKS = (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"caBX")
_WEBP_BLOCKS = (b"EXIF", b"XMP ", b"C2PA")
_C2PA_UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")


@dataclass
class MetadataBlocks:
    """The blocks of one file, empty where there are none.

    Attributes:
        exif: A TIFF structure, from its byte order mark.
        xmp: XML.
        c2pa: JUMBF boxes, the Content Credentials.
        comment: A JPEG's comment.
        text: PNG text by keyword.
    """

    exif: bytes = b""
    xmp: bytes = b""
    c2pa: bytes = b""
    comment: str = ""
    text: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.exif or self.xmp or self.c2pa or self.comment or self.text)


def read_metadata(data: bytes, format: str) -> MetadataBlocks:
    """Return the metadata of an encoded image. ``format``: as Pillow names it. Damaged blocks are left out."""
    reader = _READERS.get(format)
    metadata = MetadataBlocks()
    if reader is not None:
        reader(data, metadata)
    return metadata


def _read_jpeg(data: bytes, metadata: MetadataBlocks) -> None:
    manifests: dict[bytes, bytearray] = {}  # JUMBF boxes, joined from their parts, by number
    for marker, content in _segments(data):
        if marker == _APP1 and content.startswith(_EXIF):
            metadata.exif = metadata.exif or content[len(_EXIF) :]
        elif marker == _APP1 and content.startswith(_XMP):
            metadata.xmp = metadata.xmp or content[len(_XMP) :]
        elif marker == _APP11 and content.startswith(b"JP") and len(content) > 16:
            # Each part after the first repeats the length and the type of the box.
            joined = manifests.setdefault(content[2:4], bytearray())
            if len(joined) < LONGEST_CREDENTIALS:
                joined += content[16:] if joined else content[8:]
        elif marker == _COMMENT:
            metadata.comment = metadata.comment or content.decode("utf-8", "replace")
    metadata.c2pa = next((_whole(bytes(box)) for box in manifests.values() if b"c2pa" in box[:64]), b"")


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of a JPEG's segments with metadata before its first scan."""
    position = 2
    for _ in range(MOST_BLOCKS):
        if match := _FILL.match(data, position):
            position = match.end() - 1
        if position + 4 > len(data) or data[position] != 0xFF:
            return
        marker, length = _SEGMENT.unpack_from(data, position + 1)
        if marker == _SOS or length < 2:
            return
        if marker in _JPEG_BLOCKS:
            yield marker, data[position + 4 : position + 2 + length]
        position += 2 + length


def _read_png(data: bytes, metadata: MetadataBlocks) -> None:
    position, texts, left = 8, 0, MOST_TEXT
    for _ in range(MOST_STEPS):
        if position + 8 > len(data):
            return
        length, name = struct.unpack_from(">I4s", data, position)
        most = LONGEST_CREDENTIALS if name == b"caBX" else LONGEST_BLOCK
        content = data[position + 8 : position + 8 + min(length, most)] if name in _PNG_BLOCKS else b""
        if name == b"eXIf":
            metadata.exif = metadata.exif or content
        elif name == b"caBX":
            metadata.c2pa = metadata.c2pa or _whole(content)
        elif content and texts < MOST_BLOCKS:
            texts += 1
            keyword, text = _png_text(name, content, left)
            left -= len(text)
            if keyword == "XML:com.adobe.xmp":
                metadata.xmp = metadata.xmp or text
            else:
                metadata.text.setdefault(keyword, text.decode("utf-8", "replace"))
        position += 12 + length


def _png_text(name: bytes, content: bytes, most: int) -> tuple[str, bytes]:
    """Return keyword and text of a text chunk, up to ``most`` bytes of UTF-8."""
    keyword, _, rest = content.partition(b"\0")
    is_compressed = name == b"zTXt"
    if name == b"iTXt":
        is_compressed = rest[:1] == b"\1"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # language and translated keyword
    elif name == b"zTXt":
        rest = rest[1:]
    if is_compressed:
        try:
            rest = zlib.decompressobj().decompress(rest, min(most, LONGEST_BLOCK)) if most > 0 else b""
        except zlib.error:
            rest = b""
    if name != b"iTXt":  # Latin-1 by the standard, but many writers store UTF-8
        try:
            rest.decode()
        except UnicodeError:
            rest = rest.decode("latin-1").encode()
    return keyword.decode("latin-1"), rest[: max(0, most)]


def _read_webp(data: bytes, metadata: MetadataBlocks) -> None:
    position = 12
    for _ in range(MOST_STEPS):
        if position + 8 > len(data):
            return
        name, length = struct.unpack_from("<4sI", data, position)
        most = LONGEST_CREDENTIALS if name == b"C2PA" else LONGEST_BLOCK
        content = data[position + 8 : position + 8 + min(length, most)] if name in _WEBP_BLOCKS else b""
        if name == b"EXIF":
            metadata.exif = metadata.exif or content.removeprefix(_EXIF)
        elif name == b"XMP ":
            metadata.xmp = metadata.xmp or content
        elif name == b"C2PA":
            metadata.c2pa = metadata.c2pa or _whole(content)
        position += 8 + length + length % 2


def _read_tiff(data: bytes, metadata: MetadataBlocks) -> None:
    metadata.exif = data


def _read_boxes(data: bytes, metadata: MetadataBlocks) -> None:
    """AVIF and HEIF: EXIF and XMP are items; Content Credentials have a box of their own."""
    for name, place in boxes.boxes(data):
        if name == b"uuid" and data[place.start : place.start + 16] == _C2PA_UUID:
            # Version and flags, the purpose as text, and an offset for other purposes come first.
            purpose, _, content = data[place.start + 20 : place.stop][:LONGEST_CREDENTIALS].partition(b"\0")
            if purpose == b"manifest":
                metadata.c2pa = metadata.c2pa or _whole(content[8:])
    for item in boxes.items(data):
        if item.kind in (b"Exif", b"mime") and len(item.pieces) == 1:
            offset, length = item.pieces[0]
            content = data[offset : offset + min(length, LONGEST_BLOCK)]
            if item.kind == b"mime":
                metadata.xmp = metadata.xmp or content
            elif len(content) > 4:
                metadata.exif = metadata.exif or _behind_offset(content)


def _read_jpegxl(data: bytes, metadata: MetadataBlocks) -> None:
    """A box each; a box "brob" holds another one, compressed."""
    decompressed = 0
    for name, place in boxes.boxes(data) if data[4:8] == b"JXL " else ():
        if name not in (b"Exif", b"xml ", b"jumb", b"brob"):
            continue
        most = LONGEST_CREDENTIALS if name == b"jumb" else LONGEST_BLOCK
        content = data[place.start : min(place.stop, place.start + most)]
        if name == b"brob":
            name = content[:4]
            known = {b"Exif": metadata.exif, b"xml ": metadata.xmp}
            if known.get(name, b"known") or decompressed == MOST_BROTLI:
                continue
            decompressed += 1
            content = jpegxl.uncompressed(content[4:], LONGEST_BLOCK)
        if name == b"Exif" and len(content) > 4:
            metadata.exif = metadata.exif or _behind_offset(content)
        elif name == b"xml ":
            metadata.xmp = metadata.xmp or content
        elif name == b"jumb":
            metadata.c2pa = metadata.c2pa or _whole(struct.pack(">I", 8 + len(place)) + name + content)


def _behind_offset(content: bytes) -> bytes:
    """Return the TIFF structure in the content of an EXIF box, whose first four bytes hold its offset."""
    return content[4 + int.from_bytes(content[:4], "big") :]


def _whole(credentials: bytes) -> bytes:
    """Return a JUMBF box; nothing if it ends early, as the file's own claims are its last ones."""
    return credentials if len(credentials) >= int.from_bytes(credentials[:4], "big") else b""


_READERS = {
    "AVIF": _read_boxes,
    "HEIF": _read_boxes,
    "JPEG": _read_jpeg,
    "JXL": _read_jpegxl,
    "MPO": _read_jpeg,
    "PNG": _read_png,
    "TIFF": _read_tiff,
    "WEBP": _read_webp,
}

"""What programs write into files about their origin: text, XMP, EXIF and Content Credentials."""

from __future__ import annotations

import io
import json
import struct
import zlib

from PIL import Image, PngImagePlugin

from tests.model.conftest import noise

WEB_UI = (
    "a castle on a hill\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"
)
GRAPH = json.dumps({"3": {"class_type": "KSampler", "inputs": {"seed": 5}}})
WORKFLOW = json.dumps({"nodes": [{"id": 1, "type": "KSampler"}], "links": [], "version": 0.4})
MAKE, MODEL, SOFTWARE, DESCRIPTION, EXIF_IFD, COMMENT, EXPOSURE = 0x10F, 0x110, 0x131, 0x10E, 0x8769, 0x9286, 0x829A
CV = "http://cv.iptc.org/newscodes/digitalsourcetype/"


def encoded(format: str, exif: dict | None = None, **options) -> bytes:
    file = io.BytesIO()
    if exif is not None:
        made = Image.Exif()
        inner = {tag: value for tag, value in exif.items() if tag in (COMMENT, EXPOSURE)}
        for tag, value in exif.items():
            if tag not in inner:
                made[tag] = value
        if inner:
            made[EXIF_IFD] = inner
        options["exif"] = made.tobytes()
    Image.fromarray(noise(24, 24)).save(file, format, **options)
    return file.getvalue()


def png(*, compressed: bool = False, international: bool = False, **text: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    for keyword, value in text.items():
        add = info.add_itxt if international else info.add_text
        add(keyword.replace("_", "-") if keyword == "sd_metadata" else keyword, value, zip=compressed)
    return encoded("PNG", pnginfo=info)


def xmp(inner: str) -> bytes:
    return (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
        f"{inner}</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def attribute(source_type: str) -> bytes:
    return xmp(f'Iptc4xmpExt:DigitalSourceType="{CV}{source_type}">')


def element(source_type: str) -> bytes:
    return xmp(f"><Iptc4xmpExt:DigitalSourceType>{CV}{source_type}</Iptc4xmpExt:DigitalSourceType>")


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def jumbf(label: bytes, *contents: bytes) -> bytes:
    description = box(b"jumd", bytes(16) + b"\x03" + label + b"\0")
    return box(b"jumb", description + b"".join(contents))


def text(value: str) -> bytes:
    """A CBOR text."""
    data = value.encode()
    return (bytes([0x60 + len(data)]) if len(data) < 24 else b"\x78" + bytes([len(data)])) + data


def manifest(label: bytes, generator: str, action: str, source_type: str = "") -> bytes:
    actions = b"\xa1" + text("actions") + b"\x81\xa2" + text("action") + text(f"c2pa.{action}")
    actions += text("digitalSourceType") + text(CV + source_type)
    claim = b"\xa1" + text("claim_generator") + text(generator)
    return jumbf(
        label,
        jumbf(b"c2pa.assertions", jumbf(b"c2pa.actions.v2", box(b"cbor", actions))),
        jumbf(b"c2pa.claim", box(b"cbor", claim)),
    )


def store(*manifests: bytes) -> bytes:
    return jumbf(b"c2pa", *manifests)


def in_jpeg(data: bytes, credentials: bytes, part: int = 100) -> bytes:
    """Content Credentials in segments of at most ``part`` bytes; each repeats the header of the box."""
    segments, header = b"", credentials[:8]
    for number, start in enumerate(range(8, len(credentials), part), 1):
        content = b"JP" + struct.pack(">HI", 0x211, number) + header + credentials[start : start + part]
        segments += b"\xff\xeb" + struct.pack(">H", 2 + len(content)) + content
    return data[:2] + segments + data[2:]


def in_png(data: bytes, name: bytes, content: bytes) -> bytes:
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return data[:33] + chunk + data[33:]


def in_webp(data: bytes, name: bytes, content: bytes) -> bytes:
    chunk = name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(data) - 8 + len(chunk)) + data[8:] + chunk


AI = store(manifest(b"urn:uuid:1", "OpenAI-API", "created", "trainedAlgorithmicMedia"))
# A generated image that was then edited: the edits belong to the last manifest.
EDITED_AI = store(
    manifest(b"urn:uuid:1", "OpenAI-API", "created", "trainedAlgorithmicMedia"),
    manifest(b"urn:uuid:2", "Adobe Photoshop 26.0", "color_adjustments"),
)
CAPTURED = store(manifest(b"urn:uuid:1", "Leica M11-P", "created", "digitalCapture"))

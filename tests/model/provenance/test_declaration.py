"""What files declare, in the layouts of the programs that write them, and what hostile metadata cost."""

from __future__ import annotations

import functools
import html
import io
import json
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from npr_model.provenance import declaration
from npr_model.provenance.blocks import LONGEST_BLOCK, MetadataBlocks, read_metadata
from npr_model.provenance.declaration import read_declaration
from tests.model.provenance.declaring import (
    AI,
    CAPTURED,
    COMMENT,
    CV,
    DESCRIPTION,
    EDITED_AI,
    EXIF_IFD,
    EXPOSURE,
    GRAPH,
    MAKE,
    MODEL,
    SOFTWARE,
    WEB_UI,
    WORKFLOW,
    attribute,
    box,
    element,
    encoded,
    in_jpeg,
    in_png,
    in_webp,
    jumbf,
    manifest,
    png,
    store,
    xmp,
)

CASES = {
    # Generators
    "web UI, PNG": (
        "PNG",
        png(parameters=WEB_UI),
        "generated",
        "PNG text parameters: parameters of a Stable Diffusion",
    ),
    "web UI, iTXt": ("PNG", png(parameters=WEB_UI, international=True), "generated", "PNG text parameters"),
    "web UI, zTXt": ("PNG", png(parameters=WEB_UI, compressed=True), "generated", "PNG text parameters"),
    "web UI, JPEG": (
        "JPEG",
        encoded("JPEG", {COMMENT: b"UNICODE\0" + WEB_UI.encode("utf-16-be")}),
        "generated",
        "EXIF comment: parameters of a Stable Diffusion web UI",
    ),
    "web UI, WebP, little-endian": (
        "WEBP",
        encoded("WEBP", {COMMENT: b"UNICODE\0" + WEB_UI.encode("utf-16-le")}),
        "generated",
        "EXIF comment",
    ),
    "web UI, AVIF": ("AVIF", encoded("AVIF", {COMMENT: b"ASCII\0\0\0" + WEB_UI.encode()}), "generated", "EXIF comment"),
    "ComfyUI, prompt": (
        "PNG",
        png(prompt=GRAPH, workflow=WORKFLOW),
        "generated",
        "PNG text prompt: parameters of ComfyUI",
    ),
    "ComfyUI, workflow alone": ("PNG", png(workflow=WORKFLOW), "generated", "PNG text workflow"),
    "ComfyUI, WebP": ("WEBP", encoded("WEBP", {MAKE: f"workflow:{WORKFLOW}"}), "generated", "EXIF make: parameters of"),
    "InvokeAI": ("PNG", png(invokeai_metadata='{"model": "x"}'), "generated", "parameters of InvokeAI"),
    "InvokeAI 2": ("PNG", png(sd_metadata='{"model": "x"}'), "generated", "PNG text sd-metadata"),
    "NovelAI": (
        "PNG",
        png(Software="NovelAI", Comment=json.dumps({"uc": "", "sampler": "k_euler"})),
        "generated",
        "NovelAI",
    ),
    "Fooocus": ("PNG", png(parameters='{"version": "Fooocus v2.5"}', fooocus_scheme="fooocus"), "generated", "Fooocus"),
    "SwarmUI": ("PNG", png(parameters='{"sui_image_params": {}}'), "generated", "parameters of SwarmUI"),
    "Draw Things": (
        "PNG",
        in_png(png(), b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp('xmp:CreatorTool="Draw Things">')),
        "generated",
        "XMP: Draw Things",
    ),
    "Midjourney": (
        "PNG",
        png(Description="a fox --v 6 Job ID: 0b1a2c3d-0000-4000-8000-000000000000", Author="someone"),
        "generated",
        "Midjourney",
    ),
    "Midjourney, EXIF": ("JPEG", encoded("JPEG", {SOFTWARE: "Midjourney"}), "generated", "EXIF software: Midjourney"),
    "IPTC, attribute": ("JPEG", encoded("JPEG", xmp=attribute("trainedAlgorithmicMedia")), "generated", "XMP: trained"),
    "IPTC, element": ("WEBP", encoded("WEBP", xmp=element("trainedAlgorithmicMedia")), "generated", "XMP: trained"),
    "IPTC, AVIF": ("AVIF", encoded("AVIF", xmp=element("trainedAlgorithmicMedia")), "generated", "XMP: trained"),
    "C2PA, JPEG": (
        "JPEG",
        in_jpeg(encoded("JPEG"), AI),
        "generated",
        "Content Credentials: trainedAlgorithmicMedia, by OpenAI-API",
    ),
    "C2PA, PNG": ("PNG", in_png(encoded("PNG"), b"caBX", AI), "generated", "Content Credentials"),
    "C2PA, WebP": ("WEBP", in_webp(encoded("WEBP"), b"C2PA", AI), "generated", "Content Credentials"),
    "C2PA, AVIF": (
        "AVIF",
        encoded("AVIF")
        + box(b"uuid", bytes.fromhex("d8fec3d61b0e483c92975828877ec481") + bytes(4) + b"manifest\0" + bytes(8) + AI),
        "generated",
        "Content Credentials",
    ),
    # Editors
    "composite": (
        "JPEG",
        encoded("JPEG", xmp=attribute("compositeWithTrainedAlgorithmicMedia")),
        "edited",
        "XMP: comp",
    ),
    "Photoshop": (
        "JPEG",
        encoded("JPEG", {SOFTWARE: "Adobe Photoshop 25.1 (Windows)"}),
        "edited",
        "EXIF software: Adobe",
    ),
    "GIMP, TIFF": ("TIFF", encoded("TIFF", tiffinfo={SOFTWARE: "GIMP 2.10.34"}), "edited", "EXIF software: GIMP"),
    "C2PA, edited": (
        "JPEG",
        in_jpeg(encoded("JPEG"), EDITED_AI),
        "edited",
        "Content Credentials: edited, by Adobe Photoshop 26.0",
    ),
    "camera, then editor": (
        "JPEG",
        encoded("JPEG", {MAKE: "Canon", MODEL: "Canon EOS R5", SOFTWARE: "GIMP 2.10", EXPOSURE: 0.01}),
        "edited",
        "GIMP",
    ),
    # Cameras
    "camera": (
        "JPEG",
        encoded("JPEG", {MAKE: "Canon", MODEL: "Canon EOS R5", EXPOSURE: 0.01}),
        "camera",
        "EXIF: Canon EOS",
    ),
    "phone": (
        "JPEG",
        encoded("JPEG", {MAKE: "Apple", MODEL: "iPhone 15", SOFTWARE: "17.1", EXPOSURE: 0.01}),
        "camera",
        "EXIF: Apple iPhone 15",
    ),
    "C2PA, camera": ("JPEG", in_jpeg(encoded("JPEG"), CAPTURED), "camera", "digitalCapture, by Leica M11-P"),
    "C2PA, metadata edited": (
        "JPEG",
        in_jpeg(encoded("JPEG"), store(manifest(b"urn:uuid:1", "Leica M11-P", "edited.metadata", "digitalCapture"))),
        "camera",
        "digitalCapture",
    ),
    "IPTC, resource": (
        "JPEG",
        encoded("JPEG", xmp=xmp(f'><Iptc4xmpExt:DigitalSourceType rdf:resource="{CV}trainedAlgorithmicMedia"/>')),
        "generated",
        "XMP: trained",
    ),
    "Google": ("JPEG", encoded("JPEG", xmp=xmp('photoshop:Credit="Made with Google AI">')), "generated", "Google AI"),
    "Leonardo": ("JPEG", encoded("JPEG", {SOFTWARE: "Leonardo AI"}), "generated", "Leonardo AI"),
    "generated part": (
        "JPEG",
        in_jpeg(
            encoded("JPEG"),
            store(
                jumbf(
                    b"urn:uuid:1",
                    manifest(b"a", "x", "created", "digitalCapture"),
                    manifest(b"b", "x", "drawing", "trainedAlgorithmicMedia"),
                )
            ),
        ),
        "edited",
        "trainedAlgorithmicMedia",
    ),
    # Nothing
    "nothing": ("PNG", encoded("PNG"), None, ""),
    "words about steps": ("PNG", png(Description="Steps: open the box, then read"), None, ""),
    "a painting": ("JPEG", encoded("JPEG", xmp=attribute("digitalArt")), None, ""),
    "make without exposure": ("JPEG", encoded("JPEG", {MAKE: "Canon"}), None, ""),
    "GIF": ("GIF", encoded("GIF"), None, ""),
}


@pytest.fixture(autouse=True)
def unsigned_credentials_count(monkeypatch):
    """The credentials here are not signed: test_validation.py has some that are."""
    monkeypatch.setattr(declaration, "validate", lambda data, format: None)


@pytest.mark.parametrize("case", CASES)
def test_declarations(case):
    format, data, kind, evidence = CASES[case]
    found = read_declaration(data, format)
    assert (found and found.kind) == kind
    assert found is None or (evidence in found.evidence and found.evidence.isprintable())


def test_metadata_is_false_only_without_blocks():
    assert not MetadataBlocks() and not read_metadata(encoded("JPEG"), "JPEG")
    for block in ({"exif": b"x"}, {"xmp": b"x"}, {"c2pa": b"x"}, {"comment": "x"}, {"text": {"": ""}}):
        assert MetadataBlocks(**block)


CAPTIONS = [
    "Imagen de la playa al atardecer",
    "A Chinese ideogram carved in stone",
    "Grok, the klingon dog",
    "Children draw things in a park",
    "Not made with Midjourney, a real photo",
    "Protest against DALL-E, Berlin",
    "Oil on canvas, Louvre",
    "Print order, Job ID: 0a1b2c3d-1234-4000-8000-000000000000",
    "Fitness challenge. Steps: 12043, Distance: 8 km, Seed: sunflower",
    json.dumps({"nodes": [{"id": 1}], "links": []}),
]


@pytest.mark.parametrize("caption", CAPTIONS)
def test_a_caption_declares_nothing(caption):
    assert read_declaration(png(Title=caption, Description=caption, Comment=caption), "PNG") is None
    camera = encoded("JPEG", {MAKE: "Canon", MODEL: "Canon EOS R5", DESCRIPTION: caption, EXPOSURE: 0.01})
    assert read_declaration(camera, "JPEG").kind == "camera"
    credit = xmp(f'photoshop:Credit="{html.escape(caption)}">')
    assert read_declaration(encoded("JPEG", xmp=credit), "JPEG") is None


@pytest.mark.parametrize("software", ["Luminaria 2", "Canvas 5", "1.0 Imagen", "GIMPER", "Topazio"])
def test_other_programs_declare_nothing(software):
    assert read_declaration(encoded("JPEG", {SOFTWARE: software}), "JPEG") is None


def test_text_behind_many_pixels():
    data = png(parameters=WEB_UI)
    pieces = 2000 * struct.pack(">I4sI", 0, b"IDAT", zlib.crc32(b"IDAT"))
    assert read_declaration(data[:33] + pieces + data[33:], "PNG").kind == "generated"


def test_long_credentials_are_the_files_own():
    """An ingredient's manifest with a large thumbnail comes before the file's own."""
    ingredient = manifest(b"urn:uuid:1", "OpenAI-API", "created", "trainedAlgorithmicMedia")
    thumbnail = jumbf(b"thumbnail", box(b"bidb", bytes(3 * 2**20)))
    own = manifest(b"urn:uuid:2", "Leica M11-P", "created", "digitalCapture")
    data = in_png(encoded("PNG"), b"caBX", store(ingredient, jumbf(b"urn:uuid:3", thumbnail), own))
    assert read_declaration(data, "PNG").kind == "camera"
    huge = store(ingredient, jumbf(b"urn:uuid:3", box(b"bidb", bytes(2**24))), own)
    assert read_declaration(in_png(encoded("PNG"), b"caBX", huge), "PNG") is None


def test_evidence_is_one_short_line():
    found = read_declaration(encoded("JPEG", {SOFTWARE: "Midjourney \x1b[31m\n" + 500 * "x"}), "JPEG")
    assert found.evidence.isprintable() and len(found.evidence) < 120


@settings(deadline=None)
@given(st.sampled_from(sorted(CASES)), st.data())
def test_damaged_metadata_raise_nothing(case, data):
    format, content, _, _ = CASES[case]
    changed = bytearray(content[: data.draw(st.integers(0, len(content)))])
    for _ in range(data.draw(st.integers(0, 8)) if changed else 0):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    read_declaration(bytes(changed), format)


def meta_of_empty_pieces() -> bytes:
    """A box "iloc" whose items have 65,535 pieces each, which take no bytes."""
    items = b"".join(struct.pack(">HHH", number, 0, 65535) for number in range(20_000))
    return box(b"meta", bytes(4) + box(b"iloc", bytes(6) + struct.pack(">H", 20_000) + items))


@functools.cache
def hostile() -> dict[str, tuple[str, bytes]]:
    start = encoded("PNG")
    bomb = zlib.compress(bytes(2**26))
    content = b"\0\0" + zlib.compress("\N{GRINNING FACE}".encode() + bytes(2**20))
    bomb_chunk = struct.pack(">I4s", len(content), b"zTXt") + content + bytes(4)
    many = start[:33] + 200_000 * struct.pack(">I4sI", 0, b"tEXt", 0) + start[33:]
    directory = b"II*\0" + struct.pack("<IH", 8, 65535) + struct.pack("<HHII", SOFTWARE, 2, 2**31, 8) * 65535
    looping = b"II*\0" + struct.pack("<IHHHII", 8, 1, EXIF_IFD, 4, 1, 8) * 3
    brackets = xmp("DigitalSourceType" + 400_000 * "<a>")
    return {
        "text bomb": ("PNG", in_png(start, b"zTXt", b"parameters\0\0" + bomb)),
        "many chunks": ("PNG", many),
        "many text bombs": ("PNG", start[:33] + 300 * bomb_chunk + start[33:]),
        "fill bytes": ("JPEG", encoded("JPEG")[:2] + 30_000_000 * b"\xff"),
        "empty pieces": ("HEIF", meta_of_empty_pieces()),
        "large directory": ("PNG", in_png(start, b"eXIf", directory)),
        "looping directory": ("PNG", in_png(start, b"eXIf", looping)),
        "empty boxes": ("AVIF", encoded("AVIF") + box(b"free", b"") * 200_000),
        "long XMP": ("WEBP", in_webp(encoded("WEBP"), b"XMP ", brackets)),
        "repeated words": ("PNG", png(parameters=200_000 * "Steps: 1 ")),
        "nested boxes": ("PNG", in_png(start, b"caBX", struct.pack(">I4s", 2**31, b"jumb") * 60_000)),
    }


@pytest.mark.parametrize("case", hostile())
def test_hostile_metadata_cost_little(case):
    format, data = hostile()[case]
    began = time.thread_time()
    read_declaration(data, format)
    assert time.thread_time() - began < 2


def test_text_is_read_up_to_a_limit():
    found = read_declaration(png(parameters=LONGEST_BLOCK * " " + WEB_UI), "PNG")
    assert found is None
    assert read_declaration(png(parameters=WEB_UI + LONGEST_BLOCK * " "), "PNG").kind == "generated"


def test_pixels_do_not_matter():
    file = io.BytesIO()
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", WEB_UI)
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(file, "PNG", pnginfo=info)
    assert read_declaration(file.getvalue()[:400], "PNG").kind == "generated"

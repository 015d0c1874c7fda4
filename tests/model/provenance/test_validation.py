"""Content Credentials that are signed: what they claim counts only if they are valid."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import threading

import numpy as np
import pytest
from PIL import Image

from npr_model.errors import InputError
from npr_model.imaging.views import View
from npr_model.provenance import validation
from npr_model.provenance.declaration import read_declaration
from npr_model.scoring.decoding import Decoder
from npr_model.scoring.items import in_memory
from tests.model.conftest import encoded, noise
from tests.model.provenance.declaring import AI, WEB_UI, in_jpeg, png

pytest.importorskip("c2pa", reason="needs c2pa-python, npr-kernels[c2pa]")
from tests.model.provenance.signed import MEDIA_TYPES, authority, signed

GENERATED = "trainedAlgorithmicMedia"


def image(format: str) -> bytes:
    if format == "JXL":
        imagecodecs = pytest.importorskip("imagecodecs", reason="needs imagecodecs, npr-kernels[jxl]")
        return imagecodecs.jpegxl_encode(noise(24, 24), lossless=True, usecontainer=True)
    if format not in Image.SAVE and format not in Image.SAVE_ALL:
        pytest.skip(f"this Pillow cannot write {format}")
    return encoded(noise(24, 24), format)


@pytest.mark.parametrize("format", MEDIA_TYPES)
def test_valid(format, tmp_path, monkeypatch):
    data = signed(image(format), format, GENERATED)
    found = read_declaration(data, format)
    assert found.kind == "generated"
    assert found.evidence == f"Content Credentials (valid, untrusted signer): {GENERATED}, by OpenAI-API"
    (tmp_path / "anchors.pem").write_bytes(authority())
    monkeypatch.setenv(validation.TRUST_ANCHORS, str(tmp_path / "anchors.pem"))
    assert read_declaration(data, format).evidence.startswith(f"Content Credentials (valid): {GENERATED}")


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


SIGNED = signed(encoded(noise(24, 24), "JPEG"), "JPEG", GENERATED)
SIGNED_PNG = signed(encoded(noise(24, 24)), "PNG", GENERATED)
INVALID = {
    "other pixels": ("JPEG", flipped(SIGNED, len(SIGNED) - 40), "assertion.dataHash.mismatch"),
    "another claim": ("JPEG", SIGNED.replace(b"OpenAI-API", b"OpenAI-APJ"), "claimSignature.mismatch"),
    "another action": ("JPEG", SIGNED.replace(b"c2pa.created", b"c2pa.drawing"), "assertion.hashedURI.mismatch"),
    "behind the end": ("PNG", SIGNED_PNG + b"more", "assertion.dataHash.mismatch"),
    "no box of the claim": ("JPEG", SIGNED.replace(b"c2cl", b"c2xx"), "Verify"),
    "no box of the manifest": ("JPEG", SIGNED.replace(b"c2ma", b"c2xx"), "Other"),
    "on another file": ("JPEG", in_jpeg(encoded(noise(8, 8), "JPEG"), AI), "ManifestNotFound"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_ones_do_not_count(case):
    format, data, why = INVALID[case]
    assert read_declaration(data, format) == ("", f"Content Credentials are invalid ({why})")


def test_what_else_a_file_declares_still_counts():
    data = signed(png(parameters=WEB_UI), "PNG", "digitalCapture")
    assert read_declaration(data[:-1] + b"x", "PNG").evidence.startswith("PNG text parameters: parameters of")


def test_the_row_of_invalid_ones():
    row = Decoder(View("native"), "model", 2).decode(in_memory("a", INVALID["behind the end"][1])).row
    assert (row.error, row.declared) == (None, None)
    assert row.declared_by.startswith("Content Credentials are invalid")


def test_what_the_package_cannot_read_is_not_checked():
    assert validation.validate(encoded(noise(24, 24), "GIF"), "GIF") is None
    assert validation.validate(SIGNED[: len(SIGNED) // 2], "JPEG") is None


def test_without_the_package_claims_count_as_before(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = read_declaration(INVALID["other pixels"][1], "JPEG")
    assert found == ("generated", f"Content Credentials: {GENERATED}, by OpenAI-API")


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"no certificate"])
def test_trust_anchors_that_cannot_be_read(content, tmp_path, monkeypatch):
    path = tmp_path / "anchors.pem"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv(validation.TRUST_ANCHORS, str(path))
    with pytest.raises(InputError, match=r"NPR_TRUST_ANCHORS=.*anchors.pem is no readable PEM file"):
        read_declaration(SIGNED, "JPEG")


def test_nothing_is_fetched():
    """A file whose manifest lies on a server: the server is not asked."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)

        def listen() -> None:
            with contextlib.suppress(TimeoutError):
                asked.append(server.accept())

        thread = threading.Thread(target=listen)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.c2pa"
        xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        xmp += f'<rdf:Description xmlns:dcterms="http://purl.org/dc/terms/" dcterms:provenance="{url}"/>'
        xmp += "</rdf:RDF></x:xmpmeta>"
        assert not validation.validate(encoded(noise(24, 24), "JPEG", xmp=xmp.encode()), "JPEG").is_valid
        thread.join()
    assert not asked


def test_damage_raises_nothing():
    random = np.random.default_rng(0)
    for format, data in (("JPEG", SIGNED), ("PNG", SIGNED_PNG)):
        for _ in range(200):
            changed = bytearray(data[: random.integers(1, len(data) + 1)])
            for place in random.integers(0, len(changed), random.integers(1, 20)):
                changed[place] = random.integers(256)
            read_declaration(bytes(changed), format)

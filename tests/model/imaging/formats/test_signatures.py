"""The first bytes of a file tell its format, also of formats that are not supported; its name plays no part."""

from __future__ import annotations

import struct

import pytest
from PIL import Image

from npr_model.imaging.errors import ImageError
from npr_model.imaging.headers import header_size, read_encoding
from tests.model.conftest import encoded, noise
from tests.model.imaging import files
from tests.model.imaging.files import picture
from tests.model.imaging.kinds import refused


def box(*brands: bytes) -> bytes:
    content = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return struct.pack(">I", len(content) + 4) + content + bytes(500)


UNSUPPORTED = {
    "JPEG XR": b"II\xbc\x01\x20\0\0\0" + bytes(200),
    "PSD": b"8BPS\0\1" + bytes(200),
    "XCF": b"gimp xcf v011\0" + bytes(200),
    "ICO": encoded(noise(32, 32), "ICO"),
    "CUR": b"\0\0\2\0\1\0\x20\x20" + bytes(200),
    "QOI": encoded(noise(32, 32), "QOI"),
    "DDS": encoded(noise(32, 32), "DDS"),
    "SGI": encoded(noise(32, 32), "SGI"),
    "PCX": encoded(noise(32, 32), "PCX"),
    "OpenEXR": b"v/1\x01\2\0\0\0" + bytes(200),
    "Radiance HDR": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 4 +X 4\n" + bytes(200),
    "PAM": b"P7\nWIDTH 2\nHEIGHT 2\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + bytes(12),
    "PFM": b"PF\n2 2\n-1.0\n" + bytes(48),
    "FITS": b"SIMPLE  =                    T" + bytes(200),
    "DICOM": bytes(128) + b"DICM" + bytes(200),
    **files.camera_raw(b""),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_formats_that_are_not_supported_are_named(name, tmp_path):
    refused(UNSUPPORTED[name], name, "unsupported")
    path = tmp_path / "image.jpg"  # the content decides
    path.write_bytes(UNSUPPORTED[name])
    for read in (read_encoding, header_size):
        with pytest.raises(ImageError, match=name) as caught:
            read(path)
        assert caught.value.code == "unsupported"


def test_raw_data_behind_a_thumbnail_is_camera_raw():
    data = files.tiff(picture(16, 16), tags={330: (4, [0]), 271: (1, b"SONY\0")})
    page = struct.pack("<HHHIII", 1, 262, 3, 1, 32803, 0)
    pointer = struct.pack("<HHI", 330, 4, 1)
    start = data.index(pointer) + len(pointer)
    refused(data[:start] + struct.pack("<I", len(data)) + data[start + 4 :] + page, "Sony ARW", "unsupported")


def test_avif_without_a_decoder_is_named(monkeypatch):
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    refused(box(b"avif", b"mif1", b"avif"), "AVIF", "unsupported")


@pytest.mark.parametrize("name", ["a.heic", "photo.jpg?w=100", "noextension", "a.txt"])
def test_the_name_plays_no_part(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(encoded(noise(10, 12), "JPEG"))
    assert header_size(path) == (12, 10)
    assert read_encoding(path).format == "JPEG"


def test_git_lfs_pointer_is_named():
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    refused(pointer, "Git LFS pointer", "not_an_image")

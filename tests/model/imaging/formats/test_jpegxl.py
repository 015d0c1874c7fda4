"""JPEG XL: pixels as stored, JPEGs inside bit for bit, and an error for whatever is missing, damaged or too large."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from PIL import Image

from npr_model.imaging.condition import file_facts
from npr_model.imaging.decode import decode
from npr_model.imaging.errors import ImageError
from npr_model.imaging.formats import boxes, jpegxl
from npr_model.imaging.headers import header_size, read_encoding
from npr_model.provenance.declaration import read_declaration
from tests.model.conftest import encoded, noise
from tests.model.imaging.files import picture

imagecodecs = pytest.importorskip("imagecodecs", reason="needs imagecodecs, npr-kernels[jxl]")

PIXELS = picture(60, 90)
ORIENTED = Image.Exif()
ORIENTED[0x0112] = 6
ORIENTED[0x010F] = "Canon"
JPEG = encoded(PIXELS, "JPEG", quality=80, subsampling="4:2:0", exif=ORIENTED)


def jxl(pixels: np.ndarray = PIXELS, **options) -> bytes:
    return imagecodecs.jpegxl_encode(pixels, **({"lossless": True} | options))


FILES = {
    "stream": jxl(),
    "boxes": jxl(usecontainer=True),
    "lossy": jxl(lossless=False, distance=1.0),
    "lossy, boxes": jxl(lossless=False, distance=1.0, usecontainer=True),
    "from a JPEG": imagecodecs.jpegxl_encode_jpeg(JPEG, usecontainer=True),
}


def in_high_bits(bits: int) -> np.ndarray:
    return PIXELS.astype(np.uint16) << (bits - 8) | 3


KINDS = {
    "colour": (jxl(), PIXELS),
    "grey": (jxl(PIXELS[..., 0]), PIXELS[..., :1]),
    "alpha": (jxl(np.dstack([PIXELS, PIXELS[..., :1]])), PIXELS),
    "grey and alpha": (jxl(np.ascontiguousarray(PIXELS[..., :2])), PIXELS[..., :1]),
    "16 bits": (jxl(in_high_bits(16)), PIXELS),
    "10 bits": (jxl(in_high_bits(10), bitspersample=10), PIXELS),
    "16 bits, grey": (jxl(in_high_bits(16)[..., 0]), PIXELS[..., :1]),
    "4 bits": (jxl(PIXELS >> 4, bitspersample=4), (PIXELS >> 4) * 17),
    "animation": (jxl(np.stack([PIXELS, 255 - PIXELS])), PIXELS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels(kind):
    data, expected = KINDS[kind]
    found = decode(data)
    np.testing.assert_array_equal(found.pixels, np.broadcast_to(expected, PIXELS.shape))
    assert found.pixels.flags.c_contiguous and found.pixels.dtype == np.uint8
    assert (found.format, found.decoder) == ("JXL", f"imagecodecs {imagecodecs.__version__}")


SIZES = [(1, 1), (8, 8), (8, 16), (40, 30), (90, 60), (256, 256), (300, 400), (257, 513), (9, 2000), (9000, 3)]


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("boxed", [False, True])
def test_size_without_decoding(height, width, boxed, tmp_path):
    data = jxl(np.zeros((height, width, 3), np.uint8), usecontainer=boxed)
    assert jpegxl.read_header(data)[:2] == (width, height)
    (tmp_path / "a.jxl").write_bytes(data)
    assert header_size(tmp_path / "a.jxl") == (width, height)


def test_size_of_odd_headers():
    for pixels in (np.zeros((2, 30, 40, 4), np.uint16), np.zeros((30, 40, 2), np.uint8), np.zeros((30, 40), np.uint16)):
        header = jpegxl.read_header(jxl(pixels))
        assert (header.width, header.height, header.bits) == (40, 30, 8 * pixels.itemsize)


@pytest.mark.parametrize("name", FILES)
def test_too_large_before_anything_is_decoded(name, monkeypatch):
    monkeypatch.setattr(imagecodecs, "jpegxl_decode", None)
    monkeypatch.setattr(imagecodecs, "jpegxl_decode_jpeg", None)
    with pytest.raises(ImageError, match="has 90x60 pixels, more than the limit of 5399") as caught:
        decode(FILES[name], max_pixels=60 * 90 - 1)
    assert caught.value.code == "too_large"


@pytest.mark.parametrize("name", FILES)
def test_truncated(name):
    data = FILES[name]
    for length in (13, 20, 60, len(data) // 2, len(data) - 20, len(data) - 1):
        with pytest.raises(ImageError) as caught:
            decode(data[:length])
        assert caught.value.code == "damaged" and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_damage_raises_nothing_else(name):
    random = np.random.default_rng(0)
    for _ in range(100):
        changed = bytearray(FILES[name][: random.integers(1, len(FILES[name]) + 1)])
        for place in random.integers(0, len(changed), random.integers(1, 5)):
            changed[place] = random.integers(256)
        try:
            decode(bytes(changed), max_pixels=10**6)
        except ImageError:
            continue


@pytest.mark.parametrize(
    "name, condition",
    [("stream", "lossless"), ("boxes", "lossless"), ("lossy", "other-lossy"), ("lossy, boxes", "other-lossy")],
)
def test_condition(name, condition):
    encoding = read_encoding(FILES[name])
    assert (encoding.width, encoding.height, encoding.format) == (90, 60, "JXL")
    assert file_facts(encoding, decode(FILES[name]).pixels).condition == condition


def test_a_jpeg_comes_back(tmp_path):
    found = decode(FILES["from a JPEG"])
    np.testing.assert_array_equal(found.pixels, decode(JPEG).pixels)  # not turned
    assert found.file == JPEG and found.format == "JXL"
    assert found.decoder == f"{decode(JPEG).decoder} (JPEG by imagecodecs {imagecodecs.__version__})"


def test_pixels_of_a_jpeg_that_does_not_come_back():
    """As after a tool has taken out the EXIF data."""
    data = FILES["from a JPEG"]
    place = next(place for name, place in boxes.boxes(data) if name == b"brob")
    found = decode(data[: place.start - 8] + data[place.stop :])
    assert found.file is None and found.decoder.startswith("imagecodecs ")
    encoding = read_encoding(data[: place.start - 8] + data[place.stop :])
    assert file_facts(encoding, found.pixels).condition == "other-lossy"
    difference = found.pixels.astype(int) - decode(JPEG).pixels
    assert np.abs(difference).mean() < 2


@pytest.mark.parametrize("kind", [jpegxl._BLACK, jpegxl._SPOT_COLOUR, jpegxl._FILTER_ARRAY])
def test_channels_that_change_the_colours(kind, monkeypatch):
    header = jpegxl.read_header(FILES["stream"])._replace(channels=(kind,))
    monkeypatch.setattr(jpegxl, "read_header", lambda data: header)
    with pytest.raises(ImageError, match="the format JPEG XL with") as caught:
        decode(FILES["stream"])
    assert caught.value.code == "unsupported"


class Header:
    """Writes the header of a code stream, lowest bit first."""

    def __init__(self) -> None:
        self.value, self.length = 0, 0

    def put(self, *fields: tuple[int, int]) -> Header:
        """Add numbers, each with its count of bits."""
        for number, count in fields:
            self.value |= number << self.length
            self.length += count
        return self

    @property
    def data(self) -> bytes:
        return b"\xff\x0a" + self.value.to_bytes(-(-self.length // 8) + 1, "little")


SIZE = ((0, 1), (1, 2), (99, 13), (4, 3))  # 100 rows, and columns by the ratio 3 to 2
EXTRA = ((1, 1), (5, 3), (0, 1), (1, 1), (1, 1), (2, 2), (7, 5), (1, 3), (0, 1))  # orientation, and a preview
ALPHA = ((1, 1),)
SPOT = ((0, 1), (2, 2), (0, 4), (0, 1), (0, 2), (0, 2), (1, 2), (2, 4), (0x6261, 16), (0, 64))  # named "ab"
BLACK = ((0, 1), (2, 2), (2, 4), (0, 1), (3, 2), (11, 6), (0, 2), (0, 2))  # in 12 bits


def test_the_header_is_read_bit_by_bit():
    plain = Header().put(*SIZE, (0, 1), (0, 1), (0, 1), (1, 2), (1, 1), (1, 2), *ALPHA, (0, 1)).data
    assert jpegxl.read_header(plain) == (150, 100, 10, False, False, (jpegxl._ALPHA,))
    odd = Header().put(*SIZE, (0, 1), *EXTRA, (0, 1), (0, 2), (1, 1), (2, 2), (0, 4), *SPOT, *BLACK, (1, 1)).data
    found = jpegxl.read_header(odd)
    assert found == (150, 100, 8, False, True, (jpegxl._SPOT_COLOUR, jpegxl._BLACK))
    with pytest.raises(ImageError, match="the format JPEG XL with CMYK"):
        decode(odd)


def test_many_channels_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(imagecodecs, "jpegxl_decode", None)
    data = Header().put(*SIZE, (0, 1), (0, 1), (0, 1), (0, 2), (1, 1), (3, 2), (99, 12), *(100 * ALPHA), (0, 1)).data
    with pytest.raises(ImageError, match="JPEG XL with 100 channels besides colour") as caught:
        decode(data)
    assert caught.value.code == "unsupported"


def test_a_jpeg_far_longer_than_its_file_is_given_up():
    comment = b"\xff\xfe\xff\xff" + bytes(2**16 - 3)
    data = imagecodecs.jpegxl_encode_jpeg(JPEG[:2] + 50 * comment + JPEG[2:], usecontainer=True)
    assert len(data) < len(JPEG) + 10_000
    assert jpegxl.original_jpeg(data) is None and decode(data).file is None


def test_boxes_that_are_compressed_are_few(monkeypatch):
    asked = []
    monkeypatch.setattr(jpegxl, "uncompressed", lambda content, most: asked.append(most) or b"")
    data = jxl(noise(8, 8), usecontainer=True) + 100 * box(b"brob", b"xml " + bytes(9)) + box(b"brob", b"jumb")
    assert read_declaration(data, "JXL") is None and len(asked) == 8


def test_the_container_declares_before_the_jpeg_inside():
    from npr_model.imaging.views import View
    from npr_model.scoring.decoding import Decoder
    from npr_model.scoring.items import in_memory

    decoder = Decoder(View("native"), "m", 2)
    camera = encoded(PIXELS, "JPEG", exif=PHOTOGRAPH)
    for added, kind in ((b"", "camera"), (box(b"xml ", XMP), "generated")):
        data = imagecodecs.jpegxl_encode_jpeg(camera, usecontainer=True) + added
        row = decoder.decode(in_memory("a", data)).row
        assert (row.declared, row.condition, row.format) == (kind, "jpeg-below-90", "JXL")


def test_floating_point():
    with pytest.raises(ImageError, match="no agreed range") as caught:
        decode(jxl((PIXELS / 255).astype(np.float32)))
    assert caught.value.code == "unsupported"


@pytest.mark.parametrize("name", FILES)
def test_without_the_library(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImageError, match=r"needs imagecodecs: pip install 'npr-kernels\[jxl\]'") as caught:
        decode(FILES[name])
    assert caught.value.code == "unsupported"
    assert read_encoding(FILES[name]).width == 90


def box(name: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4, "big") + name + content


PHOTOGRAPH = Image.Exif()
PHOTOGRAPH[0x010F], PHOTOGRAPH[0x0110], PHOTOGRAPH[0x8769] = "Canon", "Canon EOS R5", {0x829A: 0.01}
CAMERA = bytes(4) + PHOTOGRAPH.tobytes().removeprefix(b"Exif\0\0")
XMP = b'<x:xmpmeta xmp:CreatorTool="Midjourney"/>'


@pytest.mark.parametrize(
    "added, kind",
    [
        (box(b"Exif", CAMERA), "camera"),
        (box(b"brob", b"Exif" + imagecodecs.brotli_encode(CAMERA)), "camera"),
        (box(b"xml ", XMP), "generated"),
        (box(b"brob", b"xml " + imagecodecs.brotli_encode(XMP)), "generated"),
        (box(b"brob", b"xml " + imagecodecs.brotli_encode(XMP + bytes(2**21))), None),
        (box(b"brob", b"xml " + b"damaged"), None),
        (b"", None),
    ],
)
def test_what_it_declares(added, kind):
    found = read_declaration(jxl(noise(8, 8), usecontainer=True) + added, "JXL")
    assert (found and found.kind) == kind

"""Decoding by one rule for every mode, and equal pixels from both decoders."""

from __future__ import annotations

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from npr_model.imaging.decode import decode
from npr_model.imaging.errors import ImageError
from tests.model.conftest import encoded, noise
from tests.model.imaging.files import jpeg_claiming, png16, png_claiming, smooth


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


JPEG_KINDS = {
    "444": {"subsampling": "4:4:4"},
    "422": {"subsampling": "4:2:2"},
    "420": {"subsampling": "4:2:0"},
    "progressive 420": {"subsampling": "4:2:0", "progressive": True},
    "progressive 444": {"subsampling": "4:4:4", "progressive": True},
    "restart markers": {"restart_marker_blocks": 1},
    "restart rows": {"restart_marker_rows": 1, "subsampling": "4:2:2"},
    "optimised": {"optimize": True},
    "rgb": {"keep_rgb": True},
}


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (17, 16), (33, 31), (64, 96), (1, 40), (41, 1)], ids=str)
@pytest.mark.parametrize("kind", [*JPEG_KINDS, "grey", "440", "411"])
def test_simplejpeg_gives_the_pixels_of_pillow(kind, size):
    for pixels in (noise(*size), smooth(*size)):
        for quality in (30, 75, 100):
            if kind in JPEG_KINDS:
                data = encoded(pixels, "JPEG", quality=quality, **JPEG_KINDS[kind])
            elif kind == "grey":
                data = encoded(Image.fromarray(pixels).convert("L"), "JPEG", quality=quality)
            else:
                data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, colorsubsampling=kind)
            decoded = decode(data)
            assert decoded.decoder == f"simplejpeg {simplejpeg.__version__}"
            assert decoded.format == "JPEG"
            np.testing.assert_array_equal(decoded.pixels, pillow(data))


def test_simplejpeg_gives_the_pixels_of_pillow_on_photographs(shared):
    files = sorted((shared / "data/validation/exif_samples/0_real").iterdir())
    data = [path.read_bytes() for path in files if path.stat().st_size < 2**20][:12]
    assert len(data) == 12
    for content in data:
        np.testing.assert_array_equal(decode(content).pixels, pillow(content))


def test_cmyk_jpeg_goes_through_pillow():
    data = encoded(Image.fromarray(smooth(20, 30)).convert("CMYK"), "JPEG")
    decoded = decode(data)
    assert decoded.decoder.startswith("pillow ")
    np.testing.assert_array_equal(decoded.pixels, pillow(data))


def test_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    decoded = decode(encoded(noise(20, 30), "JPEG", exif=exif.tobytes()))
    assert (decoded.width, decoded.height) == (30, 20)


def with_alpha(mode: str) -> tuple[Image.Image, np.ndarray]:
    pixels = noise(8, 8)
    alpha = Image.fromarray(noise(8, 8, seed=1)[..., 0])
    if mode == "LA":
        grey = Image.fromarray(pixels[..., 0])
        return Image.merge("LA", (grey, alpha)), pixels[..., :1].repeat(3, 2)
    image = Image.fromarray(pixels)
    image.putalpha(alpha)
    return image, pixels


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_and_colours_stay(mode):
    image, expected = with_alpha(mode)
    np.testing.assert_array_equal(decode(encoded(image)).pixels, expected)


@pytest.mark.parametrize("transparency", [0, bytes(range(0, 256, 2)) * 2])
def test_palette_and_its_transparency(transparency):
    palette = noise(1, 256, seed=2)[0]
    indices = noise(16, 16)[..., 0]
    image = Image.fromarray(indices).convert("L")
    image.putpalette(palette.tobytes())
    decoded = decode(encoded(image, transparency=transparency))
    np.testing.assert_array_equal(decoded.pixels, palette[indices])


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 3)], ids=["grey", "rgb"])
def test_16_bit_png_keeps_the_high_byte(shape):
    samples = np.random.default_rng(0).integers(0, 2**16, shape)
    expected = (samples >> 8).astype(np.uint8)
    expected = expected if len(shape) == 3 else np.stack([expected] * 3, axis=2)
    np.testing.assert_array_equal(decode(png16(samples)).pixels, expected)


@pytest.mark.parametrize("format", ["TIFF", "PPM"])
def test_16_bit_grey_of_other_formats_keeps_the_high_byte(format):
    samples = np.random.default_rng(0).integers(0, 2**16, (6, 7), dtype=np.uint16)
    pixels = decode(encoded(Image.fromarray(samples), format)).pixels
    np.testing.assert_array_equal(pixels, np.stack([samples >> 8] * 3, axis=2))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation_counts(format):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    options = {"lossless": True} if format == "WEBP" else {}
    decoded = decode(encoded(frames[0], format, save_all=True, append_images=frames[1:], **options))
    assert decoded.format == format
    np.testing.assert_array_equal(decoded.pixels, np.full((6, 8, 3), (255, 0, 0), np.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_plain_modes(mode):
    image = Image.fromarray(noise(9, 5)).convert(mode)
    decoded = decode(encoded(image))
    np.testing.assert_array_equal(decoded.pixels, np.asarray(image.convert("RGB")))
    assert decoded.pixels.flags.c_contiguous and decoded.pixels.dtype == np.uint8


JPEG = encoded(noise(64, 64), "JPEG")
BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"not an image, but text\n" * 9, "not an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "jpeg signature only": (b"\xff\xd8\xff", "truncated"),
    "jpeg cut in the header": (JPEG[:200], "truncated"),
    "jpeg cut in half": (JPEG[: len(JPEG) // 2], "truncated"),
    "jpeg cut, end marker appended": (JPEG[: len(JPEG) // 2] + b"\xff\xd9", "truncated"),
    "progressive jpeg cut": (encoded(noise(64, 64), "JPEG", progressive=True)[:-300], "truncated"),
    "cmyk jpeg cut": (encoded(Image.new("CMYK", (64, 64)), "JPEG")[:-100], "truncated"),
    "png cut": (encoded(noise(64, 64))[:5000], "truncated"),
    "gif cut": (encoded(noise(64, 64), "GIF")[:1000], "truncated"),
    "webp cut": (encoded(noise(64, 64), "WEBP")[:1000], "truncated"),
    "tiff cut": (encoded(noise(64, 64), "TIFF")[:1000], "truncated"),
    "enormous png": (png_claiming(100_000, 100_000), "has 100000x100000 pixels, more than the limit"),
    "enormous jpeg": (jpeg_claiming(65_000, 65_000), "has 65000x65000 pixels, more than the limit"),
    "png of width zero": (png_claiming(0, 9), ""),
    "32-bit integers": (encoded(Image.new("I", (4, 4)), "TIFF"), "no agreed range"),
    "floating point": (encoded(Image.new("F", (4, 4)), "TIFF"), "no agreed range"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_one_clear_line(name, recwarn):
    data, message = BAD[name]
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [warning for warning in recwarn if "bomb" in str(warning.message).lower()]


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_pixel_limit_is_the_callers(format):
    data = encoded(noise(10, 10), format)
    assert decode(data, max_pixels=100).pixels.shape == (10, 10, 3)
    with pytest.raises(ImageError, match="has 10x10 pixels, more than the limit of 99"):
        decode(data, max_pixels=99)


def test_pillows_own_limit_is_left_as_it_was_and_does_not_bind(monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode(encoded(noise(10, 10))).width == 10
    assert Image.MAX_IMAGE_PIXELS == 10
    assert len(recwarn) == 0


def test_the_first_picture_of_an_mpo():
    first, second = (Image.fromarray(noise(40, 56, seed)) for seed in range(2))
    file, plain = io.BytesIO(), io.BytesIO()
    first.save(file, "MPO", save_all=True, append_images=[second], quality=95)
    first.save(plain, "JPEG", quality=95)
    found = decode(file.getvalue())
    assert found.format == "MPO" and decode(plain.getvalue()).format == "JPEG"
    np.testing.assert_array_equal(found.pixels, decode(plain.getvalue()).pixels)

"""Perturbations do to pixels what their texts say."""

from __future__ import annotations

import io
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from npr_model.errors import InputError
from npr_model.imaging import nvimagecodec, perturbations
from npr_model.imaging.decode import decode
from npr_model.imaging.encode import encode_jpeg
from npr_model.imaging.errors import ImageError
from npr_model.imaging.perturbations import Perturbation
from tests.model.conftest import encoded, noise

PIXELS = np.asarray(Image.fromarray(noise(40, 52)).filter(ImageFilter.GaussianBlur(2)))


def perturbed(text: str, data: bytes | None = None) -> np.ndarray:
    return decode(Perturbation.parse(text).apply(data or encoded(PIXELS))).pixels


def pillow(pixels: np.ndarray, format: str, **options) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded(pixels, format, **options))))


CASES = {
    "png": PIXELS,
    "jpeg:70": decode(encode_jpeg(PIXELS, 70)).pixels,
    "webp:60": pillow(PIXELS, "WEBP", quality=60, method=2),
    "resize:0.5": np.asarray(Image.fromarray(PIXELS).resize((26, 20), Image.Resampling.BILINEAR)),
    "blur:1.5": np.asarray(Image.fromarray(PIXELS).filter(ImageFilter.GaussianBlur(1.5))),
    "offset:1,0": PIXELS[1:],
    "offset:2,3": PIXELS[2:, 3:],
    "decoder:fast": PIXELS,  # a PNG knows no chroma to repeat
}


@pytest.mark.parametrize("text", CASES)
def test_pixels(text):
    np.testing.assert_array_equal(perturbed(text), CASES[text])


def test_steps_follow_each_other():
    once = perturbed("resize:0.5")
    np.testing.assert_array_equal(perturbed("resize:0.5+jpeg:90"), perturbed("jpeg:90", encoded(once)))
    np.testing.assert_array_equal(perturbed("offset:1,1+resize:2+png"), perturbed("resize:2", encoded(PIXELS[1:, 1:])))


def test_format_is_that_of_the_last_codec():
    formats = {text: decode(Perturbation.parse(text).apply(encoded(PIXELS))).format for text in CASES}
    assert formats.pop("jpeg:70") == "JPEG" and formats.pop("webp:60") == "WEBP" and set(formats.values()) == {"PNG"}


def test_decoders_of_a_jpeg():
    data = encoded(PIXELS, "JPEG", quality=90)
    np.testing.assert_array_equal(perturbed("decoder:pillow", data), perturbed("decoder:simplejpeg", data))
    assert (perturbed("decoder:fast", data) != perturbed("png", data)).mean() > 0.1  # chroma repeated, another DCT
    cmyk = encoded(Image.fromarray(PIXELS).convert("CMYK"), "JPEG")
    np.testing.assert_array_equal(perturbed("decoder:fast", cmyk), perturbed("png", cmyk))


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg", "fast"])
def test_every_decoder_takes_what_decode_takes(decoder):
    """A short JFIF segment stops Pillow, an unknown transform and a missing end marker stop simplejpeg."""
    data = encode_jpeg(PIXELS, 90)
    for segment in (b"\xff\xe0\0\x08JFIF\0\1", b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x07"):
        odd = data[:2] + segment + data[2:-2]
        assert perturbed(f"decoder:{decoder}", odd).shape == PIXELS.shape


def test_nvimagecodec_decodes_by_the_rules():
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed")
    most = 0 if not torch.cuda.is_available() else 4  # a GPU's inverse DCT rounds in its own way
    turned = Image.Exif()
    turned[0x0112] = 6
    grey = Image.fromarray(PIXELS).convert("L")
    for data in (
        *(encoded(PIXELS, "JPEG", quality=90, subsampling=chroma) for chroma in ("4:4:4", "4:2:2", "4:2:0")),
        encoded(PIXELS, "JPEG", progressive=True, exif=turned),
        encoded(grey, "JPEG"),
    ):
        found, expected = (pixels.astype(int) for pixels in (nvimagecodec.decode(data), decode(data).pixels))
        assert found.shape == expected.shape and abs(found - expected).max() <= most
    with pytest.raises(ImageError):
        nvimagecodec.decode(b"\xff\xd8\xff no JPEG")


def test_nvimagecodec_says_how_to_have_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    with pytest.raises(InputError, match=r"decoder:nvimagecodec needs nvImageCodec \(pip install nvidia-nvimgcodec"):
        Perturbation.parse("decoder:nvimagecodec+jpeg:90")
    monkeypatch.setitem(sys.modules, "nvidia", types.ModuleType("nvidia"))
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", types.ModuleType("nvidia.nvimgcodec"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="needs a GPU"):
        Perturbation.parse("decoder:nvimagecodec")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "jpeg",
        "jpeg:0",
        "jpeg:101",
        "jpeg:x",
        "jpeg:90.5",
        "jpeg:nan",
        "webp",
        "png:3",
        "resize:0",
        "resize:-1",
        "blur:0",
        "offset:1",
        "offset:-1,0",
        "offset:0.5,0",
        "decoder:gpu",
        "sharpen:1",
        "jpeg:90+",
        "jpeg:9+decoder:fast",
    ],
)
def test_bad_text(text):
    with pytest.raises(InputError, match=r"unknown (perturbation|codec)|the decoder must come first"):
        Perturbation.parse(text)


@pytest.mark.parametrize("text", ["resize:0.5", "jpeg:90+jpeg:80", "decoder:fast", "jpeg:80-90"])
def test_not_a_codec(text):
    with pytest.raises(InputError, match=r"unknown codec .*: use png"):
        perturbations.codec(text)


def test_nothing_left():
    with pytest.raises(ImageError, match="smaller than one cell"):
        Perturbation.parse("offset:40,0").apply(encoded(PIXELS))

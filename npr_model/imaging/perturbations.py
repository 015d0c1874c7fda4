"""Changes to images, as text: codecs, resizing, blur, cropping, another decoder.

Steps are joined by "+" and run from left to right: "resize:0.5+jpeg:90". The result is a PNG, which adds nothing,
unless the last step is a codec: then the result is that codec's file.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from npr_model.errors import InputError
from npr_model.imaging import codecs, nvimagecodec
from npr_model.imaging.codecs import Codec
from npr_model.imaging.decode import decode
from npr_model.imaging.filters import gaussian_blur, resize
from npr_model.imaging.formats import jpeg
from npr_model.imaging.views import check_cell

USAGE = (
    "png, jpeg:QUALITY, webp:QUALITY, resize:FACTOR, blur:SIGMA, offset:ROWS,COLUMNS or "
    "decoder:pillow|simplejpeg|fast|nvimagecodec; several joined by +, as in resize:0.5+jpeg:90"
)
DECODERS = ("pillow", "simplejpeg", "fast", "nvimagecodec")


@dataclass(frozen=True)
class Step:
    """One step, such as "jpeg:90".

    Attributes:
        kind: One of the kinds below.
        values: The numbers behind the colon.
        decoder, codec: The decoder or codec, for these kinds.

    Kinds:
        png, jpeg:Q, webp:Q: Encode and decode, with 4:2:0 chroma if lossy.
        resize:FACTOR: Bilinear with antialiasing.
        blur:SIGMA: Gaussian, sigma in pixels.
        offset:ROWS,COLUMNS: Cut rows off the top and columns off the left; odd numbers move the cells.
        decoder:NAME: Decode JPEG files with another decoder; other formats as usual. "fast" repeats chroma by nearest
            neighbour and uses the fast DCT, as hardware decoders may. "nvimagecodec" is NVIDIA's, on a GPU
            (:mod:`npr_model.imaging.nvimagecodec`).
    """

    kind: str
    values: tuple[float, ...] = ()
    decoder: str | None = None
    codec: Codec | None = None

    @classmethod
    def parse(cls, text: str) -> Step:
        """Parse the text of one step. Raises InputError."""
        kind, _, rest = text.partition(":")
        if kind == "decoder" and rest in DECODERS:
            if rest == "nvimagecodec":
                nvimagecodec.check_available()
            return cls(kind, decoder=rest)
        if kind in codecs.NAMES:
            return cls(kind, codec=Codec.parse(text))
        try:
            values = tuple(float(part) for part in rest.split(",") if rest)
        except ValueError:
            values = (math.nan,)
        allowed: dict[str, Callable[..., bool]] = {
            "resize": lambda factor: 0.05 <= factor <= 20,
            "blur": lambda sigma: 0 < sigma <= 100,
            "offset": lambda rows, columns: {rows, columns} <= set(range(64)),
        }
        try:
            if allowed[kind](*values):
                return cls(kind, values)
        except (KeyError, TypeError):  # unknown kind, or the wrong number of values
            pass
        raise InputError(f"unknown perturbation {text!r}: use {USAGE}")

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Apply to (H, W, 3) uint8 pixels; returns (H', W', 3) uint8."""
        height, width = pixels.shape[:2]
        if self.codec:
            return decode(self.codec.encode(pixels)).pixels
        if self.kind == "resize":
            return resize(pixels, *(max(1, round(side * self.values[0])) for side in (height, width)))
        if self.kind == "blur":
            return gaussian_blur(pixels, self.values[0])
        if self.kind == "offset":
            rows, columns = map(int, self.values)
            check_cell(pixels[rows:, columns:], 1)
            return np.ascontiguousarray(pixels[rows:, columns:])
        return pixels  # kind "decoder": done when the file was read


@dataclass(frozen=True)
class Perturbation:
    """Steps that run one after another; ``text`` is what they were parsed from."""

    text: str
    steps: tuple[Step, ...]

    @classmethod
    def parse(cls, text: str) -> Perturbation:
        """Parse steps joined by "+". Raises InputError."""
        steps = tuple(Step.parse(part.strip()) for part in text.split("+"))
        if any(step.kind == "decoder" for step in steps[1:]):
            raise InputError(f"in {text!r} the decoder must come first: it reads the file")
        return cls(text, steps)

    def apply(self, data: bytes, prepare: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels) -> bytes:
        """Turn one image file into another. ``prepare`` is applied to the decoded pixels first. Raises ImageError."""
        pixels = prepare(_decode(data, self.steps[0].decoder))
        for step in self.steps[:-1]:
            pixels = step.apply(pixels)
        last = self.steps[-1]
        return last.codec.encode(pixels) if last.codec else Codec().encode(last.apply(pixels))


def codec(text: str) -> Perturbation:
    """Parse a single codec, that both classes are to go through. Raises InputError."""
    parsed = Codec.parse(text)
    return Perturbation(text, (Step(parsed.name, codec=parsed),))


def _decode(data: bytes, decoder: str | None) -> np.ndarray:
    decoded = decode(data)
    if decoder is None or not (decoded.decoder or "").startswith("simplejpeg"):  # Pillow also decodes CMYK and the like
        return decoded.pixels
    data = jpeg.plain(data)  # without the oddities that only decode() takes
    if decoder == "nvimagecodec":
        return nvimagecodec.decode(data)
    if decoder == "pillow":
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return simplejpeg.decode_jpeg(data, fastdct=decoder == "fast", fastupsample=decoder == "fast")

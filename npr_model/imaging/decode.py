"""From encoded bytes to pixels, and the views of them that the network is given: one rule for train, evaluate, screen.

The detector reads traces that a decoder or a converter could make or wipe out, so every mode has one rule:

- EXIF orientation is not applied: a rotation by 90 degrees moves the cells.
- Alpha is dropped, never blended, also that of a palette; hidden colours count as they are stored.
- Palette, grey, black-and-white, CMYK, YCbCr and Lab become RGB as Pillow's ``convert("RGB")`` makes them; embedded
  colour profiles are ignored.
- 16-bit samples keep their high byte (``value >> 8``). 32-bit and floating point pixels have no agreed range: an error.
- Of an animation or a file of many pages the first frame counts.
- What is truncated or damaged is an error; pixels that a decoder made up are never scored.

Plain 8-bit grey, YCbCr and RGB JPEGs go through simplejpeg, which is faster and whose pixels equal Pillow's bit for bit
(tested); all else through Pillow.
"""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import PIL
import simplejpeg
from PIL import Image

from npr_model.errors import InputError, reason
from npr_model.imaging.limits import MAX_PIXELS

# Pillow also opens formats that call other programs (EPS runs Ghostscript) or hold no photographs; these are refused.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
_SIMPLEJPEG = f"simplejpeg {simplejpeg.__version__}"
_PILLOW = f"pillow {PIL.__version__}"
_open_lock = threading.Lock()


class ImageError(InputError):
    """An image that cannot be decoded, or not be viewed as asked; the message is one line without the file's name.

    ``code``: empty, not_an_image, unsupported, damaged, too_large or too_small.
    """

    def __init__(self, message: str, code: str = "damaged") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class DecodedImage:
    """``pixels``: (H, W, 3) uint8, contiguous. ``format``: as Pillow names it. ``decoder``: with its version.

    Both names are None for pixels that come from no file.
    """

    pixels: np.ndarray
    format: str | None
    decoder: str | None

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        return self.pixels.shape[0]


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode by the module's rules. Raises ImageError, also (before decoding) for more than ``max_pixels`` pixels."""
    if not data:
        raise ImageError("the file is empty", "empty")
    if data[:3] == b"\xff\xd8\xff":
        pixels = _decode_jpeg(data, max_pixels)
        if pixels is not None:
            return DecodedImage(pixels, "JPEG", _SIMPLEJPEG)
    return _decode_pillow(data, max_pixels)


def _decode_jpeg(data: bytes, max_pixels: int) -> np.ndarray | None:
    """The pixels of a plain JPEG; None for one that is left to Pillow: CMYK, 12 bit, odd sampling, bad header."""
    try:
        height, width, colourspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colourspace not in ("YCbCr", "RGB", "Gray"):
        return None
    check_size(width, height, max_pixels)
    try:
        return simplejpeg.decode_jpeg(data)
    except ValueError as error:
        # Pillow fills in what is missing here without a word, if the damaged file has an end marker.
        if "premature end" in str(error).lower() or "corrupt" in str(error).lower():
            raise ImageError(f"the JPEG is truncated or damaged ({reason(error)})") from error
        return None


def _decode_pillow(data: bytes, max_pixels: int) -> DecodedImage:
    try:
        with open_image(io.BytesIO(data)) as image:
            check_size(image.width, image.height, max_pixels)
            name = image.format
            pixels = np.array(_to_rgb(image))
    except ImageError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise ImageError("not an image, or of a format that is not supported", "not_an_image") from error
    except Exception as error:  # a damaged file leads Pillow's readers to whatever exception they run into
        raise ImageError(f"the image is truncated, damaged or not supported ({reason(error)})") from error
    return DecodedImage(pixels, name, _PILLOW)


def from_pillow(image: Image.Image) -> DecodedImage:
    """The current frame of an image that Pillow has opened, converted by the module's rules. Raises ImageError."""
    try:
        return DecodedImage(np.array(_to_rgb(image)), image.format, _PILLOW)
    except ImageError:
        raise
    except Exception as error:  # as above: Pillow decodes only now
        raise ImageError(f"the image is truncated, damaged or not supported ({reason(error)})") from error


def open_image(file: BinaryIO) -> Image.Image:
    """Open without Pillow's own pixel limit, of which it warns or raises; ours is checked next, before decoding."""
    Image.init()
    with _open_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN])
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _to_rgb(image: Image.Image) -> Image.Image:
    """The first frame in mode RGB, by the module's rules."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(
            f"pixels of mode {image.mode!r} (32 bits) have no agreed range; convert the file to 8 bits", "unsupported"
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours, but Pillow warns of the direct way
    return image.convert("RGB")


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise ImageError for an image without pixels, or with more than ``max_pixels``."""
    if width < 1 or height < 1:
        raise ImageError(f"the image has no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise ImageError(f"the image claims {width}x{height} pixels, more than the limit of {max_pixels}", "too_large")

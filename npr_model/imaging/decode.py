"""From encoded bytes to pixels: one rule for training, evaluation and screening.

The detector reads traces that a decoder or converter could create or remove. So there is one rule for each case:

- EXIF orientation is not applied: rotation by 90 degrees moves the cells.
- Alpha is dropped, never blended, also in palettes. Hidden colours are used as stored.
- Palette, grey, black-and-white, CMYK, YCbCr and Lab become RGB by Pillow's ``convert("RGB")``. Embedded colour
  profiles are ignored.
- 16-bit samples keep their high byte (``value >> 8``). 32-bit and float pixels have no agreed range: they are errors.
- The first frame of an animation, or page of a document, is used.
- Truncated and damaged files are errors. Pixels that a decoder made up are never scored.

Plain 8-bit grey, YCbCr and RGB JPEGs are decoded by simplejpeg, which is faster; its pixels equal Pillow's bit for bit
(tested). Everything else is decoded by Pillow.
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

# Refused are formats for which Pillow calls other programs (EPS runs Ghostscript) and those without photographs.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
_SIMPLEJPEG = f"simplejpeg {simplejpeg.__version__}"
_PILLOW = f"pillow {PIL.__version__}"
_open_lock = threading.Lock()


class ImageError(InputError):
    """An image that cannot be decoded or viewed. The message does not name the file.

    ``code``: empty, not_an_image, unsupported, damaged, too_large or too_small.
    """

    def __init__(self, message: str, code: str = "damaged") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class DecodedImage:
    """Pixels with the names of the file format (Pillow's) and of the decoder (with its version).

    ``pixels``: (H, W, 3) uint8, contiguous. The names are None for pixels that do not come from a file.
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
    """Decode by the rules above. Raises ImageError; more than ``max_pixels`` pixels are refused before decoding."""
    if not data:
        raise ImageError("the file is empty", "empty")
    if data[:3] == b"\xff\xd8\xff":
        pixels = _decode_jpeg(data, max_pixels)
        if pixels is not None:
            return DecodedImage(pixels, "JPEG", _SIMPLEJPEG)
    return _decode_pillow(data, max_pixels)


def _decode_jpeg(data: bytes, max_pixels: int) -> np.ndarray | None:
    """Pixels of a plain JPEG; None if Pillow must decode it: CMYK, 12 bit, unusual sampling, bad header."""
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
        # Pillow silently makes up the missing pixels if the damaged file has an end marker.
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
        raise ImageError("not an image, or an unsupported format", "not_an_image") from error
    except Exception as error:  # a damaged file can make Pillow's readers raise anything
        raise ImageError(f"the image is truncated, damaged or not supported ({reason(error)})") from error
    return DecodedImage(pixels, name, _PILLOW)


def from_pillow(image: Image.Image) -> DecodedImage:
    """Convert the current frame of an open Pillow image by the rules above. Raises ImageError."""
    try:
        return DecodedImage(np.array(_to_rgb(image)), image.format, _PILLOW)
    except ImageError:
        raise
    except Exception as error:  # Pillow decodes only now, and can raise anything
        raise ImageError(f"the image is truncated, damaged or not supported ({reason(error)})") from error


def open_image(file: BinaryIO) -> Image.Image:
    """Open without Pillow's own pixel limit, which warns or raises; the caller checks ours before decoding."""
    Image.init()
    with _open_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN])
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert the first frame to RGB by the rules above."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(
            f"pixels of mode {image.mode!r} (32 bits) have no agreed range; convert the file to 8 bits", "unsupported"
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; converting directly makes Pillow warn
    return image.convert("RGB")


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise ImageError for an image without pixels, or with more than ``max_pixels``."""
    if width < 1 or height < 1:
        raise ImageError(f"the image has no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise ImageError(f"the image has {width}x{height} pixels, more than the limit of {max_pixels}", "too_large")

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
import os
import re
import threading
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import PIL
import simplejpeg
from PIL import Image, JpegImagePlugin

from npr_model.errors import InputError, reason

MAX_PIXELS = 178_956_970  # where Pillow, too, refuses an image as a decompression bomb
MAX_SIDE = 13_377  # of a view: its square has no more pixels than that

# Pillow also opens formats that call other programs (EPS runs Ghostscript) or hold no photographs; these are refused.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
_SIMPLEJPEG = f"simplejpeg {simplejpeg.__version__}"
_PILLOW = f"pillow {PIL.__version__}"
_SUBSAMPLING = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}  # Pillow's numbers; other kinds are rare
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
    """``pixels``: (H, W, 3) uint8, contiguous. ``format`` as Pillow names it; ``decoder`` with its version."""

    pixels: np.ndarray
    format: str
    decoder: str

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


def header_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) that the file's header claims, without decoding it. Raises ImageError."""
    try:
        with open(path, "rb") as file, _open(file) as image:
            _check_size(image.width, image.height, MAX_PIXELS)
            return image.size
    except ImageError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise ImageError("not an image, or of a format that is not supported", "not_an_image") from error
    except OSError as error:
        raise ImageError(f"the file cannot be read ({reason(error)})") from error
    except Exception as error:  # as in decoding: whatever Pillow's readers run into
        raise ImageError(f"the image is damaged or not supported ({reason(error)})") from error


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """(H, W, 3) uint8 as a JPEG with 4:2:0 chroma, the commonest kind; ``quality`` is libjpeg's, 1 to 100."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, colorsubsampling="420")


def encode_webp(pixels: np.ndarray, quality: int) -> bytes:
    """(H, W, 3) uint8 as a lossy WebP, whose chroma is always 4:2:0; ``quality`` is libwebp's, 1 to 100."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "WEBP", quality=quality, method=2)
    return buffer.getvalue()


def encode_png(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as a PNG, lightly compressed."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@dataclass(frozen=True)
class Encoding:
    """Size and lossy codec of a file, as far as its header tells; ``format`` as Pillow names it, MPO counts as JPEG.

    ``quantization``: the tables of a JPEG, in Pillow's order, and ``subsampling`` its chroma's ("4:2:0", ...). A lossy
    WebP does not tell its quality. All other formats count as lossless.
    """

    width: int
    height: int
    quantization: tuple[tuple[int, ...], ...] | None = None
    subsampling: str | None = None
    lossy_webp: bool = False
    format: str = ""


def read_encoding(file: str | os.PathLike | bytes) -> Encoding:
    """Read the header of a file, or of its bytes. Raises ImageError."""
    try:
        with io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as file, _open(file) as image:
            if image.format in ("JPEG", "MPO"):
                tables = [tuple(image.quantization[number]) for number in sorted(image.quantization)][:2]
                subsampling = _SUBSAMPLING.get(JpegImagePlugin.get_sampling(image), "4:4:4")
                return Encoding(image.width, image.height, (tables[0], tables[-1]), subsampling, format="JPEG")
            file.seek(0)
            lossy_webp = image.format == "WEBP" and b"VP8 " in file.read(2**16)
            return Encoding(image.width, image.height, lossy_webp=lossy_webp, format=image.format)
    except Exception as error:  # a damaged file leads Pillow's readers to whatever exception they run into
        raise ImageError(f"the header cannot be read ({reason(error)})") from error


def encoded_as(pixels: np.ndarray, encoding: Encoding) -> np.ndarray:
    """(H, W, 3) uint8 after the codec of another file: its JPEG tables and subsampling, or a WebP of quality 80."""
    if encoding.lossy_webp:
        return decode(encode_webp(pixels, 80)).pixels
    if encoding.quantization is None:
        return pixels
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.save(buffer, "JPEG", qtables=encoding.quantization, subsampling=encoding.subsampling)
    return decode(buffer.getvalue()).pixels


def _decode_jpeg(data: bytes, max_pixels: int) -> np.ndarray | None:
    """The pixels of a plain JPEG; None for one that is left to Pillow: CMYK, 12 bit, odd sampling, bad header."""
    try:
        height, width, colourspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colourspace not in ("YCbCr", "RGB", "Gray"):
        return None
    _check_size(width, height, max_pixels)
    try:
        return simplejpeg.decode_jpeg(data)
    except ValueError as error:
        # Pillow fills in what is missing here without a word, if the damaged file has an end marker.
        if "premature end" in str(error).lower() or "corrupt" in str(error).lower():
            raise ImageError(f"the JPEG is truncated or damaged ({reason(error)})") from error
        return None


def _decode_pillow(data: bytes, max_pixels: int) -> DecodedImage:
    try:
        with _open(io.BytesIO(data)) as image:
            _check_size(image.width, image.height, max_pixels)
            name = image.format
            pixels = np.array(_to_rgb(image))
    except ImageError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise ImageError("not an image, or of a format that is not supported", "not_an_image") from error
    except Exception as error:  # a damaged file leads Pillow's readers to whatever exception they run into
        raise ImageError(f"the image is truncated, damaged or not supported ({reason(error)})") from error
    return DecodedImage(pixels, name, _PILLOW)


def _open(file: BinaryIO) -> Image.Image:
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


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"the image has no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise ImageError(f"the image claims {width}x{height} pixels, more than the limit of {max_pixels}", "too_large")


@dataclass(frozen=True)
class View:
    """Which pixels of an image the network is given.

    - ``native``: all of them, as they are (the network trims odd edges).
    - ``crop:S``: the central S x S; a side shorter than S stays whole, no pixel is made up.
    - ``resize:S``: bilinear (with Pillow's antialiasing) to S x S, as the paper does with 256. It wipes out most of the
      traces that NPR looks for in images much larger than S.
    - ``tile:S``: images smaller than S are repeated side by side, then ``crop:S`` (the "translate duplicate" of the
      authors' code). They are trimmed to whole cells first, so that every copy starts on a cell.

    A crop begins at a multiple of the grid size: up-sampling lays its traces from the image's top-left corner in steps
    of two, and an odd offset would pair pixels across the cells in which the detector learned to see them.
    """

    kind: str
    size: int | None = None

    KINDS = ("native", "crop", "resize", "tile")

    def __post_init__(self) -> None:
        sized = self.kind != "native"
        if self.kind not in self.KINDS or sized != (self.size is not None) or (sized and self.size < 2):
            raise ImageError(f"no view {str(self)!r}; give native, or crop:S, resize:S or tile:S, as in crop:256")
        if sized and self.size > MAX_SIDE:
            raise ImageError(f"no view {str(self)!r}: the size is {MAX_SIDE} at most")

    def __str__(self) -> str:
        return self.kind if self.size is None else f"{self.kind}:{self.size}"

    @classmethod
    def parse(cls, text: str) -> View:
        """From its text, such as "native" or "crop:256". Raises ImageError."""
        kind, colon, size = text.partition(":")
        if colon and not re.fullmatch("[0-9]{1,9}", size):
            raise ImageError(f"view {text!r} has no size; write it as in crop:256")
        return cls(kind, int(size) if colon else None)

    def apply(self, pixels: np.ndarray, grid_size: int = 2) -> np.ndarray:
        """(H, W, 3) uint8 to (H', W', 3) uint8; raises ImageError where not one cell is left."""
        check_cell(pixels, grid_size)
        if self.kind == "resize":
            pixels = np.asarray(Image.fromarray(pixels).resize((self.size, self.size), Image.Resampling.BILINEAR))
        if self.kind == "tile":
            pixels = tile(pixels, self.size, grid_size)
        if self.kind in ("crop", "tile"):
            top, left = (max(0, side - self.size) // 2 // grid_size * grid_size for side in pixels.shape[:2])
            pixels = pixels[top : top + self.size, left : left + self.size].copy()  # lets go of the rest
        check_cell(pixels, grid_size)
        return pixels


def tile(pixels: np.ndarray, size: int, grid_size: int = 2) -> np.ndarray:
    """Repeat along each side shorter than ``size`` until it is not; a side repeated is first trimmed to whole cells.

    (H, W, 3) of at least one cell to (H', W', 3).
    """
    for axis in (0, 1):
        side = pixels.shape[axis]
        if side < size:
            side -= side % grid_size
            index = np.arange(-(-size // side) * side) % side
            pixels = pixels.take(index, axis)
    return pixels


def check_cell(pixels: np.ndarray, grid_size: int) -> None:
    """Raise ImageError for an image that has not one whole cell."""
    height, width = pixels.shape[:2]
    if height < grid_size or width < grid_size:
        raise ImageError(
            f"the image is {width}x{height} pixels, smaller than one cell of {grid_size}x{grid_size}", "too_small"
        )

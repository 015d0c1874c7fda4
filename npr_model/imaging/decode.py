"""From encoded bytes to pixels: one rule for training, evaluation and screening.

The detector reads traces that a decoder or converter could create or remove. So there is one rule for each case:

- Orientation is not applied, in no format, neither EXIF's nor HEIF's nor JPEG XL's: rotation by 90 degrees moves the
  cells.
- Alpha is dropped, never blended, also in palettes. Hidden colours are used as stored.
- Palette, grey, black-and-white, CMYK, YCbCr and Lab become RGB by Pillow's ``convert("RGB")``. Embedded colour
  profiles are ignored.
- 16-bit samples keep their high byte (``value >> 8``). 32-bit and float pixels have no agreed range: they are errors.
- The first frame of an animation, or page of a document, is used. It must cover the whole image.
- Pixels that a decoder made up are never scored: truncated and damaged files are errors. What counts are the pixels. A
  file without its end marker is decoded if the data of all pixels is there; a file with one is an error if it is not.
- The content tells the format, not the name of the file.

:mod:`npr_model.imaging.formats` checks that the data is complete. Then simplejpeg decodes plain 8-bit grey, YCbCr and
RGB JPEGs, which is faster; its pixels equal Pillow's bit for bit (tested). pillow-heif decodes HEIF, imagecodecs JPEG
XL. Pillow decodes everything else.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np
import PIL
import simplejpeg
from PIL import Image

from npr_model.errors import reason
from npr_model.imaging import pillow
from npr_model.imaging.errors import ImageError, check_size
from npr_model.imaging.formats import bmp, gif, heif, jpeg, jpeg2000, jpegxl, netpbm, png, tiff, webp
from npr_model.imaging.formats.signatures import format_of
from npr_model.imaging.limits import MAX_PIXELS

# Each returns versions of a file, for Pillow. The file is whole if they decode to the same pixels.
_WHOLE = {
    "BMP": bmp.whole,
    "GIF": gif.whole,
    "JPEG2000": jpeg2000.whole,
    "PNG": png.whole,
    "PPM": netpbm.whole,
    "TIFF": tiff.whole,
    "WEBP": webp.whole,
}
_WEAK_SIGNATURES = ("BMP", "PPM", "TGA")  # text may begin like them
_MOST_REDUCED = 8  # side of a JPEG's blocks, which Pillow can be told to decode to one pixel
_SIMPLEJPEG = f"simplejpeg {simplejpeg.__version__}"
_PILLOW = f"pillow {PIL.__version__}"


@dataclass(frozen=True)
class DecodedImage:
    """Pixels with the names of the file format (Pillow's) and of the decoder (with its version).

    ``pixels``: (H, W, 3) uint8, contiguous. The names are None for pixels that do not come from a file. ``file``: the
    bytes of a file whose header tells about these pixels, if :func:`decode` was not given it: of an image that was
    opened elsewhere, or of a JPEG inside another file.
    """

    pixels: np.ndarray
    format: str | None
    decoder: str | None
    file: bytes | None = None

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        return self.pixels.shape[0]


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, header: jpeg.Header | None = None) -> DecodedImage:
    """Decode by the rules above. Raises ImageError; more than ``max_pixels`` pixels are refused before decoding.

    ``header``: that of a JPEG, if it was read before.
    """
    try:
        return _decode(data, max_pixels, header)
    except MemoryError as error:  # Pillow raises it for very long rows, too
        raise ImageError("the image does not fit into memory", "too_large") from error


def _decode(data: bytes, max_pixels: int, header: jpeg.Header | None = None) -> DecodedImage:
    if not data:
        raise ImageError("the file is empty", "empty")
    format = name = format_of(data)
    versions: tuple[bytes, ...] = (data,)
    if format == "JPEG":
        header = header or jpeg.read_header(data)
        decoded = jpeg.decode(data, header, max_pixels)
        name = "MPO" if header.lists_others else format
        if isinstance(decoded, np.ndarray):
            return DecodedImage(decoded, name, _SIMPLEJPEG)
        versions = decoded
    elif format == "HEIF":
        return DecodedImage(heif.decode(data, max_pixels), format, heif.DECODER)
    elif format == "JXL":
        return _decode_jpegxl(data, max_pixels)
    elif format in _WHOLE:
        versions = _WHOLE[format](data, max_pixels)
    pixels = _decode_pillow(versions[0], format, max_pixels)
    for version in versions[1:]:
        if not np.array_equal(_decode_pillow(version, format, max_pixels), pixels):
            raise ImageError("the image is truncated: the data of its last pixels is missing")
    return DecodedImage(pixels, name, _PILLOW)


def _decode_jpegxl(data: bytes, max_pixels: int) -> DecodedImage:
    check_size(*jpegxl.read_header(data)[:2], max_pixels)
    if original := jpegxl.original_jpeg(data):
        decoded = _decode(original, max_pixels)
        return replace(decoded, format="JXL", decoder=f"{decoded.decoder} (JPEG by {jpegxl.decoder()})", file=original)
    return DecodedImage(jpegxl.decode(data, max_pixels), "JXL", jpegxl.decoder())


def _decode_pillow(data: bytes, format: str, max_pixels: int) -> np.ndarray:
    try:
        with pillow.settings(), pillow.open_image(io.BytesIO(data), format) as image:
            check_size(image.width, image.height, max_pixels)
            return pillow.rgb_pixels(image, format)
    except (ImageError, MemoryError):
        raise
    except PIL.UnidentifiedImageError as error:
        if format in _WEAK_SIGNATURES:
            raise ImageError("not an image, or an unsupported format", "not_an_image") from error
        raise ImageError(f"the {format} file is damaged, or of a kind that is not supported") from error
    except Exception as error:  # a damaged file can make Pillow's readers raise anything
        raise ImageError(f"the image is truncated, damaged or not supported ({reason(error)})") from error


def from_pillow(image: Image.Image) -> DecodedImage:
    """Convert the current frame of an open Pillow image by the rules above. Raises ImageError.

    An image that Pillow has opened and not yet decoded is decoded from its file, like any other file.
    """
    try:
        data = _undecoded_file(image)
        if data is not None:
            decoded = decode(data, max_pixels=_MOST_REDUCED**2 * image.width * image.height)
            if {decoded.width, decoded.height} == set(image.size):  # else Pillow was told to decode to another size
                return replace(decoded, file=data)
        with pillow.settings():
            return DecodedImage(pillow.rgb_pixels(image, image.format), image.format, _PILLOW)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError("the image does not fit into memory", "too_large") from error
    except Exception as error:  # Pillow decodes only now, and can raise anything
        raise ImageError(f"the image is truncated, damaged or not supported ({reason(error)})") from error


def _undecoded_file(image: Image.Image) -> bytes | None:
    """The bytes behind an image that is not decoded yet; None if it is, or if another frame was chosen."""
    file = getattr(image, "fp", None)
    if file is None or not getattr(image, "tile", None) or image.tell():
        return None
    position = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(position)
    return data

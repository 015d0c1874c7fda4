"""Headers of image files: size, format and lossy codec, without decoding pixels."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass

import PIL
from PIL import JpegImagePlugin

from npr_model.errors import reason
from npr_model.imaging.decode import ImageError, check_size, open_image
from npr_model.imaging.limits import MAX_PIXELS

_SUBSAMPLING = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}  # by Pillow's numbers; others are rare


@dataclass(frozen=True)
class Encoding:
    """Size and lossy codec of a file, as far as its header tells.

    Attributes:
        width, height: In pixels.
        quantization: Two tables of a JPEG (luma, chroma) in Pillow's order; None for other formats.
        subsampling: Chroma of a JPEG, such as "4:2:0".
        lossy_webp: Whether it is a lossy WebP, whose quality the header does not tell.
        format: As Pillow names it; MPO counts as JPEG.
    """

    width: int
    height: int
    quantization: tuple[tuple[int, ...], ...] | None = None
    subsampling: str | None = None
    lossy_webp: bool = False
    format: str = ""


def read_encoding(file: str | os.PathLike | bytes) -> Encoding:
    """Read the header of a file, given as path or bytes. Raises ImageError."""
    try:
        with io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as file, open_image(file) as image:
            if image.format in ("JPEG", "MPO"):
                tables = [tuple(image.quantization[number]) for number in sorted(image.quantization)][:2]
                subsampling = _SUBSAMPLING.get(JpegImagePlugin.get_sampling(image), "4:4:4")
                return Encoding(image.width, image.height, (tables[0], tables[-1]), subsampling, format="JPEG")
            file.seek(0)
            lossy_webp = image.format == "WEBP" and b"VP8 " in file.read(2**16)
            return Encoding(image.width, image.height, lossy_webp=lossy_webp, format=image.format)
    except Exception as error:  # a damaged file can make Pillow's readers raise anything
        raise ImageError(f"the header cannot be read ({reason(error)})") from error


def header_size(path: str | os.PathLike) -> tuple[int, int]:
    """Return the (width, height) in a file's header. Raises ImageError."""
    try:
        with open(path, "rb") as file, open_image(file) as image:
            check_size(image.width, image.height, MAX_PIXELS)
            return image.size
    except ImageError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise ImageError("not an image, or an unsupported format", "not_an_image") from error
    except OSError as error:
        raise ImageError(f"the file cannot be read ({reason(error)})") from error
    except Exception as error:  # as above
        raise ImageError(f"the image is damaged or not supported ({reason(error)})") from error

"""What the header of an image file says: size, format and lossy codec. No pixel is decoded."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass

import PIL
from PIL import JpegImagePlugin

from npr_model.errors import reason
from npr_model.imaging.decode import ImageError, check_size, open_image
from npr_model.imaging.limits import MAX_PIXELS

_SUBSAMPLING = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}  # Pillow's numbers; other kinds are rare


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
        with io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as file, open_image(file) as image:
            if image.format in ("JPEG", "MPO"):
                tables = [tuple(image.quantization[number]) for number in sorted(image.quantization)][:2]
                subsampling = _SUBSAMPLING.get(JpegImagePlugin.get_sampling(image), "4:4:4")
                return Encoding(image.width, image.height, (tables[0], tables[-1]), subsampling, format="JPEG")
            file.seek(0)
            lossy_webp = image.format == "WEBP" and b"VP8 " in file.read(2**16)
            return Encoding(image.width, image.height, lossy_webp=lossy_webp, format=image.format)
    except Exception as error:  # a damaged file leads Pillow's readers to whatever exception they run into
        raise ImageError(f"the header cannot be read ({reason(error)})") from error


def header_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) that the file's header claims, without decoding it. Raises ImageError."""
    try:
        with open(path, "rb") as file, open_image(file) as image:
            check_size(image.width, image.height, MAX_PIXELS)
            return image.size
    except ImageError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise ImageError("not an image, or of a format that is not supported", "not_an_image") from error
    except OSError as error:
        raise ImageError(f"the file cannot be read ({reason(error)})") from error
    except Exception as error:  # as in decoding: whatever Pillow's readers run into
        raise ImageError(f"the image is damaged or not supported ({reason(error)})") from error

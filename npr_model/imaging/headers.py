"""Headers of image files: size, format and lossy codec, without decoding pixels."""

from __future__ import annotations

import functools
import io
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import PIL

from npr_model.errors import reason
from npr_model.imaging import pillow
from npr_model.imaging.errors import ImageError, check_size
from npr_model.imaging.formats import heif, jpeg, jpegxl, png, tiff, webp
from npr_model.imaging.formats.signatures import LENGTH, format_of
from npr_model.imaging.limits import MAX_PIXELS

_JPEG_HEADER = 2**18  # bytes that hold nearly all JPEG headers


@dataclass(frozen=True)
class Encoding:
    """Size and lossy codec of a file, as far as its header tells.

    Attributes:
        width, height: In pixels.
        quantization: Two tables of a JPEG (luma, chroma), each 64 numbers row by row; None for other formats.
        subsampling: Chroma of a JPEG, such as "4:2:0"; None where there is none: grey, RGB and CMYK. Sampling without a
            name is written with the factors of all components, such as "3x1,1x1,1x1".
        lossy: Whether it is a lossy WebP or JPEG XL file, whose quality the header does not tell.
        format: As Pillow names it.
        jpeg: Header of a JPEG, so that decoding need not read it again.
    """

    width: int
    height: int
    quantization: tuple[tuple[int, ...], ...] | None = None
    subsampling: str | None = None
    lossy: bool = False
    format: str = ""
    jpeg: jpeg.Header | None = None


def read_encoding(file: str | os.PathLike | bytes) -> Encoding:
    """Read the header of a file, given as path or bytes. Raises ImageError."""
    with _readable(file) as (opened, format):
        if format == "JPEG":
            header = _jpeg_header(opened)
            small = sum(map(len, header.tables)) <= jpeg.CACHED
            return _jpeg_encoding(header) if small else _jpeg_encoding.__wrapped__(header)
        if format == "JXL":
            stream = jpegxl.read_header(opened.read())
            return Encoding(stream.width, stream.height, lossy=stream.is_lossy, format=format)
        width, height = _size(opened, format)
        opened.seek(0)
        lossy = format == "WEBP" and b"VP8 " in opened.read(2**16)
        return Encoding(width, height, lossy=lossy, format=format)


def header_size(path: str | os.PathLike) -> tuple[int, int]:
    """Return the (width, height) in a file's header. Raises ImageError."""
    with _readable(path) as (opened, format):
        if format == "JPEG":
            header = _jpeg_header(opened)
            width, height = header.width, header.height
        else:
            width, height = _size(opened, format)
        check_size(width, height, MAX_PIXELS)
        return width, height


@contextmanager
def _readable(file: str | os.PathLike | bytes) -> Iterator[tuple[BinaryIO, str]]:
    """Open a file and tell its format; everything that goes wrong inside becomes an ImageError."""
    try:
        with io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as opened:
            format = format_of(opened.read(LENGTH))
            opened.seek(0)
            yield opened, format
    except ImageError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise ImageError("not an image, or an unsupported format", "not_an_image") from error
    except OSError as error:
        raise ImageError(f"the file cannot be read ({reason(error)})") from error
    except Exception as error:  # a damaged file can make Pillow's readers raise anything
        raise ImageError(f"the image is damaged or not supported ({reason(error)})") from error


@functools.lru_cache(1024)  # a collection has few different headers
def _jpeg_encoding(header: jpeg.Header) -> Encoding:
    size = header.width, header.height
    return Encoding(*size, header.quantization, header.subsampling, format="JPEG", jpeg=header)


def _jpeg_header(file: BinaryIO) -> jpeg.Header:
    if isinstance(file, io.BytesIO):
        return jpeg.read_header(file.getvalue())
    data = file.read(_JPEG_HEADER)
    try:
        return jpeg.read_header(data)
    except ImageError:
        rest = file.read()
        if not rest:
            raise
        return jpeg.read_header(data + rest)


def _size(file: BinaryIO, format: str) -> tuple[int, int]:
    if format == "PNG":  # Pillow would read all its text first
        return png.read_size(file.read(LENGTH))
    if format == "WEBP":  # Pillow would take memory for all of its pixels
        return webp.read_size(file.read(LENGTH))
    if format == "HEIF":
        return heif.read_size(file.read())
    if format == "JXL":
        return jpegxl.read_header(file.read())[:2]
    if format == "TIFF":  # Pillow would turn it by its orientation tag
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
                return tiff.read_size(contents)
        except io.UnsupportedOperation:  # bytes
            return tiff.read_size(file.read())
    with pillow.settings(), pillow.open_image(file, format) as image:
        return image.size

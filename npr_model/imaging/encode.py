"""From pixels to encoded bytes, and through the codec of another file."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import Image

from npr_model.imaging.decode import decode
from npr_model.imaging.headers import Encoding


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

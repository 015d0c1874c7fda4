"""From pixels to encoded bytes, and through another file's codec."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import Image

from npr_model.imaging.decode import decode
from npr_model.imaging.headers import Encoding


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """Encode (H, W, 3) uint8 as JPEG with 4:2:0 chroma, the most common kind. ``quality``: 1 to 100, as in libjpeg."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, colorsubsampling="420")


def encode_webp(pixels: np.ndarray, quality: int) -> bytes:
    """Encode (H, W, 3) uint8 as lossy WebP, whose chroma is always 4:2:0. ``quality``: 1 to 100, as in libwebp."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "WEBP", quality=quality, method=2)
    return buffer.getvalue()


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint8 as PNG, lightly compressed."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encoded_as(pixels: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Return (H, W, 3) uint8 after another file's codec: its JPEG tables and subsampling, or WebP at quality 80.

    JPEGs without chroma count as 4:4:4. Pillow writes 4:4:4, 4:2:2 and 4:2:0; other subsampling becomes 4:2:0.
    """
    if encoding.lossy and encoding.format == "WEBP":
        return decode(encode_webp(pixels, 80)).pixels
    if encoding.quantization is None:
        return pixels
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    sampling = encoding.subsampling or "4:4:4"
    sampling = sampling if sampling in ("4:4:4", "4:2:2") else "4:2:0"
    image.save(buffer, "JPEG", qtables=encoding.quantization, subsampling=sampling)
    return decode(buffer.getvalue()).pixels

"""Resizing and blurring, by Pillow."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter


def resize(
    pixels: np.ndarray, height: int, width: int, interpolation: Image.Resampling = Image.Resampling.BILINEAR
) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (height, width, 3) uint8, with antialiasing."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), interpolation))


def gaussian_blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Blur (H, W, 3) uint8 with ``sigma`` in pixels. Pillow approximates the Gaussian by repeated box filters."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).filter(ImageFilter.GaussianBlur(sigma)))

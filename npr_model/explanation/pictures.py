"""Small pictures inside web pages, as data URLs: images, NPR maps and activation maps."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

FULL_SCALE = 24  # difference in grey levels that is shown as white


def data_url(picture: Image.Image) -> str:
    """Return a picture as a data URL with WebP data."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=75)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def npr_picture(differences: np.ndarray) -> Image.Image:
    """Turn (3, H, W) grey levels into the mean magnitude over the channels; brighter means larger differences."""
    magnitude = np.abs(differences).mean(0)
    return Image.fromarray(np.clip(magnitude * (255 / FULL_SCALE), 0, 255).astype(np.uint8))


def activation_picture(pixels: np.ndarray, activation: np.ndarray) -> Image.Image:
    """Draw the (h, w) activation map over the grey (H, W, 3) image. Red: generated; blue: real."""
    height, width = pixels.shape[:2]
    limit = max(float(np.abs(activation).max()), 1e-6)
    evidence = Image.fromarray((activation / limit).astype(np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    strength = np.asarray(evidence)[..., None]
    colour = np.where(strength > 0, np.array([214.0, 40, 40]), np.array([40.0, 90, 214]))
    weight = 0.75 * np.abs(strength)
    grey = 0.7 * pixels.mean(2, keepdims=True) + 60
    return Image.fromarray(np.clip((1 - weight) * grey + weight * colour, 0, 255).astype(np.uint8))

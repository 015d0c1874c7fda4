"""Pillow with the settings that decoding needs, and its images as RGB pixels."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import BinaryIO, cast

import numpy as np
from PIL import Image, ImageFile

from npr_model.imaging.errors import ImageError

_BAND = 2**18  # pixels that are converted at once
_lock = threading.Lock()
_users = 0
_before: tuple[int | None, bool] = (None, False)


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """Switch off Pillow's own pixel limit, which warns or raises, and its filling of truncated files.

    Both are global settings of the program around; they come back when the last thread leaves.
    """
    global _users, _before
    with _lock:
        if not _users:
            _before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = _before


def open_image(file: BinaryIO, format: str) -> Image.Image:
    """Open a file of a format that Pillow may or may not have. Raises ImageError, and whatever Pillow raises."""
    Image.init()
    if format not in Image.OPEN:
        raise ImageError(f"the format {format} is not supported by this Pillow; install a newer one", "unsupported")
    return Image.open(file, formats=[format])


def rgb_pixels(image: Image.Image, format: str | None) -> np.ndarray:
    """Return the current frame as (H, W, 3) uint8, by the rules of :mod:`npr_model.imaging.decode`.

    It is converted in bands, so that no copy of the whole image is needed. Raises ImageError, and what Pillow raises.
    """
    image.load()
    if format and image.mode == "P" and cast(int, image.getextrema()[1]) >= len(image.getpalette() or ()) // 3:
        raise ImageError("the image is damaged: it has more colours than its palette")
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = np.asarray(_to_rgb(band, format))
    return pixels


def _to_rgb(image: Image.Image, format: str | None) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(
            f"pixels of mode {image.mode!r} (32 bits) have no agreed range; convert the file to 8 bits", "unsupported"
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; converting directly makes Pillow warn
    return image.convert("RGB")

"""Suffixes of image files. They say which files are meant to be images; the content decides what they are."""

from __future__ import annotations

import os

_JPEG_SUFFIXES = (".jfif", ".jpe", ".jpeg", ".jpg")
_HEIF_SUFFIXES = (".heic", ".heif", ".hif")
_OTHER_SUFFIXES = (".apng", ".avif", ".bmp", ".gif", ".png", ".tga", ".tif", ".tiff", ".webp")
_NETPBM_SUFFIXES = (".pbm", ".pgm", ".pnm", ".ppm")
_NEWER_JPEG_SUFFIXES = (".j2k", ".jp2", ".jxl")
IMAGE_SUFFIXES = frozenset(
    (*_HEIF_SUFFIXES, *_JPEG_SUFFIXES, *_NETPBM_SUFFIXES, *_NEWER_JPEG_SUFFIXES, *_OTHER_SUFFIXES)
)


def is_image_name(name: str) -> bool:
    """Return whether the name ends in one of IMAGE_SUFFIXES, in any case."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES

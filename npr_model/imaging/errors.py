"""The error that an image raises when it cannot be decoded or viewed."""

from __future__ import annotations

from npr_model.errors import InputError


class ImageError(InputError):
    """An image that cannot be decoded or viewed. The message does not name the file.

    ``code``: empty, not_an_image, unsupported, damaged, too_large or too_small.
    """

    def __init__(self, message: str, code: str = "damaged") -> None:
        super().__init__(message)
        self.code = code


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise ImageError for an image without pixels, or with more than ``max_pixels``."""
    if width < 1 or height < 1:
        raise ImageError(f"the image has no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise ImageError(f"the image has {width}x{height} pixels, more than the limit of {max_pixels}", "too_large")

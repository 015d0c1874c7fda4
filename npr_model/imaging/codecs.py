"""Codecs as text: "png", "jpeg:90", "webp:80", or "jpeg:70-100" where a quality is drawn for each image."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from npr_model.errors import InputError
from npr_model.imaging.encode import encode_jpeg, encode_png, encode_webp

_LOSSY = {"jpeg": encode_jpeg, "webp": encode_webp}
NAMES = ("png", *_LOSSY)


@dataclass(frozen=True)
class Codec:
    """A codec with its quality (1 to 100) or a range of qualities. PNG has none: ``low`` and ``high`` are None.

    JPEG and WebP store chroma at half the resolution (4:2:0).
    """

    name: str = "png"
    low: int | None = None
    high: int | None = None

    @classmethod
    def parse(cls, text: str, *, ranges: bool = False) -> Codec:
        """Parse "png", "jpeg:Q", "webp:Q" or, with ``ranges``, "jpeg:LOW-HIGH" and "webp:LOW-HIGH".

        Raises InputError.
        """
        found = re.fullmatch(r"(jpeg|webp):([0-9]{1,3})(?:-([0-9]{1,3}))?", text)
        if text == "png":
            return cls()
        if found and (ranges or found[3] is None):
            low, high = int(found[2]), int(found[3] or found[2])
            if 1 <= low <= high <= 100:
                return cls(found[1], low, high)
        with_range = ", jpeg:LOW-HIGH or webp:LOW-HIGH" if ranges else ""
        raise InputError(f"unknown codec {text!r}: use png, jpeg:Q, webp:Q{with_range} with a quality of 1 to 100")

    def draw(self, random: np.random.Generator) -> Codec:
        """Return this codec with one quality drawn from its range."""
        if self.low is None or self.high is None or self.low == self.high:
            return self
        quality = int(random.integers(self.low, self.high + 1))
        return Codec(self.name, quality, quality)

    @property
    def suffix(self) -> str:
        """Suffix of its files, without the dot."""
        return {"jpeg": "jpg"}.get(self.name, self.name)

    def encode(self, pixels: np.ndarray) -> bytes:
        """Encode (H, W, 3) uint8 pixels; with a range, at its lowest quality."""
        if self.low is None:
            return encode_png(pixels)
        return _LOSSY[self.name](pixels, self.low)

    def __str__(self) -> str:
        if self.low is None:
            return self.name
        return f"{self.name}:{self.low}" + ("" if self.low == self.high else f"-{self.high}")

"""How a file's pixels were compressed, as far as its header and its coefficients tell: its condition.

Photographs of different conditions have different logits. So the threshold of a false-positive rate is found, and
holds, for each condition by itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from npr_model.imaging.headers import Encoding
from npr_model.imaging.jpeg_quality import estimate_quality
from npr_model.imaging.recompression import was_coarser

FINE = 90  # quality

LOSSLESS, FINE_JPEG, COARSE_JPEG, RECOMPRESSED_JPEG, OTHER_LOSSY = CONDITIONS = (
    "lossless",
    "jpeg-90-100",
    "jpeg-below-90",
    "jpeg-recompressed",
    "other-lossy",
)
_LOSSY_FORMATS = ("AVIF", "HEIF", "JPEG2000")  # they can be lossless, but hardly ever are


class Facts(NamedTuple):
    """What a file's header and pixels tell of its compression.

    Attributes:
        quality: Quality of a JPEG (:mod:`npr_model.imaging.jpeg_quality`); None for other formats.
        condition: One of CONDITIONS; None if the header is not known. RECOMPRESSED_JPEG is a JPEG that was more
            coarsely quantised before (:mod:`npr_model.imaging.recompression`).
    """

    quality: int | None
    condition: str | None


def file_facts(encoding: Encoding | None, pixels: np.ndarray) -> Facts:
    """Return the facts about a file, from its header and its pixels, (H, W, 3) uint8."""
    if encoding is None:
        return Facts(None, None)
    if encoding.format != "JPEG":
        is_lossy = encoding.lossy or encoding.format in _LOSSY_FORMATS
        return Facts(None, OTHER_LOSSY if is_lossy else LOSSLESS)
    if encoding.quantization is None:
        return Facts(None, COARSE_JPEG)
    quality = estimate_quality(encoding.quantization[0])
    if was_coarser(pixels, encoding.quantization[0]):
        return Facts(quality, RECOMPRESSED_JPEG)
    return Facts(quality, FINE_JPEG if quality >= FINE else COARSE_JPEG)

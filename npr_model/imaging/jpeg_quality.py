"""The quality that a JPEG was saved with, estimated from its quantisation table."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

# Luminance quantisation, ITU-T T.81, Table K.1, row by row; libjpeg scales it by the quality.
_LUMINANCE = np.array((
    16, 11, 10, 16, 24, 40, 51, 61,
    12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77,
    24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
))  # fmt: skip


def estimate_quality(table: Sequence[int]) -> int:
    """Return libjpeg's quality, 1 to 100, whose luminance table is nearest to ``table`` (64 numbers, row by row).

    Exact for files that libjpeg wrote. Other encoders have their own tables.
    """
    return _nearest(tuple(table))


@functools.lru_cache(1024)  # a collection has few different tables, and a search takes as long as reading a header
def _nearest(table: tuple[int, ...]) -> int:
    return int(np.abs(_TABLES - np.asarray(table)).sum(1).argmin()) + 1


def _scaled() -> np.ndarray:
    """The luminance table at each quality, (100, 64)."""
    quality = np.arange(1, 101)[:, None]
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return ((_LUMINANCE * scale + 50) // 100).clip(1, 255)


_TABLES = _scaled()

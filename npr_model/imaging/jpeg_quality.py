"""The quality that a JPEG was saved with, read from its quantisation table."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

# Luminance quantisation of ITU-T T.81, Table K.1, which libjpeg scales by its quality; in reading order.
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
    """libjpeg's quality, 1 to 100, whose luminance table is nearest to ``table`` (64 numbers in reading order).

    Exact for files that libjpeg wrote; other encoders have tables of their own.
    """
    return _nearest(tuple(table))


@functools.lru_cache(1024)  # a collection has few tables, and searching for one takes as long as reading the header
def _nearest(table: tuple[int, ...]) -> int:
    return int(np.abs(_TABLES - np.asarray(table)).sum(1).argmin()) + 1


def _scaled() -> np.ndarray:
    """(100, 64): the luminance table at every quality."""
    quality = np.arange(1, 101)[:, None]
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return ((_LUMINANCE * scale + 50) // 100).clip(1, 255)


_TABLES = _scaled()

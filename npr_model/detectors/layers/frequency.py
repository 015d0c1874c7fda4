"""The discrete cosine transform as matrix products, for any size and device."""

from __future__ import annotations

import functools

import numpy as np
import scipy.fft
import torch
from torch import Tensor

# Added to magnitudes before a logarithm. float32 rounds coefficients of pixels in 0 .. 1 by about this much; rounding
# the pixels to 8 bits changes them a hundred times more.
EPSILON = 1e-5


@functools.lru_cache(maxsize=8)
def _matrix(size: int) -> np.ndarray:
    return scipy.fft.dct(np.eye(size), axis=0, norm="ortho")


def dct_matrix(size: int, like: Tensor) -> Tensor:
    """Return the orthonormal DCT-II, (size, size), with the dtype and device of ``like``.

    Its transpose is the inverse.
    """
    return torch.from_numpy(_matrix(size)).to(like)


def dct_2d(images: Tensor) -> Tensor:
    """Orthonormal DCT over the last two axes: (..., H, W) -> (..., H, W)."""
    height, width = images.shape[-2:]
    return dct_matrix(height, images) @ images @ dct_matrix(width, images).T


def inverse_dct_2d(coefficients: Tensor) -> Tensor:
    """Inverse of :func:`dct_2d`."""
    height, width = coefficients.shape[-2:]
    return dct_matrix(height, coefficients).T @ coefficients @ dct_matrix(width, coefficients)

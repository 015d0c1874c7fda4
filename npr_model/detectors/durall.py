"""Durall: Durall et al., "Watch your up-convolution: CNN based generative deep neural networks are failing to reproduce
spectral distributions" (CVPR 2020)."""

from __future__ import annotations

import functools

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from npr_model.detectors.base import LUMA, PixelNetwork

RINGS = 88  # length of the authors' spectra for images of 128x128 pixels; the others are relative to the first
_EPSILON = 1e-8  # the authors' value, far below the spectrum of any 8-bit image


class Durall(PixelNetwork):
    """Logistic regression on an image's azimuthally averaged power spectrum, fitted by scikit-learn.

    The features are the authors' one-dimensional spectrum: the luma's spectrum in decibels without frequency 0,
    averaged over rings, relative to its first ring.

    Departures from the authors (cc-hpc-itwm, ``DeepFakeDetection`` and ``UpConv``): Rings are equally wide in cycles
    per pixel, so that images of any size have a frequency at the same place; theirs are one frequency wide, and the
    result is interpolated to a fixed length. Their rings lie around the middle of the shifted spectrum, which is half a
    step beside frequency 0 for even sizes, and leave out the outermost frequencies. The first ring is subtracted, where
    they divide by it: so a change of contrast changes no feature, and a first ring near 0 decibels does no harm.
    Features are standardised before the fit. The authors also fit support vector machines.
    """

    detector, paper_name, fitted = "durall", "Durall", True

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(RINGS - 1, 1).requires_grad_(False)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, RINGS - 1) spectra."""
        with torch.autocast(images.device.type, enabled=False):  # the logarithm needs full precision
            pixels = self.unit_pixels(images)
            luma = torch.einsum("nchw,c->nhw", pixels, pixels.new_tensor(LUMA))
            decibels = 20 * torch.log10(torch.fft.fft2(luma).abs() + _EPSILON)
            rings, counts = (torch.from_numpy(array).to(luma.device) for array in _rings(*luma.shape[1:]))
            sums = decibels.new_zeros(len(luma), len(counts)).index_add_(1, rings, decibels.flatten(1)[:, 1:])
            means = (sums / counts)[:, torch.from_numpy(_filled(*luma.shape[1:])).to(luma.device)]
            return means[:, 1:] - means[:, :1]

    def fit(self, features: np.ndarray, labels: np.ndarray) -> None:
        """Set the weights from (N, RINGS - 1) features and (N,) labels (1: generated). Both classes must occur."""
        scaler = StandardScaler().fit(features)
        regression = LogisticRegression(max_iter=10_000).fit(scaler.transform(features), labels)
        weight = regression.coef_[0] / scaler.scale_
        self.fc.weight.copy_(torch.from_numpy(weight)[None])
        self.fc.bias.copy_(torch.from_numpy(regression.intercept_ - weight @ scaler.mean_))

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return self.fc(self.features(images))


@functools.lru_cache(maxsize=8)
def _rings(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """For each frequency but 0 its ring, (H * W - 1,), and for each ring its size, at least 1, (RINGS,)."""
    vertical, horizontal = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)
    radius = np.hypot(vertical, horizontal) / np.hypot(0.5, 0.5)
    rings = np.minimum((radius * RINGS).astype(np.int64), RINGS - 1).ravel()[1:]
    return rings, np.maximum(np.bincount(rings, minlength=RINGS), 1).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _filled(height: int, width: int) -> np.ndarray:
    """For each ring the nearest one that has a frequency: small images have fewer frequencies than rings."""
    present = np.unique(_rings(height, width)[0])
    return present[np.abs(present - np.arange(RINGS)[:, None]).argmin(1)]

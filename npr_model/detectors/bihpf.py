"""BiHPF: Jeong et al., "BiHPF: bilateral high-pass filters for robust deepfake detection" (WACV 2022)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from npr_model.detectors.base import PixelNetwork
from npr_model.detectors.cnndetection import CNNDetection
from npr_model.detectors.layers.frequency import EPSILON

CUTOFF = 0.1  # as a share of the image's side, and in cycles per pixel


class BiHPF(PixelNetwork):
    """A ResNet-50 on the log magnitude spectrum of an image after two high-pass filters.

    The first filter, in the frequency domain, weakens low frequencies. The second one, in the pixel domain, weakens the
    centre of the image, where the depicted object mostly is. Both have the same shape: 1 - exp(-(r / CUTOFF)^2 / 2),
    with r the distance from frequency 0 in cycles per pixel, or from the centre in sides of the image. What is left is
    transformed once more; the logarithms of the magnitudes are standardised by their mean and standard deviation over
    an image's channel, and frequency 0 is moved to the centre. 23,510,081 parameters.

    This was written from the paper's abstract and a summary of it, without its equations and without code of the
    authors. Theirs are the two filters, what each one strengthens (high frequencies, and the background), and the
    classified spectrum. Ours are the shape of the filters, CUTOFF, their order, and the standardising. The frequency
    filter comes first, as after the pixel filter it would only add a constant to the logarithms. The spectrum has the
    image's own size. The ResNet-50 starts from random weights. The artefact compression map, which the authors learn
    to study the traces, is left out.
    """

    detector, paper_name = "bihpf", "BiHPF"

    def __init__(self) -> None:
        super().__init__()
        self.classifier = CNNDetection()

    def spectra(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 3, H, W) standardised log magnitudes, frequency 0 in the centre."""
        with torch.autocast(images.device.type, enabled=False):  # spectra need full precision
            pixels = self.unit_pixels(images)
            frequency_filter, pixel_filter = (_high_pass(pixels, at) for at in (_frequencies, _positions))
            filtered = torch.fft.ifft2(torch.fft.fft2(pixels) * frequency_filter).real
            spectrum = torch.fft.fft2(filtered * pixel_filter, norm="ortho")
            logarithms = torch.fft.fftshift(torch.log(spectrum.abs() + EPSILON), (2, 3))
            variance, mean = torch.var_mean(logarithms, (2, 3), correction=0, keepdim=True)
            return (logarithms - mean) / (variance + EPSILON).sqrt()

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.spectra(images))


def _frequencies(size: int) -> Tensor:
    """Frequencies of a Fourier transform in cycles per pixel, (size,)."""
    return torch.fft.fftfreq(size, dtype=torch.float64)


def _positions(size: int) -> Tensor:
    """Distances of pixels from the centre in sides of the image, (size,)."""
    return (torch.arange(size, dtype=torch.float64) + 0.5) / size - 0.5


def _high_pass(images: Tensor, coordinates: Callable[[int], Tensor]) -> Tensor:
    """Return the filter for (..., H, W) images: (H, W) weights in 0 .. 1 that grow with the distance from 0."""
    rows, columns = map(coordinates, images.shape[-2:])
    squared = rows[:, None].square() + columns.square()
    return (1 - torch.exp(-squared / (2 * CUTOFF**2))).to(images)

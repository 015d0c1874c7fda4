"""FrePGAN: Jeong et al., "FrePGAN: robust deepfake detection using frequency-level perturbations" (AAAI 2022)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npr_model.detectors.base import PixelNetwork
from npr_model.detectors.cnndetection import CNNDetection
from npr_model.detectors.layers.discriminator import Discriminator

LARGEST = 0.1  # perturbation of a pixel in 0 .. 1
_WIDTH = 32


class _Reversal(torch.autograd.Function):
    """The identity, whose gradient has the opposite sign (Ganin and Lempitsky, ICML 2015)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class PerturbationGenerator(nn.Module):
    """An encoder and decoder on an image's spectrum: (N, 3, H, W) pixels in 0 .. 1 -> (N, 3, H, W) perturbations.

    The real and imaginary parts of the Fourier transform, compressed by asinh, give six maps, with frequency 0 in the
    centre. Six maps of the same size come out and are transformed back. tanh keeps the result within -LARGEST ..
    LARGEST. It is 0 before training. 24,070 parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(6, _WIDTH, 3, 2, padding=1)
        self.middle = nn.Sequential(
            nn.Conv2d(_WIDTH, 2 * _WIDTH, 3, 2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * _WIDTH, _WIDTH, 1),
        )
        self.last = nn.Conv2d(_WIDTH, 6, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, pixels: Tensor) -> Tensor:
        spectrum = torch.fft.fftshift(torch.fft.fft2(pixels, norm="ortho"), (2, 3))
        features = F.relu(self.down(torch.asinh(torch.cat([spectrum.real, spectrum.imag], 1))))
        features = F.relu(features + F.interpolate(self.middle(features), features.shape[2:]))
        real, imaginary = self.last(F.interpolate(features, pixels.shape[2:])).chunk(2, 1)
        changed = torch.fft.ifftshift(torch.complex(real, imaginary), (2, 3))
        return LARGEST * torch.tanh(torch.fft.ifft2(changed, norm="ortho").real)


class FrePGAN(PixelNetwork):
    """A ResNet-50 on images with a perturbation that hides the traces which a discriminator finds.

    A generator adds a perturbation, made in the frequency domain, to every image. A discriminator learns to tell the
    perturbed photographs from the perturbed generated images, and the generator learns to prevent it. The classifier is
    trained on the perturbed images meanwhile: at first it sees the traces in the spectrum, later only what the
    generator cannot hide. Scoring perturbs an image, too. 23,606,296 parameters.

    This was written from the paper's abstract and a summary of it, without its equations and without code of the
    authors. Theirs are the three networks and what each one learns. Ours are the layers of the generator and of the
    discriminator, and the bound LARGEST. The classifier sees perturbed images only. All three networks take a step at
    once, with one optimizer, instead of in turn: the sign of the discriminator's gradient is reversed before it reaches
    the generator. The ResNet-50 starts from random weights.
    """

    detector, paper_name = "frepgan", "FrePGAN"

    def __init__(self) -> None:
        super().__init__()
        self.generator = PerturbationGenerator()
        self.discriminator = Discriminator()
        self.classifier = CNNDetection()

    def perturbed(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 3, H, W) perturbed images, normalised."""
        with torch.autocast(images.device.type, enabled=False):  # spectra need full precision
            pixels = self.unit_pixels(images)
            return (pixels + self.generator(pixels) - self.pixel_mean) / self.pixel_std

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.perturbed(images))

    def forward_training(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return the logits, and the discriminator's loss, which the generator is trained to raise."""
        perturbed = self.perturbed(images)
        judgement = self.discriminator(_Reversal.apply(perturbed)).to(labels.dtype)
        return self.classifier(perturbed.detach()), F.binary_cross_entropy_with_logits(judgement, labels)

"""A small discriminator, as a GAN has one, which several detectors use."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

_WIDTHS = (3, 16, 32, 64)
_SLOPE = 0.2  # of the leaky ReLU, as in ProGAN


class Discriminator(nn.Module):
    """Three stages of two 3x3 convolutions with leaky ReLU, the second with stride 2; then a mean over all positions.

    (N, 3, H, W) floats of any size -> (N, 1). There is no batch norm, so that images do not affect each other. 72,145
    parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(_WIDTHS):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.LeakyReLU(_SLOPE)]
            layers += [nn.Conv2d(after, after, 3, 2, padding=1), nn.LeakyReLU(_SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(_WIDTHS[-1], 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))

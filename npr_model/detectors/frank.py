"""Frank: Frank et al., "Leveraging frequency analysis for deep fake image recognition" (ICML 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npr_model.detectors.base import PixelNetwork
from npr_model.detectors.layers.frequency import EPSILON, dct_2d
from npr_model.detectors.layers.mirroring import mirrored

TILE = 128  # in pixels, the authors' crop size
_AT_ONCE = 64  # tiles, 12 MiB of coefficients


class Frank(PixelNetwork):
    """A linear classifier on the standardised log DCT coefficients of 128x128 tiles.

    Each tile is trained on its own. An image's logit is the mean over its whole tiles, which lie in its centre. Sides
    shorter than a tile are extended by mirroring. 49,153 parameters. This is the ridge regression of the authors'
    ``classifer.py`` ("log2"), trained with Adam as there. Their L2 penalty of 0.01 is ``weight_decay`` 0.02 of
    :class:`npr_model.training.config.TrainConfig`, as torch halves the square.

    Departures from the authors (RUB-SysSec, ``GANDCTAnalysis``): They cut out the central square and resize it to one
    tile; resizing removes the traces that the method looks for, so tiles are cut from the image as it is. In training,
    coefficients are standardised by the mean and variance of the batch, and in scoring by the averages over all
    batches, where the authors first pass over the whole training set. The logarithm is that of the magnitude plus
    1e-5, for pixels in 0 .. 1, as float32 rounds smaller ones away; theirs adds 1e-12 for pixels in 0 .. 255, in
    float64. The penalty also covers the bias, and weights start at 0.
    """

    detector, paper_name = "frank", "Frank"

    def __init__(self) -> None:
        super().__init__()
        coefficients = 3 * TILE * TILE
        self.standardise = nn.BatchNorm2d(coefficients, affine=False, momentum=None)
        self.fc = nn.Linear(coefficients, 1)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        tiles = _tiles(self.unit_pixels(images))
        parts = [tiles.flatten(0, 1)] if self.training else tiles.flatten(0, 1).split(_AT_ONCE)
        logits = torch.cat([self._score(part) for part in parts]).view(tiles.shape[:2])
        return logits if self.training else logits.mean(1, keepdim=True)

    def _score(self, tiles: Tensor) -> Tensor:
        with torch.autocast(tiles.device.type, enabled=False):  # bfloat16 cannot resolve the range of the coefficients
            logarithms = torch.log(dct_2d(tiles).abs() + EPSILON)
            standardised = self.standardise(logarithms.flatten(1)[..., None, None])
            return self.fc(standardised.flatten(1))


def _tiles(images: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, tiles, 3, TILE, TILE)."""
    images = mirrored(images, TILE)
    rows, columns = (size // TILE for size in images.shape[2:])
    top, left = ((size % TILE) // 2 for size in images.shape[2:])
    images = images[:, :, top : top + rows * TILE, left : left + columns * TILE]
    tiles = F.pixel_unshuffle(images, TILE)  # (N, 3 * TILE * TILE, rows, columns)
    return tiles.flatten(2).transpose(1, 2).unflatten(2, (3, TILE, TILE))

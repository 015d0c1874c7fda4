"""F3-Net: Qian et al., "Thinking in frequency: face forgery detection by mining frequency-aware clues" (ECCV 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npr_model.detectors.base import LUMA, PixelNetwork
from npr_model.detectors.layers.frequency import EPSILON, dct_2d, dct_matrix, inverse_dct_2d
from npr_model.detectors.layers.resnet import resnet_stage

_BANDS = ((0, 1 / 16), (1 / 16, 1 / 8), (1 / 8, 1), (0, 1))  # low, middle, high, all; as shares of the spectrum


class FrequencyAwareDecomposition(nn.Module):
    """Low, middle, high and all frequencies of an image, each with a learned correction (equation 2 of the paper).

    (N, 3, H, W) -> (N, 12, H, W). ``size``: side of the grid of learned corrections, which is stretched over the
    spectrum.
    """

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.correction = nn.Parameter(torch.randn(len(_BANDS), size, size) * 0.1)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        position = (torch.arange(height).view(-1, 1) / height + torch.arange(width) / width) / 2
        bands = torch.stack([(low <= position) & (position < high) for low, high in _BANDS]).to(images)
        learned = F.interpolate(self.correction[None].to(images), (height, width), mode="bilinear", align_corners=False)
        filters = (bands + torch.tanh(learned[0] / 2)).unsqueeze(1)  # tanh(x / 2) is the paper's squashing to -1 .. 1
        return inverse_dct_2d(dct_2d(images).unsqueeze(1) * filters).flatten(1, 2)


class LocalFrequencyStatistics(nn.Module):
    """Log energies of frequency bands in a sliding DCT window over the luma (equation 4 of the paper).

    (N, 3, H, W) -> (N, bands, ceil(H / 2), ceil(W / 2)).
    """

    basis: Tensor
    member: Tensor

    def __init__(self, window: int = 10, bands: int = 6) -> None:
        super().__init__()
        rows = dct_matrix(window, torch.empty(0))
        basis = torch.einsum("ui,vj->uvij", rows, rows).reshape(window**2, 1, window, window)
        order = torch.arange(window).view(-1, 1) + torch.arange(window)
        band = (order * bands // (2 * window - 1)).flatten()
        self.window = window
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("member", F.one_hot(band, bands).T.float(), persistent=False)
        self.correction = nn.Parameter(torch.randn(bands, window**2) * 0.1)

    def forward(self, images: Tensor) -> Tensor:
        luma = torch.einsum("nchw,c->nhw", images, images.new_tensor(LUMA)).unsqueeze(1)
        before = self.window // 2 - 1
        height, width = luma.shape[2:]
        luma = F.pad(
            luma, (before, self.window - 2 - before + width % 2, before, self.window - 2 - before + height % 2)
        )
        coefficients = F.conv2d(luma, self.basis.to(luma), stride=2)
        filters = (self.member + torch.tanh(self.correction / 2)).to(luma)
        # Magnitudes, so that a band with a negative learned filter still has an energy.
        energies = F.conv2d(coefficients.abs(), filters.abs()[..., None, None])
        return torch.log10(energies + EPSILON)


class F3Net(PixelNetwork):
    """Two frequency-aware branches, each the first two stages of a ResNet-50, joined before the last layer.

    The authors' branches are Xceptions that exchange attention maps (MixBlock). Here the frequency-aware input is
    compared on a backbone like NPR's, without the exchange. 2,930,137 parameters.
    """

    detector, paper_name = "f3net", "F3Net"

    def __init__(self) -> None:
        super().__init__()
        self.decomposition = FrequencyAwareDecomposition()
        self.statistics = LocalFrequencyStatistics()
        self.decomposed = _branch(12, kernel_size=7, stride=2)
        self.local = _branch(6, kernel_size=3, stride=1)
        self.fc = nn.Linear(2 * 512, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):  # spectra need full precision
            decomposed = self.decomposition(self.normalised(images))
            local = self.statistics(self.unit_pixels(images))
        branches = self.decomposed(decomposed), self.local(local)
        return self.fc(torch.cat([x.mean((2, 3)) for x in branches], 1))


def _branch(channels: int, kernel_size: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 64, kernel_size, stride, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
        resnet_stage(64, 64, blocks=3, stride=1),
        resnet_stage(256, 128, blocks=4, stride=2),
    )

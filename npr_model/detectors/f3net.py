"""F3-Net: Qian et al., "Thinking in frequency: face forgery detection by mining frequency-aware clues" (ECCV 2020)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npr_model.detectors.base import LUMA, PixelNetwork
from npr_model.detectors.layers import xception
from npr_model.detectors.layers.frequency import EPSILON, dct_2d, dct_matrix, inverse_dct_2d

_BANDS = ((0, 1 / 16), (1 / 16, 1 / 8), (1 / 8, math.inf), (0, math.inf))  # low, middle, high, all
WINDOW = 10  # side of the sliding window, in pixels
STRIDE = 2
STATISTICS = 6  # bands in the window
MIXED = (7, 12)  # blocks after which the branches exchange what they found
_DROPOUT = 0.2


class FrequencyAwareDecomposition(nn.Module):
    """Low, middle, high and all frequencies of an image, each with a learned correction (FAD, equation 2 of the paper).

    (N, 3, H, W) -> (N, 12, H, W). The low band has 1/16 of the coefficients, from frequency 0 on, and the low and
    middle bands together have 1/8. ``size``: side of the grid of learned corrections, which is stretched over the
    spectrum.
    """

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.correction = nn.Parameter(torch.randn(len(_BANDS), size, size) * 0.1)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        # The coefficients up to an antidiagonal fill a triangle. Beyond half the spectrum this is more than their
        # share, which changes no band.
        share = (torch.arange(height).view(-1, 1) / height + torch.arange(width) / width).square() / 2
        bands = torch.stack([(low <= share) & (share < high) for low, high in _BANDS]).to(images)
        learned = F.interpolate(self.correction[None].to(images), (height, width), mode="bilinear", align_corners=False)
        filters = (bands + torch.tanh(learned[0] / 2)).unsqueeze(1)  # tanh(x / 2) is the paper's squashing to -1 .. 1
        return inverse_dct_2d(dct_2d(images).unsqueeze(1) * filters).flatten(1, 2)


class LocalFrequencyStatistics(nn.Module):
    """Log energies of frequency bands in a sliding DCT window over the luma (LFS, equation 4 of the paper).

    (N, 3, H, W) -> (N, STATISTICS, ceil(H / 2), ceil(W / 2)). Bands are equally wide along the diagonal of the window.
    """

    basis: Tensor
    member: Tensor

    def __init__(self) -> None:
        super().__init__()
        rows = dct_matrix(WINDOW, torch.empty(0))
        basis = torch.einsum("ui,vj->uvij", rows, rows).reshape(WINDOW**2, 1, WINDOW, WINDOW)
        order = torch.arange(WINDOW).view(-1, 1) + torch.arange(WINDOW)
        band = (order * STATISTICS // (2 * WINDOW - 1)).flatten()
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("member", F.one_hot(band, STATISTICS).T.float(), persistent=False)
        self.correction = nn.Parameter(torch.randn(STATISTICS, WINDOW**2) * 0.1)

    def forward(self, images: Tensor) -> Tensor:
        luma = torch.einsum("nchw,c->nhw", images, images.new_tensor(LUMA)).unsqueeze(1)
        margin = WINDOW // 2 - 1
        height, width = luma.shape[2:]
        luma = F.pad(luma, (margin, margin + width % STRIDE, margin, margin + height % STRIDE))
        coefficients = F.conv2d(luma, self.basis.to(luma), stride=STRIDE)
        filters = (self.member + torch.tanh(self.correction / 2)).to(luma)
        # Magnitudes, so that a band with a negative learned filter still has an energy.
        energies = F.conv2d(coefficients.abs(), filters.abs()[..., None, None])
        return torch.log10(energies + EPSILON)


class MixBlock(nn.Module):
    """Cross-attention between two branches: two (N, channels, H, W) maps of one size, H and W any -> two like them.

    In each channel, rows attend to rows. A row's query and its key lie side by side in both branches, so both branches
    share the attention. Each branch gets what the other one's rows hold, after batch norm. Its scale starts at 0, so
    that at first the branches pass unchanged.

    Queries, keys and the shared attention are those of the reimplementation by yyk-wew. It multiplies maps and
    attention element by element, which needs square images; here it is the product of matrices. Its gate and its
    weight for each channel come before the batch norm, which cancels them up to their sign, so the scale of the batch
    norm takes their place. It does not divide the energies by the square root of their number of terms.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.queries = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(2))
        self.keys = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(2))
        norms = [nn.BatchNorm2d(channels) for _ in range(2)]
        for norm in norms:
            nn.init.zeros_(norm.weight)
        self.norms = nn.ModuleList(norms)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        maps = first, second
        query = torch.cat([convolution(x) for convolution, x in zip(self.queries, maps, strict=True)], 3)
        key = torch.cat([convolution(x) for convolution, x in zip(self.keys, maps, strict=True)], 3)
        attention = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(query.shape[3]), 3)
        first_norm, second_norm = self.norms
        return first + first_norm(attention @ second), second + second_norm(attention @ first)


class F3Net(PixelNetwork):
    """Two Xceptions, one on decomposed images (FAD) and one on local statistics (LFS), which exchange cross-attention.

    (N, 3, H, W) -> (N, 1). 47,966,697 parameters. The branches exchange attention after the blocks 7 and 12 of their
    Xceptions. Their averages are joined before the last layer.

    The bands of FAD, the window of LFS (10 pixels, stride 2, six bands), and the places and the form of the attention
    were taken from the reimplementation by yyk-wew (github.com/yyk-wew/F3Net) and others that follow it, without the
    paper's text and without code of the authors. They differ in what a sixteenth of the spectrum is; here it is a share
    of the coefficients, as in yyk-wew's latest version.

    Departures from that version: The corrections of FAD are a grid that is stretched over the spectrum, so that images
    of any size work. LFS takes the logarithm of a band's sum, not the mean of logarithms. The
    convolutions of the Xceptions' stems are padded, and LFS has ceil(H / 2) rows instead of floor(H / 2), so that the
    maps of both branches have one size. Weights start at random, not from ImageNet. :class:`MixBlock` names its own
    departures.
    """

    detector, paper_name = "f3net", "F3Net"

    def __init__(self) -> None:
        super().__init__()
        self.decomposition = FrequencyAwareDecomposition()
        self.statistics = LocalFrequencyStatistics()
        self.decomposed = xception.Xception(3 * len(_BANDS), padding=1)
        self.local = xception.Xception(STATISTICS, stride=1, padding=1)
        self.mixing = nn.ModuleDict({str(number): MixBlock(xception.BLOCKS[number - 1].widths[-1]) for number in MIXED})
        self.dropout = nn.Dropout(_DROPOUT)
        self.fc = nn.Linear(self.decomposed.channels + self.local.channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):  # spectra need full precision
            decomposed = self.decomposition(self.normalised(images))
            local = self.statistics(self.unit_pixels(images))
        decomposed, local = self.decomposed.stem(decomposed), self.local.stem(local)
        blocks = zip(self.decomposed.blocks, self.local.blocks, strict=True)
        for number, (decomposed_block, local_block) in enumerate(blocks, 1):
            decomposed, local = decomposed_block(decomposed), local_block(local)
            if number in MIXED:
                decomposed, local = self.mixing[str(number)](decomposed, local)
        features = self.decomposed.tail(decomposed), self.local.tail(local)
        return self.fc(self.dropout(torch.cat([x.mean((2, 3)) for x in features], 1)))

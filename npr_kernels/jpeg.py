"""Compiled statistics of the DCT coefficients of JPEGs. They are independent of NPR."""

from __future__ import annotations

import torch
from torch import Tensor

from npr_kernels import extension


def coefficient_gaps(
    pixels: Tensor,
    steps: Tensor,
    places: Tensor,
    shares: Tensor,
    *,
    frequencies: int,
    candidates: int,
    blocks: int,
    bins: int,
) -> list[float]:
    """Return for each frequency how empty the gaps in the histogram of a JPEG's coefficients are.

    There is one histogram for each of the 4x4 lowest luminance coefficients. It counts absolute values, in quantisation
    steps. A gap belongs to an owner: a frequency and a candidate for the step of an earlier compression. Observed and
    expected counts are summed over the gaps of an owner. An owner has half the Poisson deviance between the sums if
    less than a third of the expected count was observed, else 0. The result is the largest of each frequency.

    Args:
        pixels: (H, W, 3) uint8, contiguous: the decoded JPEG.
        steps: (4, 4) float32, at least 1: the quantisation steps, (vertical, horizontal).
        places: (G, 4) int64, one row per gap: the histogram index of the gap, of the values below and above it, and its
            owner, frequency * candidates + candidate.
        shares: (G,) float64: the weight of the value above in the interpolation.
        frequencies: number of frequencies.
        candidates: owners of each frequency.
        blocks: largest number of 8x8 blocks to count, evenly spread over the image.
        bins: length of a histogram; the last bin also counts all larger magnitudes.

    Raises:
        RuntimeError: an argument does not have this form, or the extension is not loaded.
    """
    extension.require("coefficient_gaps")
    return torch.ops.npr_kernels.coefficient_gaps(pixels, steps, places, shares, frequencies, candidates, blocks, bins)

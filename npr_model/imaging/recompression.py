"""Detect JPEGs that were saved from a more coarsely quantised JPEG, by gaps in the histograms of DCT coefficients.

A file's coefficients are whole multiples of its quantisation steps. If an earlier JPEG on the same grid had coarser
steps, the coefficients lie near multiples of those steps, and values far from every multiple are rare: the histogram
has gaps (Lukas and Fridrich, "Estimation of primary quantization matrix in double compressed JPEG images", 2003). An
earlier compression that was finer, or on another grid, leaves no gaps and is not detected.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from npr_kernels import jpeg
from npr_kernels.capabilities import is_compiled

FREQUENCIES = ((0, 1), (1, 0), (0, 2), (1, 1), (2, 0), (0, 3), (1, 2), (2, 1), (3, 0))  # (vertical, horizontal)
MOST_BLOCKS = 512
BINS = 26
CANDIDATES = 40
OWNERS = len(FREQUENCIES) * CANDIDATES  # of gaps: a frequency and an earlier step
RATIOS = np.geomspace(1.2, 12, CANDIDATES)  # earlier step / the file's step
NOISE = 0.75  # in coefficients, from rounding pixels between the compressions; the standard deviation is about 0.2
LEAST_DEVIANCE = 60.0  # nearly all photographs that were compressed once stay below it


def was_coarser(pixels: np.ndarray, table: Sequence[int]) -> bool:
    """Return whether ``pixels`` show an earlier, coarser JPEG compression.

    Args:
        pixels: (H, W, 3) uint8, a whole decoded JPEG.
        table: The file's luminance quantisation, 64 numbers row by row.

    False also where it cannot be told: in small or flat images.
    """
    deviance = gaps(pixels, table)
    # Without the largest, as patterns in the picture itself can leave gaps in one frequency.
    return sum(deviance) - max(deviance) >= LEAST_DEVIANCE


def gaps(pixels: np.ndarray, table: Sequence[int]) -> list[float]:
    """Return one number per frequency in FREQUENCIES: how empty the gaps of the best-fitting earlier step are.

    It is half the Poisson deviance between the observed counts in the gaps and those interpolated from both sides.
    """
    table = tuple(table)
    if not is_compiled():
        return plain_gaps(pixels, _search(table))
    image = torch.from_numpy(pixels if pixels.flags.carray else np.require(pixels, requirements=["C", "W"]))
    return jpeg.coefficient_gaps(
        image, *_tensors(table), frequencies=len(FREQUENCIES), candidates=CANDIDATES, blocks=MOST_BLOCKS, bins=BINS
    )


class Search(NamedTuple):
    """Where gaps can be, for one quantisation table.

    Attributes:
        steps: (4, 4) float32, quantisation steps of the lowest frequencies, (vertical, horizontal).
        places: (G, 4) int64, one row per gap: histogram index of the gap, of the reachable values below and above it,
            and the owner (a frequency and an earlier step, numbered 0 .. OWNERS - 1).
        shares: (G,) float64, weight of the value above in the interpolation.
    """

    steps: np.ndarray
    places: np.ndarray
    shares: np.ndarray


def plain_gaps(pixels: np.ndarray, search: Search) -> list[float]:
    """The same as the compiled operator, in NumPy.

    They differ only for coefficients halfway between two steps, as the operator computes in float32.
    """
    histograms = _histograms(pixels, search.steps)
    number, below, above, owner = search.places.T
    logarithms = np.log(histograms + 0.5)
    between = np.exp((1 - search.shares) * logarithms[below] + search.shares * logarithms[above]) - 0.5
    expected = np.bincount(owner, between, OWNERS)
    found = np.bincount(owner, histograms[number], OWNERS)
    empty = 3 * found < expected
    found, expected = found[empty], expected[empty]
    deviance = np.zeros(OWNERS)
    deviance[empty] = expected - found + found * np.log(np.maximum(found, 1) / expected)
    return deviance.reshape(len(FREQUENCIES), CANDIDATES).max(1).tolist()


def _histograms(pixels: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Histograms of the absolute quantised luma coefficients, (4 * 4 * BINS,).

    Computed on at most MOST_BLOCKS blocks. The last bin is open-ended.
    """
    rows, columns = pixels.shape[0] // 8, pixels.shape[1] // 8
    blocks = pixels[: 8 * rows, : 8 * columns].reshape(rows, 8, columns, 8, 3)
    chosen = np.linspace(0, rows * columns, min(rows * columns, MOST_BLOCKS), endpoint=False).astype(int)
    some = blocks[chosen // max(columns, 1), :, chosen % max(columns, 1)] @ np.array((0.299, 0.587, 0.114))
    frequency, place = np.arange(4)[:, None], np.arange(8)
    basis = np.cos((2 * place + 1) * frequency * np.pi / 16) * np.where(frequency == 0, 8**-0.5, 0.5)
    magnitudes = np.abs(basis @ some @ basis.T) / steps
    counts = np.minimum(np.rint(magnitudes), BINS - 1).astype(np.int64).reshape(-1, 16)
    return np.bincount((counts + BINS * np.arange(16)).ravel(), minlength=16 * BINS)


@functools.lru_cache(64)  # a collection has few different tables
def _search(table: tuple[int, ...]) -> Search:
    steps = np.maximum(1, np.reshape(table, (8, 8))[:4, :4])
    places: list[tuple[int, ...]] = []
    shares: list[float] = []
    counts = np.arange(BINS - 1)
    for frequency, (vertical, horizontal) in enumerate(FREQUENCIES):
        step, first = steps[vertical, horizontal], BINS * (4 * vertical + horizontal)
        for candidate, earlier in enumerate(np.unique(np.rint(step * RATIOS))):
            distance = np.abs(counts * step - earlier * np.rint(counts * step / earlier))
            reachable = np.flatnonzero(distance <= step / 2 + NOISE)
            for below, above in pairwise(reachable):
                if below * step > earlier / 2:  # interpolation is poor between 0 and the first multiple
                    for number in range(below + 1, above):
                        owner = frequency * CANDIDATES + candidate
                        places.append((first + number, first + int(below), first + int(above), owner))
                        shares.append((number - below) / (above - below))
    return Search(steps.astype(np.float32), np.array(places, np.int64).reshape(-1, 4), np.array(shares, np.float64))


@functools.lru_cache(64)
def _tensors(table: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    steps, places, shares = map(torch.from_numpy, _search(table))
    return steps, places, shares

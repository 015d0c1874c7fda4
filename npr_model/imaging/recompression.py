"""Was a JPEG compressed before, and coarser? Told by the gaps in the histograms of its DCT coefficients.

A file's coefficients are whole numbers of steps of its table. Where an earlier JPEG on the same grid had coarser
steps, they lie near the multiples of those, and numbers far from every multiple hardly occur: the histogram has gaps
(Lukas and Fridrich, "Estimation of primary quantization matrix in double compressed JPEG images", 2003). An earlier
compression that was finer, or on another grid, leaves no gaps and is not found.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from npr_kernels.backends import extension

FREQUENCIES = ((0, 1), (1, 0), (0, 2), (1, 1), (2, 0), (0, 3), (1, 2), (2, 1), (3, 0))  # (vertical, horizontal)
MOST_BLOCKS = 512
BINS = 26
CANDIDATES = 40
OWNERS = len(FREQUENCIES) * CANDIDATES  # of gaps
RATIOS = np.geomspace(1.2, 12, CANDIDATES)  # of an earlier step to the file's
NOISE = 0.75  # of a coefficient between the compressions, from rounded pixels, whose standard deviation is about 0.2
LEAST_DEVIANCE = 60.0  # more than photographs have that were compressed once, nearly all of them


def was_coarser(pixels: np.ndarray, table: Sequence[int]) -> bool:
    """Whether ``pixels``, (H, W, 3) uint8 of a whole decoded JPEG, show an earlier and coarser JPEG compression.

    ``table``: the file's luminance quantisation, 64 numbers in reading order. False, too, where that cannot be told:
    in small or flat images.
    """
    deviance = gaps(pixels, table)
    # Less the largest: patterns in the picture itself leave gaps in one frequency.
    return bool(deviance.sum() - deviance.max() >= LEAST_DEVIANCE)


def gaps(pixels: np.ndarray, table: Sequence[int]) -> np.ndarray:
    """For each of FREQUENCIES how much too empty the gaps are that the likeliest earlier step would leave: half the
    Poisson deviance of what they hold from what the numbers on both sides let expect."""
    search = _search(tuple(table))
    if extension.FAILURE:
        deviance = plain_deviance(pixels, search)
    else:
        image = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
        counts = OWNERS, MOST_BLOCKS, BINS
        deviance = torch.ops.npr_kernels.coefficient_gaps(image, *map(torch.from_numpy, search), *counts).numpy()
    return deviance.reshape(len(FREQUENCIES), CANDIDATES).max(1)


class Search(NamedTuple):
    """Where gaps can be with a quantisation table.

    ``steps``: (4, 4) float32 of the lowest coefficients, (vertical, horizontal). ``places``: (G, 4) int64; numbers of
    steps out of an earlier step's reach, as places in the histograms: themselves, the reachable ones below and above,
    and to which of OWNERS, a frequency and an earlier step, they belong. ``shares``: (G,) float64, that ``above`` has
    in the interpolation.
    """

    steps: np.ndarray
    places: np.ndarray
    shares: np.ndarray


def plain_deviance(pixels: np.ndarray, search: Search) -> np.ndarray:
    """(OWNERS,) float64, without the compiled operator, which finds the same but for coefficients halfway between two
    steps: it computes in float32."""
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
    return deviance


def _histograms(pixels: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(4 * 4 * BINS,): how often the magnitude of a coefficient of luminance is so many steps, in MOST_BLOCKS of the
    blocks, or in all; the last of BINS: or more."""
    rows, columns = pixels.shape[0] // 8, pixels.shape[1] // 8
    blocks = pixels[: 8 * rows, : 8 * columns].reshape(rows, 8, columns, 8, 3)
    chosen = np.linspace(0, rows * columns, min(rows * columns, MOST_BLOCKS), endpoint=False).astype(int)
    some = blocks[chosen // max(columns, 1), :, chosen % max(columns, 1)] @ np.array((0.299, 0.587, 0.114))
    frequency, place = np.arange(4)[:, None], np.arange(8)
    basis = np.cos((2 * place + 1) * frequency * np.pi / 16) * np.where(frequency == 0, 8**-0.5, 0.5)
    magnitudes = np.abs(basis @ some @ basis.T) / steps
    counts = np.minimum(np.rint(magnitudes), BINS - 1).astype(np.int64).reshape(-1, 16)
    return np.bincount((counts + BINS * np.arange(16)).ravel(), minlength=16 * BINS)


@functools.lru_cache(64)  # a collection has few tables
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
                if below * step > earlier / 2:  # between 0 and the first multiple nothing interpolates well
                    for number in range(below + 1, above):
                        owner = frequency * CANDIDATES + candidate
                        places.append((first + number, first + below, first + above, owner))
                        shares.append((number - below) / (above - below))
    return Search(steps.astype(np.float32), np.array(places, np.int64).reshape(-1, 4), np.array(shares, np.float64))

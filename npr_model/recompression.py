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

FREQUENCIES = ((0, 1), (1, 0), (0, 2), (1, 1), (2, 0), (0, 3), (1, 2), (2, 1), (3, 0))  # (vertical, horizontal)
MOST_BLOCKS = 512
BLOCKS_AT_ONCE = 128  # so few are multiplied where they are; more, BLAS spreads over cores that have other things to do
BINS = 26
CANDIDATES = 40
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
    steps = tuple(max(1, table[8 * vertical + horizontal]) for vertical, horizontal in FREQUENCIES)
    histograms, gap = _histograms(pixels, steps), _possible_gaps(steps)
    logarithms = np.log(histograms + 0.5)
    between = np.exp((1 - gap.share) * logarithms[gap.below] + gap.share * logarithms[gap.above]) - 0.5
    expected = np.bincount(gap.owner, between, len(FREQUENCIES) * CANDIDATES)
    found = np.bincount(gap.owner, histograms[gap.number], len(FREQUENCIES) * CANDIDATES)
    empty = 3 * found < expected
    found, expected = found[empty], expected[empty]
    deviance = np.zeros(len(empty))
    deviance[empty] = expected - found + found * np.log(np.maximum(found, 1) / expected)
    return deviance.reshape(len(FREQUENCIES), CANDIDATES).max(1)


def _histograms(pixels: np.ndarray, steps: tuple[int, ...]) -> np.ndarray:
    """(frequencies * BINS,): how often the magnitude of a coefficient is so many steps; the last of BINS: or more."""
    rows, columns = pixels.shape[0] // 8, pixels.shape[1] // 8
    blocks = pixels[: 8 * rows, : 8 * columns].reshape(rows, 8, columns, 8, 3)
    row, column = _chosen(rows, columns)
    some = blocks[row, :, column].reshape(-1, 64 * 3).astype(np.float32)
    products = [some[i : i + BLOCKS_AT_ONCE] @ _projection(steps) for i in range(0, max(1, len(some)), BLOCKS_AT_ONCE)]
    counts = np.minimum(np.rint(np.abs(np.concatenate(products))), BINS - 1).astype(np.int64)
    return np.bincount((counts + BINS * np.arange(len(steps))).ravel(), minlength=BINS * len(steps))


@functools.lru_cache(64)
def _chosen(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of MOST_BLOCKS of the blocks, or of all, evenly."""
    chosen = np.linspace(0, rows * columns, min(rows * columns, MOST_BLOCKS), endpoint=False).astype(int)
    return chosen // max(columns, 1), chosen % max(columns, 1)


@functools.lru_cache(64)
def _projection(steps: tuple[int, ...]) -> np.ndarray:
    """(64 * 3, frequencies): the pixels of a block to coefficients of luminance, in steps."""
    frequency, place = np.arange(8)[:, None], np.arange(8)
    basis = np.cos((2 * place + 1) * frequency * np.pi / 16) * np.where(frequency == 0, 8**-0.5, 0.5)
    columns = [
        np.einsum("i,j,c->ijc", basis[vertical], basis[horizontal], (0.299, 0.587, 0.114)).ravel() / step
        for (vertical, horizontal), step in zip(FREQUENCIES, steps, strict=True)
    ]
    return np.stack(columns, 1).astype(np.float32)


class Gaps(NamedTuple):
    """Numbers of steps out of an earlier step's reach, as places in histograms: themselves, the reachable ones on both
    sides, the share that ``above`` has in the interpolation, and to which frequency and earlier step they belong."""

    number: np.ndarray
    below: np.ndarray
    above: np.ndarray
    share: np.ndarray
    owner: np.ndarray


@functools.lru_cache(64)
def _possible_gaps(steps: tuple[int, ...]) -> Gaps:
    found: list[tuple[int, int, int, float, int]] = []
    counts = np.arange(BINS - 1)
    for frequency, step in enumerate(steps):
        for candidate, earlier in enumerate(np.unique(np.rint(step * RATIOS))):
            distance = np.abs(counts * step - earlier * np.rint(counts * step / earlier))
            reachable = np.flatnonzero(distance <= step / 2 + NOISE)
            for below, above in pairwise(reachable):
                if below * step > earlier / 2:  # between 0 and the first multiple nothing interpolates well
                    for number in range(below + 1, above):
                        places = (BINS * frequency + place for place in (number, below, above))
                        share = (number - below) / (above - below)
                        found.append((*places, share, frequency * CANDIDATES + candidate))
    number, below, above, share, owner = np.array(found).reshape(-1, 5).T
    return Gaps(*(column.astype(np.int64) for column in (number, below, above)), share, owner.astype(np.int64))

"""Launches: on the tensors' device and its current stream, with the fastest of a few tile sizes.

The first call of a shape class times the candidates (some tens of milliseconds and a compilation each) and keeps the
winner for the process. Only kernels whose results do not depend on the tile's size have more than one candidate; sums
over the batch always run with the same one and repeat to the bit. While a CUDA graph is captured nothing is timed: a
shape class that was not warmed up before runs with the first candidate.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
import triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GRID_LIMIT = 2**31 - 1

_fastest: dict[Hashable, Tile] = {}


class Tile(NamedTuple):
    """A candidate: positions of a tile, output channels of a tile, warps of a program."""

    positions: int
    outputs: int
    warps: int


Arguments = Callable[[Tile], tuple[tuple[int, ...], tuple, dict]]  # grid, positional and keyword arguments


def launch(kernel, device: torch.device, tiles: Sequence[Tile], shape_class: Hashable, arguments: Arguments) -> None:
    """Run ``kernel`` with the fastest of ``tiles`` for ``shape_class``."""
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        key = (kernel, device.index, shape_class)
        tile = _fastest.get(key, tiles[0])
        if len(tiles) > 1 and key not in _fastest and not INTERPRETED and not torch.cuda.is_current_stream_capturing():
            tile = _fastest[key] = min(tiles, key=lambda candidate: _time(kernel, candidate, arguments))
        run(kernel, tile, arguments)


def run(kernel, tile: Tile, arguments: Arguments) -> None:
    grid, positional, keywords = arguments(tile)
    if grid[0] > GRID_LIMIT:
        raise ValueError(f"x is too large for one launch: {grid[0]} tiles, at most {GRID_LIMIT} are possible")
    # No software pipelining: it would stage single words through shared memory. Resident programs hide latency.
    kernel[grid](*positional, **keywords, num_warps=tile.warps, num_stages=1, enable_fp_fusion=True)


def _time(kernel, tile: Tile, arguments: Arguments) -> float:
    """Milliseconds; infinite for a tile that this device cannot hold."""
    try:
        return triton.testing.do_bench(lambda: run(kernel, tile, arguments), warmup=5, rep=20, return_mode="median")
    except triton.runtime.errors.OutOfResources:
        return float("inf")

"""The network replayed as CUDA graphs, one per batch size.

For a few small images, launching about forty kernels takes longer than the GPU needs to compute them.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from npr_model.errors import reason

_logger = logging.getLogger("npr_model")

MOST_PIXELS = 2**22  # per batch; larger batches hide the launches, and graphs hold on to their memory
MOST_GRAPHS = 32
UNCAPTURED = 3  # calls with a size before it is captured; a capture takes longer than a few batches
MOST_SEEN = 1024

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Captured:
    """One captured graph: ``replay()`` reads the memory of ``images`` and writes ``result``."""

    images: Tensor
    replay: Callable[[], None]
    result: Tensor


class CudaGraphs:
    """Calls ``network``, (N, C, H, W) images on a GPU to a tensor, through CUDA graphs where they pay; same values.

    A size is captured after UNCAPTURED calls, so that one-time tuning is not captured. At most MOST_GRAPHS sizes are
    captured and none is replaced; otherwise alternating sizes would be captured for ever. The graphs share memory, as
    they run one after another. If a capture fails, that is logged and no more graphs are used. Threads take turns. A
    copy captures its own graphs.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._captured: dict[tuple, Captured] = {}
        self._seen: Counter[tuple] = Counter()
        self._pool: Any = None  # handle of the memory that all graphs share
        self._failed = False
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[CudaGraphs], tuple[Network]]:
        return CudaGraphs, (self._network,)  # graphs belong to this process and to this network's memory

    def __call__(self, images: Tensor) -> Tensor:
        with self._lock:
            return self._call(images)

    def _call(self, images: Tensor) -> Tensor:
        batch, _, height, width = images.shape
        if self._failed or batch == 0 or batch * height * width > MOST_PIXELS:
            return self._network(images)
        key = (images.shape, images.stride(), images.dtype, images.device)
        captured = self._captured.get(key)
        if captured is None:
            if self._seen[key] < UNCAPTURED or len(self._captured) == MOST_GRAPHS:
                self._seen[key] += 1
                if len(self._seen) > MOST_SEEN:
                    self._seen.clear()
                return self._network(images)
            try:
                captured = self._captured[key] = self._capture(images)
            except RuntimeError as error:  # it cannot be captured, or there is no memory: launch the kernels one by one
                self._failed = True
                _logger.warning("no CUDA graphs from here on (%s)", reason(error))
                return self._network(images)
        captured.images.copy_(images)
        captured.replay()
        return captured.result.clone()

    def _capture(self, images: Tensor) -> Captured:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        images = _with_its_strides(images)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(images.device):
            # Decoding threads may allocate pinned memory meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = self._network(images)
            return Captured(images, graph.replay, result)


def _with_its_strides(images: Tensor) -> Tensor:
    """Copy images with their strides, so that padded rows stay padded and rows begin at the same multiples."""
    dimensions = sorted(zip(images.stride(), images.shape, strict=True))
    if any(step * size > above for (step, size), (above, _) in pairwise([(1, 1), *dimensions])):
        return images.clone(memory_format=torch.preserve_format)  # elements share memory, as in an expanded image
    copied = torch.empty_strided(images.shape, images.stride(), dtype=images.dtype, device=images.device)
    return copied.copy_(images)

"""The network replayed as CUDA graphs, one for each size of batch: of a few small images the GPU computes for less time
than it takes to launch some forty kernels one after another."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_PIXELS = 2**22  # in a batch: of more, the launches hide behind the work, and graphs keep their memory
MOST_GRAPHS = 16
MOST_SEEN = 1024

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Captured:
    """What was launched for ``images``, whose memory is read anew at each ``replay()``, to give ``result``."""

    images: Tensor
    replay: Callable[[], None]
    result: Tensor


class CudaGraphs:
    """``network``, (N, C, H, W) images on a GPU to a tensor, from graphs where they pay; gives the same values.

    A size is captured when it comes for the second time: collections of photographs have sizes that never come again,
    and what is tuned or allocated at first sight must not be captured. The MOST_GRAPHS used last are kept; they share
    memory, as they run one after another. Not for several threads at once.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._captured: OrderedDict[tuple, Captured] = OrderedDict()
        self._seen: OrderedDict[tuple, None] = OrderedDict()
        self._pool: tuple[int, int] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        batch, _, height, width = images.shape
        if batch == 0 or batch * height * width > MOST_PIXELS:
            return self._network(images)
        key = (images.shape, images.stride(), images.dtype, images.device)
        captured = self._captured.get(key)
        if captured is None:
            if key not in self._seen:
                _remember(self._seen, key, None, MOST_SEEN)
                return self._network(images)
            captured = self._capture(images)
            _remember(self._captured, key, captured, MOST_GRAPHS)
        self._captured.move_to_end(key)
        captured.images.copy_(images)
        captured.replay()
        return captured.result.clone()

    def _capture(self, images: Tensor) -> Captured:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        images = images.clone(memory_format=torch.preserve_format)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(images.device):
            # Threads that decode may take pinned memory meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = self._network(images)
            return Captured(images, graph.replay, result)


def _remember(among: OrderedDict, key: tuple, value: object, most: int) -> None:
    among[key] = value
    if len(among) > most:
        among.popitem(last=False)

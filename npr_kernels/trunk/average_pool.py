"""The mean over squares of pixels, for inference on CPUs. It can be quantised for a following block of integers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from npr_kernels import extension


class AveragePool(nn.Module):
    """The mean over squares of ``side`` x ``side`` pixels; at the lower and right edges, of what there is of a square.

    It maps (N, C, H, W), which has no negative values, to (N, C, ceil(H / side), ceil(W / side)), channels_last, of the
    same dtype: float32, or bfloat16 where :func:`npr_kernels.trunk.cpu_bottleneck.unsupported_reason` has no objection.

    Args:
        side: Of the squares, in pixels.
        steps: (C,), positive: quantisation scales of the result, if a
            :class:`npr_kernels.trunk.cpu_bottleneck.QuantisedBottleneck` follows.
    """

    factors: Tensor | None

    def __init__(self, side: int, steps: Tensor | None = None) -> None:
        super().__init__()
        self.side = side
        self.register_buffer("factors", None if steps is None else (1 / steps.double()).float())

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return torch.ops.npr_kernels.average_pool(x, self.side, self.factors)


if not extension.LOAD_ERROR:

    @torch.library.register_fake("npr_kernels::average_pool")
    def _(x: Tensor, side: int, factors: Tensor | None) -> Tensor:
        shape = (x.shape[0], x.shape[1], -(-x.shape[2] // side), -(-x.shape[3] // side))
        dtype = x.dtype if factors is None else torch.uint8
        return torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)

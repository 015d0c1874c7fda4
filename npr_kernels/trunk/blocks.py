"""What the residual blocks of every device take: convolutions with folded batch norms, and their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Folded = tuple[Tensor, Tensor]  # weight (O, C, KH, KW) and bias (O,) of a convolution, see fold_batch_norm
Layers = tuple[Folded, Folded, Folded, Folded | None]  # three convolutions, and that of the shortcut if it has one


class BlockShape(NamedTuple):
    """The channels of a residual block, and its stride. The kernels of a GPU are compiled for them."""

    inputs: int
    middle: int
    outputs: int
    stride: int

    @property
    def projected(self) -> bool:
        """Whether the shortcut needs a convolution, because x has another shape than the result."""
        return self.stride != 1 or self.inputs != self.outputs


def composed(x: Tensor, blocks: Sequence[tuple[Layers, int]], averaged: bool = False) -> Tensor:
    """Compute residual blocks (layers and stride) with torch's convolutions in x's dtype: the reference.

    ``averaged``: return the mean over the pixels, (N, channels, 1, 1), in float32 or wider.
    """
    for layers, stride in blocks:
        conv1, conv2, conv3 = ((weight.to(x), bias.to(x)) for weight, bias in layers[:3])
        shortcut = layers[3] and (layers[3][0].to(x), layers[3][1].to(x))
        y = F.relu(F.conv2d(x, *conv1))
        y = F.conv2d(F.relu(F.conv2d(y, *conv2, stride, 1)), *conv3)
        x = F.relu(y + (x if shortcut is None else F.conv2d(x, *shortcut, stride)))
    if not averaged:
        return x
    return x.to(torch.promote_types(x.dtype, torch.float32)).mean((2, 3), keepdim=True)

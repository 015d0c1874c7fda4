"""Residual blocks with the batch norms folded into the convolutions, run by oneDNN or by torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npr_kernels import fold_batch_norm
from npr_kernels.trunk.blocks import Layers
from npr_model.detectors.layers.resnet import Bottleneck


class FoldedConv2d(nn.Module):
    """A convolution with its batch norm folded in, an optional residual sum and an optional ReLU.

    The result may overwrite ``shortcut``.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d, dtype: torch.dtype, relu: bool, onednn: bool) -> None:
        super().__init__()
        weight, bias = fold_batch_norm(conv.weight.detach(), None, bn)
        check_finite(weight, bias)
        weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self.stride, self.padding, self.relu, self.onednn = conv.stride, conv.padding, relu, onednn
        if onednn:  # oneDNN's blocked layout; without a typical size it chooses a slow one
            typical = (1, weight.shape[1], 64, 64)
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, self.padding, self.stride, (1, 1), 1, typical)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias.detach().to(dtype))

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if self.onednn:
            geometry = self.weight, self.bias, self.padding, self.stride, (1, 1), 1
            if shortcut is None:
                return torch.ops.mkldnn._convolution_pointwise(x, *geometry, "relu" if self.relu else "none", [], "")
            # The sum overwrites the shortcut, which is in the cache and is not needed any more.
            return torch.ops.mkldnn._convolution_pointwise_.binary(
                shortcut, x, *geometry, "add", 1.0, "relu" if self.relu else "none", [], ""
            )
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        if shortcut is not None:
            y = y + shortcut
        return F.relu(y) if self.relu else y


class FoldedBottleneck(nn.Module):
    """:class:`npr_model.detectors.layers.resnet.Bottleneck` in evaluation mode, in at most four fused operations."""

    def __init__(self, block: Bottleneck, dtype: torch.dtype, onednn: bool) -> None:
        super().__init__()

        def fold(relu: bool, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> FoldedConv2d:
            return FoldedConv2d(conv, bn, dtype, relu, onednn)

        self.conv1 = fold(True, block.conv1, block.bn1)
        self.conv2 = fold(True, block.conv2, block.bn2)
        self.conv3 = fold(True, block.conv3, block.bn3)
        self.downsample = None if block.downsample is None else fold(False, *block.downsample)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.conv3(self.conv2(self.conv1(x)), shortcut)


def folded_layers(block: Bottleneck) -> Layers:
    """Return weight and bias of conv1, conv2, conv3 and the shortcut's convolution; None if it has none."""

    def fold(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        folded = fold_batch_norm(conv.weight.detach(), None, bn)
        check_finite(*folded)
        return folded

    shortcut = None if block.downsample is None else fold(*block.downsample)
    return fold(block.conv1, block.bn1), fold(block.conv2, block.bn2), fold(block.conv3, block.bn3), shortcut


def check_finite(*folded: Tensor) -> None:
    """Raise ValueError for weights or biases that are NaN or infinite."""
    if not all(parameter.isfinite().all() for parameter in folded):
        raise ValueError("the network's weights or batch-norm statistics give NaN or infinite convolutions")

"""Residual bottlenecks of ResNet-50 for inference on CPUs, each as one kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from npr_kernels import extension
from npr_kernels.trunk.blocks import Folded

# Winograd transforms of three weights, for two results and for four (Lavin and Gray, 2016). The second gives four times
# the results, and its rows are scaled to similar sizes. csrc/cpu/winograd.h has the transforms of inputs and outputs.
WEIGHTS_TO_TWO = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
WEIGHTS_TO_FOUR = (
    (1, 0, 0), (-2 / 3, -2 / 3, -2 / 3), (-2 / 3, 2 / 3, -2 / 3), (1 / 4, 1 / 2, 1), (1 / 4, -1 / 2, 1), (0, 0, 1)
)  # fmt: skip
INPUTS_TO_FOUR = (
    (4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)  # fmt: skip


@dataclass(frozen=True)
class Steps:
    """Quantisation scales: the value of one step for each channel, (C,) float32, positive.

    ``x`` is for the input of the block, ``first`` and ``second`` for the results of the first two convolutions, and
    ``out`` for the result of the block. ``out`` is None if the result is not quantised.
    """

    x: Tensor
    first: Tensor
    second: Tensor
    out: Tensor | None


class FusedBottleneck(nn.Module):
    """``relu(conv3(relu(conv2(relu(conv1(x))))) + shortcut(x))`` in one pass, without gradients.

    It maps (N, C, H, W) to (N, O, ceil(H / stride), ceil(W / stride)) of ``dtype``, channels_last. The activations
    between the convolutions stay in the caches. Sums are float32.

    Args:
        conv1, conv2, conv3: The 1x1, 3x3 (padding 1, with the stride) and 1x1 convolutions, with folded batch norms.
        shortcut: The 1x1 convolution of the shortcut; None if the shortcut is x itself.
        stride: 1 or 2.
        dtype: float32 or bfloat16: the type of x, of the products and of the result.
        out_steps: (O,), positive: quantisation scales of the result, if a :class:`QuantisedBottleneck` follows in a
            :class:`CpuBottlenecks`. Needs a ``shortcut``.

    Raises:
        ValueError: :func:`unsupported_reason` returns a reason.
    """

    def __init__(
        self,
        conv1: Folded,
        conv2: Folded,
        conv3: Folded,
        shortcut: Folded | None,
        stride: int,
        dtype: torch.dtype,
        out_steps: Tensor | None = None,
    ) -> None:
        super().__init__()
        _check_served(dtype, conv1)
        self.stride = stride
        matrices, biases = _matrices(conv1, conv2, conv3, shortcut)
        if out_steps is not None:
            if shortcut is None:
                raise ValueError("out_steps need a shortcut with a convolution")
            matrices[2], biases[2] = matrices[2] / out_steps.double()[:, None], biases[2] / out_steps
        packed = [[matrix] for matrix in matrices]
        if stride == 1:
            packed[1] = winograd_matrices(conv2[0], WEIGHTS_TO_TWO)
        _register(self, packed, biases, [torch.empty(0)] * 4, [dtype] * 3)

    def forward(self, x: Tensor) -> Tensor:
        return run([self], x)


class QuantisedBottleneck(nn.Module):
    """A :class:`FusedBottleneck` with integer weights and activations, and with exact sums.

    Use it in a :class:`CpuBottlenecks` whose first block is not quantised; that block must be bfloat16 if the
    processor serves it, else float32. Activations are whole numbers from 0 to :func:`max_quantised_value`.

    The weights of an output channel, multiplied by the inputs' quantisation scales, are rounded to 127ths of the
    largest one. With stride 1, the 3x3 convolution uses Winograd's transform. Its weights become integers of up to 16
    bits, as large as exact sums in 32 bits allow: about 13 bits and a sign for 64 channels, and one bit less for each
    doubling.

    Raises:
        ValueError: :func:`unsupported_reason` returns a reason for int8, or a convolution has too many inputs for exact
            sums.
    """

    def __init__(
        self, conv1: Folded, conv2: Folded, conv3: Folded, shortcut: Folded | None, stride: int, steps: Steps
    ) -> None:
        super().__init__()
        _check_served(torch.int8, conv1)
        self.stride = stride
        matrices, biases = _matrices(conv1, conv2, conv3, shortcut)
        out = torch.ones_like(biases[2]) if steps.out is None else steps.out
        inputs = [steps.x, steps.first.repeat(9), steps.second]  # scales of the columns of each matrix
        if shortcut is not None:
            inputs[2] = torch.cat([steps.second, steps.x])
        factors = []
        for i, (columns, rows) in enumerate(zip(inputs, (steps.first, steps.second, out), strict=True)):
            if len(columns) * 127 * max_quantised_value() >= 2**31:
                raise ValueError(f"a sum over {len(columns)} inputs can leave 32 bits")
            matrix = matrices[i] * columns.double() / rows.double()[:, None]
            factor = matrix.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
            matrices[i], biases[i] = (matrix / factor).round(), biases[i] / rows
            factors.append(factor.flatten())
        factors.append(torch.empty(0) if shortcut is not None else steps.x / out)
        packed, dtypes = [[matrix] for matrix in matrices], [torch.int8] * 3
        if stride == 1:
            weight = conv2[0].detach().double() * steps.first.double().view(1, -1, 1, 1)
            packed[1], factors[1] = _winograd_integers(weight / steps.second.double().view(-1, 1, 1, 1))
            dtypes[1] = torch.int16
        _register(self, packed, biases, factors, dtypes)


class CpuBottlenecks(nn.Sequential):
    """Several :class:`FusedBottleneck` and :class:`QuantisedBottleneck` layers as one call.

    The activations between them need no new memory. With ``averaged``, the result is the mean over the pixels,
    (N, O, 1, 1) float32, and the last activations are never written.
    """

    def __init__(self, *blocks: FusedBottleneck | QuantisedBottleneck, averaged: bool = False) -> None:
        super().__init__(*blocks)
        self.averaged = averaged

    def forward(self, x: Tensor) -> Tensor:
        return run(cast(list[FusedBottleneck | QuantisedBottleneck], list(self)), x, self.averaged)


def run(blocks: list[FusedBottleneck | QuantisedBottleneck], x: Tensor, averaged: bool = False) -> Tensor:
    """Compute ``blocks`` one after another on x (N, C, H, W)."""
    weights = [weight for block in blocks for weight in (block.weight1, block.weight2, block.weight3)]
    biases = [bias for block in blocks for bias in (block.bias1, block.bias2, block.bias3)]
    factors = [factor for block in blocks for factor in (block.factor1, block.factor2, block.factor3, block.factor4)]
    x = x.contiguous(memory_format=torch.channels_last)
    strides = [block.stride for block in blocks]
    return torch.ops.npr_kernels.bottlenecks(x, weights, biases, factors, strides, averaged)


def _check_served(dtype: torch.dtype, conv1: Folded) -> None:
    reason = unsupported_reason(dtype, conv1[0].shape[0])
    if reason:
        raise ValueError(f"the fused bottleneck cannot serve: {reason}")


def _matrices(
    conv1: Folded, conv2: Folded, conv3: Folded, shortcut: Folded | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the weights as float64 (channels, inputs), and the biases. The shortcut's inputs follow those of conv3."""
    matrices = [weight.detach().double().permute(0, 2, 3, 1).flatten(1) for weight, _ in (conv1, conv2, conv3)]
    biases = [bias.detach() for _, bias in (conv1, conv2, conv3)]
    if shortcut is not None:  # one matrix product over the inputs of conv3 and of the shortcut
        matrices[2] = torch.cat([matrices[2], shortcut[0].detach().double().flatten(1)], 1)
        biases[2] = biases[2] + shortcut[1].detach()
    return matrices, biases


def _register(
    block: nn.Module,
    layers: list[list[Tensor]],
    biases: list[Tensor],
    factors: list[Tensor],
    dtypes: list[torch.dtype],
) -> None:
    for i, (layer, bias, dtype) in enumerate(zip(layers, biases, dtypes, strict=True), 1):
        pack = [torch.ops.npr_kernels.pack_weights(matrix.float().contiguous(), dtype) for matrix in layer]
        block.register_buffer(f"weight{i}", torch.cat(pack))
        block.register_buffer(f"bias{i}", bias.detach().float().contiguous())
    for i, factor in enumerate(factors, 1):
        block.register_buffer(f"factor{i}", factor.float().contiguous())


def winograd_matrices(weight: Tensor, transform: tuple[tuple[float, ...], ...]) -> list[Tensor]:
    """Return the Winograd form of a 3x3 weight, G weight transpose(G): its elements row by row, as (O, C) float64."""
    g = torch.tensor(transform, dtype=torch.float64)
    transformed = torch.einsum("iy,ocyx,jx->ijoc", g, weight.detach().double(), g)
    return list(transformed.flatten(0, 1))


def _winograd_integers(weight: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the matrices of F(4x4, 3x3) for a float64 weight (O, C, 3, 3) as 16-bit integers, and factors (O,).

    The integers are as large as the 32-bit sums allow. The factors convert the sums to results.
    """
    transform = torch.tensor(INPUTS_TO_FOUR, dtype=torch.float64)
    above, below = transform.clamp(min=0).sum(1), -transform.clamp(max=0).sum(1)
    # Inputs are never negative, so the larger of the positive and the negative part of a transform limits its values.
    added = above.outer(above) + below.outer(below)
    subtracted = above.outer(below) + below.outer(above)
    reach = max_quantised_value() * torch.maximum(added, subtracted)
    matrices = torch.stack(winograd_matrices(weight, WEIGHTS_TO_FOUR))
    room = 2**31 - 1 - weight.shape[1] * reach.max() / 2  # the rest is for the rounding of the weights
    sums = (matrices.abs().sum(2) * reach.flatten()[:, None]).amax(0)
    scale = torch.minimum(room / sums.clamp(min=1e-30), (2**15 - 1) / matrices.abs().amax((0, 2)).clamp(min=1e-30))
    return list((matrices * scale.view(-1, 1)).round()), 1 / (16 * scale)


def max_quantised_value() -> int:
    """Return the largest value of a quantised activation: 255, or 127 without VNNI, or 0 if int8 is not served.

    Without VNNI, the sum of two products must fit into 16 bits. Activations lose the bit rather than weights, because
    the rounding error of a weight is the same at every pixel.
    """
    return torch.ops.npr_kernels.max_quantised_value()


def unsupported_reason(dtype: torch.dtype, width: int) -> str | None:
    """Return why this machine has no fused bottleneck for ``dtype`` and ``width`` inner channels, else None."""
    if extension.LOAD_ERROR:
        return extension.LOAD_ERROR
    if dtype not in (torch.float32, torch.bfloat16, torch.int8):
        return f"it has no kernel for {dtype}"
    if not torch.ops.npr_kernels.serves_bottlenecks(dtype):
        return f"the processor has no dot products of {str(dtype).removeprefix('torch.')}"
    if width % 64:
        return f"it computes 64 channels at a time, and {width} is no multiple of that"
    return None


if not extension.LOAD_ERROR:

    @torch.library.register_fake("npr_kernels::pack_weights")
    def _(weight: Tensor, dtype: torch.dtype) -> Tensor:
        return weight.new_empty(weight.numel(), dtype=dtype)

    @torch.library.register_fake("npr_kernels::bottlenecks")
    def _(
        x: Tensor, weights: list[Tensor], biases: list[Tensor], factors: list[Tensor], strides: list[int],
        averaged: bool,
    ) -> Tensor:  # fmt: skip
        if averaged:
            return x.new_empty((x.shape[0], biases[-1].shape[0], 1, 1), dtype=torch.float32)
        height, width = x.shape[-2:]
        for stride in strides:
            height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
        shape = (x.shape[0], biases[-1].shape[0], height, width)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)

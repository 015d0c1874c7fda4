"""The residual bottleneck of ResNet-50 in evaluation mode as one kernel, for the network behind a stem on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from npr_kernels.backends import extension

Folded = tuple[Tensor, Tensor]  # weight (O, C, KH, KW) and bias (O,) of a convolution, see fold_batch_norm


# Winograd's transforms of three weights (Lavin and Gray, 2016), for two results and for four. The second gives four
# times the results, and its rows are scaled to be of like size; csrc/cpu/bottleneck.h has the transforms that go with
# them.
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
    """By how much one step of a quantised activation raises each channel: (C,) float32, positive.

    ``x``: of the block's input; ``first``, ``second``: of what the first two convolutions give; ``out``: of the block's
    result, None if that is not quantised.
    """

    x: Tensor
    first: Tensor
    second: Tensor
    out: Tensor | None


class FusedBottleneck(nn.Module):
    """``relu(conv3(relu(conv2(relu(conv1(x))))) + shortcut(x))`` in one pass, without gradients.

    (N, C, H, W) -> (N, O, ceil(H / stride), ceil(W / stride)) of ``dtype``, channels_last; what lies between the
    convolutions never leaves the caches. Sums are float32.

    Args:
        conv1, conv2, conv3: the 1x1, 3x3 (padding 1; it carries the stride) and 1x1 convolutions, batch norms folded.
        shortcut: the 1x1 convolution of the shortcut, None for x itself.
        stride: 1 or 2.
        dtype: float32 or bfloat16, of x, of the products and of the result.
        out_steps: (O,), positive: gives the result in these steps, for a :class:`QuantisedBottleneck` behind this one
            in a :class:`FusedBottlenecks`. Needs a shortcut.

    Raises:
        ValueError: :func:`refusal` has a reason.
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
    """A :class:`FusedBottleneck` on activations from 0 to :func:`most_level` and integer weights, with exact sums; to
    be one of a :class:`FusedBottlenecks`, whose first block is not quantised, and of bfloat16 where that is served,
    else float32.

    A weight is rounded to a 127th of the largest of its output channel, after the inputs' steps are multiplied in.
    With stride 1 those of the 3x3 convolution, transformed, become integers of at most 16 bits, as large as exact sums
    in 32 bits allow: about 13 bits and a sign with 64 channels, one fewer with each doubling. Raises ValueError where
    :func:`refusal` has a reason against int8, or a convolution has more inputs than such sums can take.
    """

    def __init__(
        self, conv1: Folded, conv2: Folded, conv3: Folded, shortcut: Folded | None, stride: int, steps: Steps
    ) -> None:
        super().__init__()
        _check_served(torch.int8, conv1)
        self.stride = stride
        matrices, biases = _matrices(conv1, conv2, conv3, shortcut)
        out = torch.ones_like(biases[2]) if steps.out is None else steps.out
        inputs = [steps.x, steps.first.repeat(9), steps.second]  # the steps of a matrix's columns
        if shortcut is not None:
            inputs[2] = torch.cat([steps.second, steps.x])
        factors = []
        for i, (columns, rows) in enumerate(zip(inputs, (steps.first, steps.second, out), strict=True)):
            if len(columns) * 127 * most_level() >= 2**31:
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


class FusedBottlenecks(nn.Sequential):
    """:class:`FusedBottleneck` and :class:`QuantisedBottleneck` layers one after another, as one call; what lies
    between them needs no new memory.

    ``averaged``: gives the mean of the result over its pixels, (N, O, 1, 1) float32, and never writes the result.
    """

    def __init__(self, *blocks: FusedBottleneck | QuantisedBottleneck, averaged: bool = False) -> None:
        super().__init__(*blocks)
        self.averaged = averaged

    def forward(self, x: Tensor) -> Tensor:
        return run(list(self), x, self.averaged)


def run(blocks: list[FusedBottleneck | QuantisedBottleneck], x: Tensor, averaged: bool = False) -> Tensor:
    weights = [weight for block in blocks for weight in (block.weight1, block.weight2, block.weight3)]
    biases = [bias for block in blocks for bias in (block.bias1, block.bias2, block.bias3)]
    factors = [factor for block in blocks for factor in (block.factor1, block.factor2, block.factor3, block.factor4)]
    x = x.contiguous(memory_format=torch.channels_last)
    strides = [block.stride for block in blocks]
    return torch.ops.npr_kernels.bottlenecks(x, weights, biases, factors, strides, averaged)


def _check_served(dtype: torch.dtype, conv1: Folded) -> None:
    reason = refusal(dtype, conv1[0].shape[0])
    if reason:
        raise ValueError(f"the fused bottleneck cannot serve: {reason}")


def _matrices(
    conv1: Folded, conv2: Folded, conv3: Folded, shortcut: Folded | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights as float64 (channels, inputs), and biases; the shortcut's inputs stand behind conv3's."""
    matrices = [weight.detach().double().permute(0, 2, 3, 1).flatten(1) for weight, _ in (conv1, conv2, conv3)]
    biases = [bias.detach() for _, bias in (conv1, conv2, conv3)]
    if shortcut is not None:  # summed with conv3: one matrix product over the inputs of both
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
    """The matrices (O, C) of a 3x3 convolution's Winograd form: G weight transpose(G), row by row, float64."""
    g = torch.tensor(transform, dtype=torch.float64)
    transformed = torch.einsum("iy,ocyx,jx->ijoc", g, weight.detach().double(), g)
    return list(transformed.flatten(0, 1))


def _winograd_integers(weight: Tensor) -> tuple[list[Tensor], Tensor]:
    """F(4x4, 3x3)'s matrices of a float64 weight (O, C, 3, 3) as whole numbers of 16 bits, the largest with which no
    sum over transformed levels can leave 32 bits; and the (O,) factors that bring the results to scale."""
    transform = torch.tensor(INPUTS_TO_FOUR, dtype=torch.float64)
    above, below = transform.clamp(min=0).sum(1), -transform.clamp(max=0).sum(1)
    # Inputs are levels, from 0 on, so how far a sum goes is decided by the larger of what can be added and subtracted.
    added = above.outer(above) + below.outer(below)
    subtracted = above.outer(below) + below.outer(above)
    reach = most_level() * torch.maximum(added, subtracted)
    matrices = torch.stack(winograd_matrices(weight, WEIGHTS_TO_FOUR))
    room = 2**31 - 1 - weight.shape[1] * reach.max() / 2  # the rest is for the weights' own rounding
    sums = (matrices.abs().sum(2) * reach.flatten()[:, None]).amax(0)
    scale = torch.minimum(room / sums.clamp(min=1e-30), (2**15 - 1) / matrices.abs().amax((0, 2)).clamp(min=1e-30))
    return list((matrices * scale.view(-1, 1)).round()), 1 / (16 * scale)


def most_level() -> int:
    """The largest whole number that a quantised activation can be: 255, or 127 where the processor has no VNNI, so that
    the products of two side by side fit into 16 bits; 0 where int8 is not served. (Weights of fewer bits instead would
    cost more: they err in the same way at every pixel.)"""
    return torch.ops.npr_kernels.most_level()


def refusal(dtype: torch.dtype, width: int) -> str | None:
    """Why this machine has no fused bottleneck of ``dtype`` with ``width`` channels inside; None if it has."""
    if extension.FAILURE:
        return extension.FAILURE
    if dtype not in (torch.float32, torch.bfloat16, torch.int8):
        return f"it has no kernel for {dtype}"
    if not torch.ops.npr_kernels.serves_bottlenecks(dtype):
        return f"the processor has no dot products of {str(dtype).removeprefix('torch.')}"
    if width % 64:
        return f"it computes 64 channels at a time, and {width} is no multiple of that"
    return None


if not extension.FAILURE:

    @torch.library.register_fake("npr_kernels::pack_weights")
    def _(weight, dtype):
        return weight.new_empty(weight.numel(), dtype=dtype)

    @torch.library.register_fake("npr_kernels::bottlenecks")
    def _(x, weights, biases, factors, strides, averaged):
        if averaged:
            return x.new_empty((x.shape[0], biases[-1].shape[0], 1, 1), dtype=torch.float32)
        height, width = x.shape[-2:]
        for stride in strides:
            height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
        shape = (x.shape[0], biases[-1].shape[0], height, width)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)

"""The residual bottleneck of ResNet-50 in evaluation mode as one kernel, for the network behind a stem on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from npr_kernels.backends import extension

Folded = tuple[Tensor, Tensor]  # weight (O, C, KH, KW) and bias (O,) of a convolution, see fold_batch_norm


class FusedBottleneck(nn.Module):
    """``relu(conv3(relu(conv2(relu(conv1(x))))) + shortcut(x))`` in one pass, without gradients.

    (N, C, H, W) -> (N, O, ceil(H / stride), ceil(W / stride)) of ``dtype``, channels_last; what lies between the
    convolutions never leaves the caches. Sums are float32.

    Args:
        conv1, conv2, conv3: the 1x1, 3x3 (padding 1; it carries the stride) and 1x1 convolutions, batch norms folded.
        shortcut: the 1x1 convolution of the shortcut, None for x itself.
        stride: 1 or 2.
        dtype: float32 or bfloat16, of x, of the products and of the result.

    Raises:
        ValueError: :func:`refusal` has a reason.
    """

    def __init__(
        self, conv1: Folded, conv2: Folded, conv3: Folded, shortcut: Folded | None, stride: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        reason = refusal(dtype, conv1[0].shape[0])
        if reason:
            raise ValueError(f"the fused bottleneck cannot serve: {reason}")
        self.stride = stride
        matrices = [weight.detach().double().permute(0, 2, 3, 1).flatten(1) for weight, _ in (conv1, conv2, conv3)]
        biases = [bias for _, bias in (conv1, conv2, conv3)]
        if shortcut is not None:  # summed with conv3: one matrix product over the inputs of both
            matrices[2] = torch.cat([matrices[2], shortcut[0].detach().double().flatten(1)], 1)
            biases[2] = biases[2] + shortcut[1]
        packed = [[matrices[0]], [matrices[1]] if stride != 1 else winograd_matrices(conv2[0]), [matrices[2]]]
        for i, (layer, bias) in enumerate(zip(packed, biases, strict=True), 1):
            pack = [torch.ops.npr_kernels.pack_weights(matrix.float().contiguous(), dtype) for matrix in layer]
            self.register_buffer(f"weight{i}", torch.cat(pack))
            self.register_buffer(f"bias{i}", bias.detach().float().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return run([self], x)


class FusedBottlenecks(nn.Sequential):
    """:class:`FusedBottleneck` layers one after another, as one call; what lies between them needs no new memory."""

    def forward(self, x: Tensor) -> Tensor:
        return run(list(self), x)


def run(blocks: list[FusedBottleneck], x: Tensor) -> Tensor:
    weights = [weight for block in blocks for weight in (block.weight1, block.weight2, block.weight3)]
    biases = [bias for block in blocks for bias in (block.bias1, block.bias2, block.bias3)]
    x = x.contiguous(memory_format=torch.channels_last)
    return torch.ops.npr_kernels.bottlenecks(x, weights, biases, [block.stride for block in blocks])


def winograd_matrices(weight: Tensor) -> list[Tensor]:
    """The 16 matrices (O, C) of a 3x3 convolution's F(2x2, 3x3): G weight transpose(G), row by row, float64."""
    g = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
    transformed = torch.einsum("iy,ocyx,jx->ijoc", g, weight.detach().double(), g)
    return list(transformed.flatten(0, 1))


def refusal(dtype: torch.dtype, width: int) -> str | None:
    """Why this machine has no fused bottleneck of ``dtype`` with ``width`` channels inside; None if it has."""
    if extension.FAILURE:
        return extension.FAILURE
    if dtype not in (torch.float32, torch.bfloat16):
        return f"it has no kernel for {dtype}"
    if dtype == torch.bfloat16 and torch.ops.npr_kernels.cpu_capability() != "avx512bf16":
        return "the processor has no dot products of bfloat16"
    if width % 64:
        return f"it computes 64 channels at a time, and {width} is no multiple of that"
    return None


if not extension.FAILURE:

    @torch.library.register_fake("npr_kernels::pack_weights")
    def _(weight, dtype):
        return weight.new_empty(weight.numel(), dtype=dtype)

    @torch.library.register_fake("npr_kernels::bottlenecks")
    def _(x, weights, biases, strides):
        height, width = x.shape[-2:]
        for stride in strides:
            height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
        shape = (x.shape[0], biases[-1].shape[0], height, width)
        return x.new_empty(shape).contiguous(memory_format=torch.channels_last)

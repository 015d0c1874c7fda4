"""Residual bottlenecks of ResNet-50 for inference on GPUs. Each block is one kernel: Triton, or CUDA C++ on Hopper.

Some activations are never written to memory: those between a block's second and third convolution, those of the last
block if only their mean is needed, and the pixels that the next shortcut of stride 2 leaves out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from npr_kernels.capabilities import gpu_capability
from npr_kernels.triton_runtime import DEVICE, GRID_LIMIT, INSTALLED
from npr_kernels.trunk import hopper_bottleneck
from npr_kernels.trunk.blocks import Folded, Layers

DTYPES = (torch.bfloat16, torch.float16)
PIXELS = 128  # pixels of a program; also pixels of each partial sum of a mean
WARPS = 8  # two groups of four; each multiplies 64 pixels at once on Hopper
STAGES = 3  # pipeline stages of the loads
BLOCK_K = 64  # channels multiplied at a time


class BottleneckWeights(nn.Module):
    """The weights of ``relu(conv3(relu(conv2(relu(conv1(x))))) + shortcut(x))`` in the order that the kernels read.

    Args:
        conv1, conv2, conv3: The 1x1, 3x3 (padding 1, with the stride) and 1x1 convolutions, with folded batch norms.
        shortcut: The 1x1 convolution of the shortcut; None if the shortcut is x itself.
        stride: 1 or 2.
        dtype: Type of the weights.
    """

    weight1: Tensor
    weight2: Tensor
    weight3: Tensor
    weight_shortcut: Tensor
    bias1: Tensor
    bias2: Tensor
    bias3: Tensor
    packed: Tensor | None

    def __init__(
        self,
        conv1: Folded,
        conv2: Folded,
        conv3: Folded,
        shortcut: Folded | None,
        stride: int,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.stride, self.projected = stride, shortcut is not None
        self.middle, self.inputs = conv1[0].shape[:2]
        self.outputs = conv3[0].shape[0]
        for name, layer in {"1": conv1, "2": conv2, "3": conv3, "_shortcut": shortcut}.items():
            if layer is not None:  # (taps * inputs, outputs)
                matrix = layer[0].detach().permute(2, 3, 1, 0).flatten(0, 2)
                self.register_buffer(f"weight{name}", matrix.to(dtype).contiguous())
        bias3 = conv3[1] if shortcut is None else conv3[1] + shortcut[1]
        for name, bias in {"1": conv1[1], "2": conv2[1], "3": bias3}.items():
            self.register_buffer(f"bias{name}", bias.detach().float().contiguous())


class GpuBottlenecks(nn.Module):
    """Several residual bottlenecks, without gradients.

    It maps (N, C, H, W) to (N, O, H', W') of ``dtype``, channels_last. Sums are float32. Results are bit-identical
    whatever the batch.

    Args:
        blocks: For each block the layers that :class:`BottleneckWeights` takes, and the stride.
        dtype: bfloat16 or float16.
        averaged: Return the mean of the unrounded result over its pixels instead, (N, O, 1, 1) float32.
        hopper: Use :mod:`npr_kernels.trunk.hopper_bottleneck` for the blocks that it serves.

    Raises:
        ValueError: A number of channels is not 64, 128, 256 or 512, or blocks do not fit together.
    """

    def __init__(
        self,
        blocks: Sequence[tuple[Layers, int]],
        dtype: torch.dtype,
        averaged: bool = False,
        hopper: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = cast(Any, nn.ModuleList(BottleneckWeights(*layers, stride, dtype) for layers, stride in blocks))
        self.dtype, self.averaged = dtype, averaged
        for i, (block, behind) in enumerate(self._pairs()):
            for channels in (block.inputs, block.middle, block.outputs):
                if channels not in (64, 128, 256, 512):
                    raise ValueError(f"the fused bottleneck serves 64, 128, 256 or 512 channels, got {channels}")
            if not block.projected and (block.stride != 1 or block.inputs != block.outputs):
                raise ValueError(
                    "a block that changes the size or the number of channels needs a shortcut's convolution"
                )
            if behind is not None and behind.inputs != block.outputs:
                raise ValueError(f"a block of {block.outputs} channels is followed by one that takes {behind.inputs}")
            kind = (
                block.middle,
                block.stride,
                block.inputs if block.projected else 0,
                self._kept(behind),
                0 if behind is None else behind.middle,
            )
            compact = i > 0 or block.stride == 1  # x has only pixels that the shortcut reads
            packed = None
            four_times_as_wide = block.outputs == 4 * block.middle
            if hopper and kind in hopper_bottleneck.KINDS and compact and four_times_as_wide:
                shortcut = block.weight_shortcut if block.projected else None
                following = None if behind is None else behind.weight1
                packed = hopper_bottleneck.pack(block.weight2, block.weight3, shortcut, following)
            block.register_buffer("packed", packed)

    def _pairs(self) -> list[tuple[BottleneckWeights, BottleneckWeights | None]]:
        """Each block and the next one."""
        return list(zip(self.blocks, [*self.blocks[1:], None], strict=True))

    def _kept(self, behind: BottleneckWeights | None) -> int:
        """Return k if every k-th row and column of a result is written, or 0 for sums over the pixels instead."""
        return behind.stride if behind is not None else 0 if self.averaged else 1

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != self.dtype or x.dim() != 4 or x.shape[1] != self.blocks[0].inputs:
            expected = f"(N, {self.blocks[0].inputs}, H, W) of {self.dtype}"
            raise ValueError(f"x must be {expected}, got {tuple(x.shape)} of {x.dtype}")
        with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
            x = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
            middle, x_stride = _pointwise(self.blocks[0], x), self.blocks[0].stride
            for block, behind in self._pairs():
                pixels = ((middle.shape[1] - 1) // block.stride + 1) * ((middle.shape[2] - 1) // block.stride + 1)
                if block.packed is None:
                    x, middle = _bottleneck(block, behind, middle, x, x_stride, self._kept(behind))
                else:
                    next_bias = None if behind is None else behind.bias1
                    parameters = block.packed, block.bias2, block.bias3, next_bias
                    x, middle = hopper_bottleneck.run(middle, x, *parameters, block.stride, self._kept(behind))
                x_stride = 1
            return _means(x, pixels) if self.averaged else x.permute(0, 3, 1, 2)


def _pointwise(block: BottleneckWeights, x: Tensor) -> Tensor:
    """Compute the first convolution of a block: x (N, H, W, C) to (N, H, W, inner channels)."""
    from npr_kernels.trunk import triton_kernels as kernels

    batch, height, width, _ = x.shape
    out = x.new_empty((batch, height, width, block.middle))
    _launch(
        kernels.pointwise_kernel,
        batch,
        height * width,
        (x, block.weight1, block.bias1, out, height * width),
        INPUT=block.inputs,
        OUTPUT=block.middle,
        INDEX=_index(height * width * max(block.inputs, block.middle)),
    )
    return out


def _bottleneck(
    block: BottleneckWeights, behind: BottleneckWeights | None, middle: Tensor, x: Tensor, x_stride: int, kept: int
) -> tuple[Tensor, Any]:
    """Compute the rest of a block after its first convolution, and the first convolution of the next block, in Triton.

    The results are those of :func:`npr_kernels.trunk.hopper_bottleneck.run`.
    """
    from npr_kernels.trunk import triton_kernels as kernels

    batch, height, width, _ = middle.shape
    out_height, out_width = (height - 1) // block.stride + 1, (width - 1) // block.stride + 1
    pixels = out_height * out_width
    if kept:
        result = x.new_empty((batch, (out_height - 1) // kept + 1, (out_width - 1) // kept + 1, block.outputs))
    else:
        result = x.new_empty((batch, -(-pixels // PIXELS), block.outputs), dtype=torch.float32)
    next_middle = None if behind is None else x.new_empty((batch, out_height, out_width, behind.middle))
    following = behind or block
    _launch(
        kernels.bottleneck_kernel,
        batch,
        pixels,
        (
            middle,
            x,
            block.weight2,
            block.bias2,
            block.weight3,
            block.bias3,
            block.weight_shortcut if block.projected else block.weight3,
            following.weight1,
            following.bias1,
            result if kept else x,
            middle if behind is None else next_middle,
            block.bias3 if kept else result,
            height,
            width,
            out_height,
            out_width,
            *x.shape[1:3],
            *(result.shape[1:3] if kept else (0, 0)),
        ),
        MIDDLE=block.middle,
        OUTPUT=block.outputs,
        INPUT=block.inputs,
        NEXT=0 if behind is None else behind.middle,
        STRIDE=block.stride,
        X_STRIDE=x_stride,
        Y_STRIDE=kept,
        PROJECTED=block.projected,
        SUMS=kept == 0,
        BLOCK_O=_block_of_outputs(block.middle, x.device),
        INDEX=_index(max(x.shape[1] * x.shape[2], height * width) * max(block.inputs, block.outputs, 512)),
    )
    return result, next_middle


def _means(sums: Tensor, pixels: int) -> Tensor:
    """Compute means (N, C, 1, 1) from partial sums (N, parts, C) over ``pixels`` pixels."""
    from npr_kernels.trunk import triton_kernels as kernels

    batch, parts, channels = sums.shape
    means = sums.new_empty((batch, channels))
    if batch:
        kernels.mean_kernel[batch, channels // 64](
            sums, means, parts, pixels, channels, 8, 64, num_warps=2, enable_fp_fusion=True
        )
    return means[:, :, None, None]


def dot(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply each row of x (N, C) by weight (C,), dense float32, C a power of two; returns (N,).

    The result of a row is bit-identical whatever N is. torch's sums are not, because it uses more threads per row if
    there are fewer rows.
    """
    from npr_kernels.trunk import triton_kernels as kernels

    out = x.new_empty(len(x))
    if len(x):
        with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
            kernels.dot_kernel[len(x),](x, weight, out, x.shape[1], num_warps=1, enable_fp_fusion=True)
    return out


def _block_of_outputs(middle: int, device: torch.device) -> int:
    """Return how many output channels are multiplied at a time.

    It is 32 if a multiprocessor should run two programs at once, or has only 99 KiB of shared memory, else 64.
    """
    roomy = device.type == "cpu" or gpu_capability(device) >= (9, 0)
    return 64 if middle > 64 and roomy else 32


def _index(elements: int) -> Any:
    """Return the Triton type for offsets in an image with so many elements."""
    import triton.language as tl

    return tl.int32 if elements < 2**31 else tl.int64


def _launch(kernel: Any, batch: int, pixels: int, arguments: tuple, **constants: Any) -> None:
    programs = batch * -(-pixels // PIXELS)
    if programs > GRID_LIMIT:
        raise ValueError(f"the batch is too large for one launch: {programs} tiles, at most {GRID_LIMIT} are possible")
    if programs:
        options = {"num_warps": WARPS, "num_stages": STAGES, "enable_fp_fusion": True}
        kernel[programs,](*arguments, **constants, M=PIXELS, BLOCK_K=BLOCK_K, **options)


def unsupported_reason(dtype: torch.dtype, device: torch.device) -> str | None:
    """Return why ``device`` has no fused bottleneck for ``dtype``, else None."""
    if not INSTALLED:
        return "Triton is not installed (pip install triton)"
    if dtype not in DTYPES:
        return f"it has no kernel for {dtype}"
    if device.type != DEVICE:
        return f"it serves {DEVICE.upper()} devices, not {device.type}"
    if device.type == "cuda" and gpu_capability(device) < (8, 0):
        return "it needs compute capability 8.0"
    return None

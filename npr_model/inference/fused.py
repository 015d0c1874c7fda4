"""The NPR detector frozen for scoring: batch norm is folded into the convolutions, and activations are channels_last.

Nothing is compiled at the start. On a CPU, one of our kernels computes a residual block. Where there is none, or where
oneDNN uses matrix units, oneDNN's convolutions do, fused with bias, ReLU and residual sum. A batch is scored in parts
of PIXELS_AT_ONCE, so that activations (2 MiB after each block at 256x256) stay in the caches. On a GPU, one of our
kernels computes a block in bfloat16 or float16, after a self-test. Small batches run as CUDA graphs.
"""

from __future__ import annotations

import copy
import logging
import math
import sys
from typing import cast

import torch
from torch import Tensor, nn

from npr_kernels import fold_batch_norm, npr_stem
from npr_kernels.arguments import scale_factors
from npr_kernels.capabilities import cpu_capability, onednn_serves
from npr_kernels.trunk import cpu_bottleneck, gpu_bottleneck, selection
from npr_kernels.trunk.average_pool import AveragePool
from npr_kernels.trunk.blocks import BlockShape
from npr_model.detectors.npr import NPRDetector
from npr_model.detectors.sizes import SIZES
from npr_model.errors import InputError
from npr_model.inference import quantisation
from npr_model.inference.cuda_graphs import CudaGraphs
from npr_model.inference.folded import FoldedBottleneck, check_finite, folded_layers

_logger = logging.getLogger("npr_model")

PIXELS_AT_ONCE = 2**18  # pixels per CPU thread; measured to be fastest for images of 128x128 to 1024x1024


def default_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the hardware multiplies it natively, else float32."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # torch asks the current device
            native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = cpu_capability() == "avx512bf16"
    return torch.bfloat16 if native else torch.float32


class Average(nn.Module):
    """Mean over the pixels: (N, C, H, W) -> (N, C, 1, 1) float32."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean((2, 3), keepdim=True)


def block_shapes(detector: NPRDetector) -> tuple[BlockShape, ...]:
    """Return the shape of each residual block, in order."""
    return tuple(
        BlockShape(b.conv1.in_channels, b.conv1.out_channels, b.conv3.out_channels, b.conv2.stride[0])
        for b in quantisation.blocks(detector).values()
    )


def gpu_trunk(detector: NPRDetector, dtype: torch.dtype, hopper: bool) -> nn.Module:
    """Return what follows the stem in our kernels for GPUs, one for each residual block."""
    blocks = [(folded_layers(block), block.conv2.stride[0]) for block in quantisation.blocks(detector).values()]
    fused = gpu_bottleneck.GpuBottlenecks(blocks, dtype, averaged=True, hopper=hopper)
    return nn.Sequential(detector.pool, fused) if isinstance(detector.pool, nn.AvgPool2d) else fused


def cpu_trunk(detector: NPRDetector, dtype: torch.dtype) -> nn.Module:
    """Return what follows the stem in our kernels for CPUs, one for all residual blocks.

    In int8, all blocks have 8-bit activations, but for the first one where it reads the stem's output as it is.
    """
    steps = quantisation.block_steps(detector) if dtype == torch.int8 else {}
    made: list[cpu_bottleneck.FusedBottleneck | cpu_bottleneck.QuantisedBottleneck] = []
    for name, block in quantisation.blocks(detector).items():
        layers, stride = folded_layers(block), block.conv2.stride[0]
        if name in steps:
            made.append(cpu_bottleneck.QuantisedBottleneck(*layers, stride, steps[name]))
        elif steps:
            out_steps = quantisation.processor_steps(detector)[f"{name}.out"]
            made.append(cpu_bottleneck.FusedBottleneck(*layers, stride, default_dtype(out_steps.device), out_steps))
        else:
            made.append(cpu_bottleneck.FusedBottleneck(*layers, stride, dtype))
    fused = cpu_bottleneck.CpuBottlenecks(*made, averaged=True)
    if not isinstance(detector.pool, nn.AvgPool2d):
        return fused
    pool_steps = quantisation.processor_steps(detector)["pool.out"] if steps else None
    return nn.Sequential(AveragePool(SIZES[detector.size].pool, pool_steps), fused)


class InferenceDetector(nn.Module):
    """A frozen copy of ``detector`` on its device: (N, 3, H, W) images to (N, 1) float32 logits, without gradients.

    Images are uint8, or normalised floating point. Use :func:`npr_model.inference.freeze.freeze` for any detector.

    Args:
        detector: The network to copy.
        dtype: Type of the activations. Default: :func:`default_dtype`. Pooled features and the last layer are always
            float32. int8 needs ``activation_steps`` and a CPU with AVX2; the stem and the first block then stay in
            :func:`default_dtype`.
        compile: Compile the residual blocks with ``torch.compile``, about a minute at the first batch of each size.

    Raises:
        InputError: int8 is not supported here.
    """

    stem_weight: Tensor
    stem_bias: Tensor
    pixel_weight: Tensor
    head_weight: Tensor
    head_bias: Tensor

    @torch.no_grad()  # folded weights would carry the graph of their gradients, and could not be copied
    def __init__(self, detector: NPRDetector, *, dtype: torch.dtype | None = None, compile: bool = False) -> None:
        super().__init__()
        device = detector.conv1.weight.device
        trunk_dtype = dtype or default_dtype(device)
        self.dtype = default_dtype(device) if trunk_dtype == torch.int8 else trunk_dtype  # of the stem's output
        self.pixels_at_once = PIXELS_AT_ONCE * torch.get_num_threads() if device.type == "cpu" else sys.maxsize
        self.conv1 = copy.deepcopy(detector.conv1)
        weight, bias = fold_batch_norm(detector.conv1.weight.detach(), None, detector.bn1)
        check_finite(weight, bias)
        self.register_buffer("stem_weight", weight)
        # The scale of raw pixels is folded into the weights, except for a power of two, which the kernel applies.
        # If the kernel applied all of it, it would round the weights again, and bfloat16 logits would have nearly
        # twice the error.
        scale = scale_factors(self.conv1.scale, self.conv1.pixel_std, 3)
        self.pixel_scale = 2.0 ** math.frexp(scale[0])[1]
        rest = torch.tensor(scale, dtype=torch.float64, device=device) / self.pixel_scale
        self.register_buffer("pixel_weight", (weight * rest.view(1, -1, 1, 1)).to(self.dtype))
        self.register_buffer("stem_bias", bias.detach())
        self.register_buffer("head_weight", detector.fc1.weight.detach().float().clone())
        self.register_buffer("head_bias", detector.fc1.bias.detach().float().clone())
        shapes = block_shapes(detector)
        self.engine = trunk_engine(device, trunk_dtype, compile, shapes)
        if device.type == "cpu" and self.engine == "torch" and not compile:
            why = no_cpu_kernels(trunk_dtype, shapes)
            _logger.warning(
                "in %s the network runs on plain PyTorch, slowly (%s)", str(trunk_dtype).removeprefix("torch."), why
            )
        if self.engine == "cpu":
            self.trunk = cpu_trunk(detector, trunk_dtype)
        elif self.engine in ("hopper", "triton"):
            self.trunk = gpu_trunk(detector, trunk_dtype, hopper=self.engine == "hopper")
        else:
            onednn, blocks = self.engine == "onednn", quantisation.blocks(detector).values()
            folded = (FoldedBottleneck(block, self.dtype, onednn) for block in blocks)
            trunk = nn.Sequential(detector.pool, *folded, Average())
            self.trunk = cast(nn.Module, torch.compile(trunk, dynamic=False)) if compile else trunk
        self.eval().requires_grad_(False)
        self.graphs = CudaGraphs(self.score) if device.type == "cuda" and not compile else None

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        run = self.score if self.graphs is None else self.graphs
        return torch.cat([run(part) for part in split_by_pixels(images, self.pixels_at_once)])

    def stem(self, images: Tensor) -> Tensor:
        """Run the stem: (N, 3, H, W) -> (N, 64, H / 4, W / 4) in ``self.dtype``."""
        options = self.conv1.options
        if images.is_floating_point():  # differences are taken in float32 and rounded afterwards
            return npr_stem(images.float(), self.stem_weight.float(), self.stem_bias.float(), **options).to(self.dtype)
        options |= {"scale": self.pixel_scale, "pixel_std": None}
        return npr_stem(images, self.pixel_weight, self.stem_bias.to(self.dtype), **options)

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Return what the last layer sees, the averages of the last block: (N, C) float32."""
        return self.trunk(self.stem(images)).flatten(1)

    def head(self, features: Tensor) -> Tensor:
        """Return the logits (N, 1) of features (N, C), by the last layer.

        F.linear adds in an order that depends on the number of images; a logit must not depend on other images.
        """
        if self.engine in ("hopper", "triton"):
            products = gpu_bottleneck.dot(features, self.head_weight[0])[:, None]
        else:
            products = (features * self.head_weight).sum(1, keepdim=True)
        return products + self.head_bias

    def score(self, images: Tensor) -> Tensor:
        """Score all ``images`` at once; returns (N, 1) float32 logits."""
        x = self.stem(images)
        # oneDNN's ReLU turns NaN into 0. Only floating point images can have NaN.
        broken = ~x.isfinite().flatten(1).all(1, keepdim=True) if images.is_floating_point() else None
        logits = self.head(self.trunk(x).flatten(1))
        return logits if broken is None else logits.masked_fill(broken, float("nan"))


def split_by_pixels(images: Tensor, pixels: int) -> tuple[Tensor, ...]:
    """Split ``images`` (N, C, H, W) into parts of at most ``pixels`` pixels, or of one image."""
    return images.split(max(1, pixels // max(1, images.shape[2] * images.shape[3])))


def trunk_engine(device: torch.device, dtype: torch.dtype, compile: bool, blocks: tuple[BlockShape, ...]) -> str:
    """Return what runs residual blocks of these shapes.

    It is "cpu", "hopper" or "triton" (our kernels), "onednn", or "torch" (plain or compiled).

    Raises InputError if int8 is not supported here.
    """
    if dtype == torch.int8:
        why = "with compile=True" if compile else f"on {device.type}" if device.type != "cpu" else None
        if why is None and (missing := no_cpu_kernels(dtype, blocks)):
            why = f"here ({missing})"
        if why:
            raise InputError(f"int8 is not supported {why}; use float32 or bfloat16")
        return "cpu"
    if device.type == "cuda" and not compile:
        return selection.kernels_for(dtype, device, blocks) or "torch"
    if device.type != "cpu" or compile:
        return "torch"
    onednn = onednn_serves(dtype)
    matrix_units = dtype == torch.bfloat16 and getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    if no_cpu_kernels(dtype, blocks) is None and not (onednn and matrix_units):
        return "cpu"
    return "onednn" if onednn else "torch"


def no_cpu_kernels(dtype: torch.dtype, blocks: tuple[BlockShape, ...]) -> str | None:
    """Return why our kernels for CPUs cannot compute one of the blocks, else None."""
    reasons = (cpu_bottleneck.unsupported_reason(dtype, block.middle) for block in blocks)
    return next(filter(None, reasons), None)

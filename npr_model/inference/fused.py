"""The detector frozen for scoring: batch norm folded into the convolutions, channels_last, low precision where it pays.

Nothing is compiled at start. On the CPU a residual block is one kernel of ours, or, where there is none or where oneDNN
uses matrix units, oneDNN's convolutions with bias, ReLU and residual sum fused and their weights laid out beforehand. A
batch is scored PIXELS_AT_ONCE at a time, so that activations (2 MiB after each block at 256x256) stay in the caches
from block to block. On a GPU a block is one kernel of ours in bfloat16 or float16, once it has proved itself, and
what is launched for a small batch is kept as a CUDA graph.
"""

from __future__ import annotations

import copy
import logging
import math
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npr_kernels import fold_batch_norm, npr_stem
from npr_kernels.arguments import scale_factors
from npr_kernels.info import cpu_capability, onednn_serves
from npr_kernels.trunk import cpu_bottleneck, gpu_bottleneck
from npr_model.detectors.npr import NPRDetector
from npr_model.detectors.resnet import Bottleneck
from npr_model.errors import InputError
from npr_model.inference import quantisation
from npr_model.inference.cuda_graphs import CudaGraphs

_logger = logging.getLogger("npr_model")

PIXELS_AT_ONCE = 2**18  # of images, for each thread of a CPU: the fastest from 128x128 to 1024x1024


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, float32 elsewhere."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # it asks the current one
            native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = cpu_capability() == "avx512bf16"
    return torch.bfloat16 if native else torch.float32


class FoldedConv2d(nn.Module):
    """A convolution with its batch norm folded in, then optionally + shortcut, then optionally ReLU.

    ``shortcut`` is given up by the caller: the result may be written over it.
    """

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d, dtype: torch.dtype, relu: bool, onednn: bool) -> None:
        super().__init__()
        weight, bias = fold_batch_norm(conv.weight.detach(), None, bn)
        _check_finite(weight, bias)
        weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self.stride, self.padding, self.relu, self.onednn = conv.stride, conv.padding, relu, onednn
        if onednn:  # its own blocked layout; chosen for a size, but it serves all (without one it picks slow ones)
            typical = (1, weight.shape[1], 64, 64)
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, self.padding, self.stride, (1, 1), 1, typical)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias.detach().to(dtype))

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if self.onednn:
            geometry = self.weight, self.bias, self.padding, self.stride, (1, 1), 1
            if shortcut is None:
                return torch.ops.mkldnn._convolution_pointwise(x, *geometry, "relu" if self.relu else "none", [], "")
            # Summed into the shortcut's own memory, which is in the cache and which nobody needs afterwards.
            return torch.ops.mkldnn._convolution_pointwise_.binary(
                shortcut, x, *geometry, "add", 1.0, "relu" if self.relu else "none", [], ""
            )
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        if shortcut is not None:
            y = y + shortcut
        return F.relu(y) if self.relu else y


class FoldedBottleneck(nn.Module):
    """:class:`npr_model.detectors.resnet.Bottleneck` in evaluation mode, of four or fewer fused operations."""

    def __init__(self, block: Bottleneck, dtype: torch.dtype, onednn: bool) -> None:
        super().__init__()

        def fold(conv: nn.Conv2d, bn: nn.BatchNorm2d, relu: bool) -> FoldedConv2d:
            return FoldedConv2d(conv, bn, dtype, relu, onednn)

        self.conv1 = fold(block.conv1, block.bn1, relu=True)
        self.conv2 = fold(block.conv2, block.bn2, relu=True)
        self.conv3 = fold(block.conv3, block.bn3, relu=True)
        self.downsample = None if block.downsample is None else fold(*block.downsample, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.conv3(self.conv2(self.conv1(x)), shortcut)


def folded_layers(block: Bottleneck) -> list[tuple[Tensor, Tensor] | None]:
    """conv1, conv2, conv3 and the shortcut (None where there is no convolution), each a weight and a bias."""

    def fold(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        folded = fold_batch_norm(conv.weight.detach(), None, bn)
        _check_finite(*folded)
        return folded

    shortcut = None if block.downsample is None else fold(*block.downsample)
    return [fold(block.conv1, block.bn1), fold(block.conv2, block.bn2), fold(block.conv3, block.bn3), shortcut]


class Average(nn.Module):
    """(N, C, H, W) to its mean over the pixels, (N, C, 1, 1) float32."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean((2, 3), keepdim=True)


def fused_trunk(detector: NPRDetector, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Residual blocks and average in evaluation mode, in kernels of ours: one for all on a CPU, one a block on a GPU.

    For int8 all blocks but the first work on 8-bit activations.
    """
    if device.type == "cuda":
        blocks = quantisation.blocks(detector).values()
        layers = [(folded_layers(block), block.conv2.stride[0]) for block in blocks]
        hopper = gpu_bottleneck.kernels_for(dtype, device) == "hopper"
        return gpu_bottleneck.FusedBottlenecks(layers, dtype, averaged=True, hopper=hopper)
    steps = quantisation.block_steps(detector) if dtype == torch.int8 else {}
    made = []
    for name, block in quantisation.blocks(detector).items():
        layers, stride = folded_layers(block), block.conv2.stride[0]
        if name in steps:
            made.append(cpu_bottleneck.QuantisedBottleneck(*layers, stride, steps[name]))
        elif steps:
            out_steps = quantisation.processor_steps(detector)[f"{name}.out"]
            made.append(cpu_bottleneck.FusedBottleneck(*layers, stride, default_dtype(out_steps.device), out_steps))
        else:
            made.append(cpu_bottleneck.FusedBottleneck(*layers, stride, dtype))
    return cpu_bottleneck.FusedBottlenecks(*made, averaged=True)


class InferenceDetector(nn.Module):
    """(N, 3, H, W), uint8 or normalised floating point, to (N, 1) float32 logits, without gradients.

    A frozen copy of ``detector`` on its device. ``dtype``: that of the activations, None for :func:`default_dtype`;
    the pooled features and the last layer are float32 always. int8 takes a detector with ``activation_steps`` (see
    :mod:`npr_model.inference.quantisation`) and a CPU with AVX2; the stem and the first block stay in
    :func:`default_dtype`.
    ``compile=True`` hands the trunk to ``torch.compile``, which takes about a minute at the first batch of each new
    size. Raises InputError where int8 cannot be.
    """

    @torch.no_grad()  # folded weights would carry the graph of their gradients, and could not be copied
    def __init__(self, detector: NPRDetector, *, dtype: torch.dtype | None = None, compile: bool = False) -> None:
        super().__init__()
        device = detector.conv1.weight.device
        trunk_dtype = dtype or default_dtype(device)
        self.dtype = default_dtype(device) if trunk_dtype == torch.int8 else trunk_dtype  # of what the stem gives
        self.pixels_at_once = PIXELS_AT_ONCE * torch.get_num_threads() if device.type == "cpu" else sys.maxsize
        self.conv1 = copy.deepcopy(detector.conv1)
        weight, bias = fold_batch_norm(detector.conv1.weight.detach(), None, detector.bn1)
        _check_finite(weight, bias)
        self.register_buffer("stem_weight", weight)
        # Of the scale of pixels the kernel is left a power of two: with all of it, weights would be rounded a second
        # time, which nearly doubled the error of bfloat16's logits.
        scale = scale_factors(self.conv1.scale, self.conv1.pixel_std, 3)
        self.pixel_scale = 2.0 ** math.frexp(scale[0])[1]
        rest = torch.tensor(scale, dtype=torch.float64, device=device) / self.pixel_scale
        self.register_buffer("pixel_weight", (weight * rest.view(1, -1, 1, 1)).to(self.dtype))
        self.register_buffer("stem_bias", bias.detach())
        self.register_buffer("head_weight", detector.fc1.weight.detach().float().clone())
        self.register_buffer("head_bias", detector.fc1.bias.detach().float().clone())
        self.engine = trunk_engine(device, trunk_dtype, compile)
        if device.type == "cpu" and self.engine == "torch" and not compile:
            why = cpu_bottleneck.refusal(trunk_dtype, 64)
            _logger.warning(
                "in %s the network runs on plain PyTorch, slowly (%s)", str(trunk_dtype).removeprefix("torch."), why
            )
        if self.engine == "fused":
            self.trunk = fused_trunk(detector, trunk_dtype, device)
        else:
            onednn, blocks = self.engine == "onednn", quantisation.blocks(detector).values()
            trunk = nn.Sequential(*(FoldedBottleneck(block, self.dtype, onednn) for block in blocks), Average())
            self.trunk = torch.compile(trunk, dynamic=False) if compile else trunk
        self.eval().requires_grad_(False)
        self.graphs = CudaGraphs(self.score) if device.type == "cuda" and not compile else None

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        run = self.score if self.graphs is None else self.graphs
        return torch.cat([run(part) for part in split_by_pixels(images, self.pixels_at_once)])

    def stem(self, images: Tensor) -> Tensor:
        """The first layers alone: (N, 3, H, W) to (N, 64, H / 4, W / 4) of ``self.dtype``."""
        options = self.conv1.options
        if images.is_floating_point():  # subtracted in float32: rounding comes after the differences, not before
            return npr_stem(images.float(), self.stem_weight.float(), self.stem_bias.float(), **options).to(self.dtype)
        options |= {"scale": self.pixel_scale, "pixel_std": None}
        return npr_stem(images, self.pixel_weight, self.stem_bias.to(self.dtype), **options)

    def score(self, images: Tensor) -> Tensor:
        """All ``images`` at once."""
        x = self.stem(images)
        # oneDNN's ReLU would make zeros of NaN, which pixels cannot be.
        broken = ~x.isfinite().flatten(1).all(1, keepdim=True) if images.is_floating_point() else None
        features = self.trunk(x).flatten(1)
        # Not F.linear, whose sums come in another order for another number of images: a logit is the image's alone.
        if self.engine == "fused" and features.is_cuda:
            products = gpu_bottleneck.dot(features, self.head_weight[0])[:, None]
        else:
            products = (features * self.head_weight).sum(1, keepdim=True)
        logits = products + self.head_bias
        return logits if broken is None else logits.masked_fill(broken, float("nan"))


def split_by_pixels(images: Tensor, pixels: int) -> tuple[Tensor, ...]:
    """Split ``images`` (N, C, H, W) into parts of at most ``pixels`` pixels, or of one image."""
    return images.split(max(1, pixels // max(1, images.shape[2] * images.shape[3])))


def _check_finite(*folded: Tensor) -> None:
    if not all(parameter.isfinite().all() for parameter in folded):
        raise ValueError("the network's weights or batch-norm statistics give NaN or infinite convolutions")


def trunk_engine(device: torch.device, dtype: torch.dtype, compile: bool) -> str:
    """What runs the residual blocks: "fused" (our kernel), "onednn" or "torch" (plain, or compiled). Raises InputError
    where nothing runs them in int8."""
    if dtype == torch.int8:
        why = "with compile=True" if compile else f"on {device.type}" if device.type != "cpu" else None
        if why is None and (missing := cpu_bottleneck.refusal(dtype, 64)):
            why = f"here ({missing})"
        if why:
            raise InputError(f"int8 is not supported {why}; use float32 or bfloat16")
        return "fused"
    if device.type == "cuda" and not compile and gpu_bottleneck.kernels_for(dtype, device):
        return "fused"
    if device.type != "cpu" or compile:
        return "torch"
    onednn = onednn_serves(dtype)
    matrix_units = dtype == torch.bfloat16 and getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    if cpu_bottleneck.refusal(dtype, 64) is None and not (onednn and matrix_units):
        return "fused"
    return "onednn" if onednn else "torch"

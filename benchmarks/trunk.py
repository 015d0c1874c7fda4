"""``python -m benchmarks.trunk``: the residual blocks behind the stem, all of them and one by one, on a GPU.

The reference is plain torch: cuDNN's convolutions, with bias, shortcut and ReLU in kernels of their own.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import command
from benchmarks.harness.inputs import DTYPE_NAMES, random_detector
from benchmarks.harness.parity import judge_by_rule
from benchmarks.harness.rows import OURS, REFERENCE
from benchmarks.harness.runner import Benchmark, Contender, Unavailable
from npr_kernels.trunk import gpu_bottleneck, hopper_bottleneck
from npr_kernels.trunk.blocks import composed
from npr_model.detectors.npr import NPRDetector
from npr_model.inference.folded import folded_layers

Blocks = list[tuple[list, int]]  # folded layers and stride of each block, as GpuBottlenecks takes them
JUDGED = 3  # images of a batch whose results are compared: the first, the last and one between
PROFILED = 5  # calls
AT_ONCE = (8, 16, 32)  # images whose results a GPU's cache may hold from block to block


class Plain(nn.Module):
    """torch's convolutions one after another, channels_last."""

    def __init__(self, blocks: Blocks, averaged: bool) -> None:
        super().__init__()
        self.blocks, self.averaged = blocks, averaged

    def forward(self, x: Tensor) -> Tensor:
        return composed(x, self.blocks, self.averaged)


class CudnnFused(Plain):
    """cuDNN's convolutions that add bias, shortcut and ReLU themselves."""

    def forward(self, x: Tensor) -> Tensor:
        for (conv1, conv2, conv3, projection), stride in self.blocks:
            once = [1, 1], [0, 0], [1, 1], 1  # stride, padding, dilation, groups
            y = torch.cudnn_convolution_relu(x, *conv1, *once)
            y = torch.cudnn_convolution_relu(y, *conv2, [stride, stride], [1, 1], [1, 1], 1)
            shortcut = x if projection is None else torch.conv2d(x, *projection, [stride, stride])
            x = torch.cudnn_convolution_add_relu(y, conv3[0], shortcut, 1.0, conv3[1], *once)
        return x.float().mean((2, 3), keepdim=True) if self.averaged else x


class InParts(nn.Module):
    """The module that ``build`` makes, on ``images`` images at a time."""

    def __init__(self, images: int, build: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.images, self.inner = images, build()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.inner(part) for part in x.split(self.images)])


def in_dtype(blocks: Blocks, dtype: torch.dtype, device: torch.device) -> Blocks:
    """Return the blocks with weights in ``dtype``, channels_last."""

    def convert(parameter: Tensor) -> Tensor:
        format_ = torch.channels_last if parameter.dim() == 4 else torch.contiguous_format
        return parameter.to(device, dtype, memory_format=format_)

    return [
        ([None if one is None else tuple(map(convert, one)) for one in layers], stride) for layers, stride in blocks
    ]


def benchmark(
    name: str, blocks: Blocks, averaged: bool, x: Tensor, dtype: torch.dtype, device: torch.device
) -> Benchmark:
    """The case: ``blocks`` on ``x``, (N, C, H, W) of ``dtype``, channels_last."""
    judged = torch.linspace(0, len(x) - 1, min(JUDGED, len(x))).long().to(device)

    def plain(dtype: torch.dtype) -> nn.Module:
        return Plain(in_dtype(blocks, dtype, device), averaged)

    @torch.inference_mode()
    def eager(dtype: torch.dtype) -> tuple[Tensor]:
        return (plain(dtype)(x[judged].to(dtype)),)

    judge_values = judge_by_rule(lambda: eager(torch.float64), eager)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        result = plain(dtype)(x[:1])
    return Benchmark(
        f"{name}, {'x'.join(map(str, x.shape))} {DTYPE_NAMES[dtype]}",
        [
            Contender(contender, functools.partial(calling, build, x), dtype)
            for contender, build in builders(blocks, averaged, dtype, device).items()
        ],
        lambda result, dtype: judge_values((result[judged],), dtype),
        flops=counter.get_total_flops() * len(x),
        bytes=x.nbytes + result.nbytes * len(x),
        captured=True,
        images=len(x),
    )


def calling(build: Callable[[], nn.Module], x: Tensor) -> Callable[[], Tensor]:
    """Build a module, and return a call of it."""
    module = build()
    return torch.inference_mode()(lambda: module(x))


def builders(
    blocks: Blocks, averaged: bool, dtype: torch.dtype, device: torch.device
) -> dict[str, Callable[[], nn.Module]]:
    """Return what builds each contender's module, by name."""

    def fused(hopper: bool) -> nn.Module:
        reason = gpu_bottleneck.unsupported_reason(dtype, device)
        if hopper and reason is None:
            reason = hopper_bottleneck.unsupported_reason(dtype, device)
        if reason:
            raise Unavailable(reason)
        made = gpu_bottleneck.GpuBottlenecks(blocks, dtype, averaged, hopper)
        if hopper and all(block.packed is None for block in made.blocks):
            raise Unavailable("no kernel for this block alone")
        return made.to(device)

    def cudnn_fused() -> nn.Module:
        if device.type != "cuda":
            raise Unavailable("cuDNN needs a CUDA device")
        return CudnnFused(in_dtype(blocks, dtype, device), averaged)

    made = {
        REFERENCE: lambda: Plain(in_dtype(blocks, dtype, device), averaged),
        "cuDNN fused": cudnn_fused,
        f"{OURS} Triton": lambda: fused(hopper=False),
        f"{OURS} CUDA C++": lambda: fused(hopper=True),
    }
    if averaged:
        for images in AT_ONCE:
            build = functools.partial(InParts, images, lambda: fused(hopper=True))
            made[f"{OURS} CUDA C++, {images} images at a time"] = build
    return made


def cases(
    detector: NPRDetector, batch: int, size: int, dtype: torch.dtype, device: torch.device, only: str
) -> list[tuple[str, Callable[[], Benchmark]]]:
    """Return name and maker of every case: the trunk of the detector for images of size x size, then each block."""
    names = [f"layer{stage}.{i}" for stage in (1, 2) for i in range(len(getattr(detector, f"layer{stage}")))]
    blocks = [
        (folded_layers(detector.get_submodule(name)), detector.get_submodule(name).conv2.stride[0]) for name in names
    ]

    def make(name: str, part: Sequence, averaged: bool, pixels: int) -> Benchmark:
        channels = part[0][0][0][0].shape[1]
        x = torch.randn(
            batch, channels, pixels, pixels, device=device, generator=torch.Generator(device).manual_seed(0)
        )
        x = x.relu_().to(dtype, memory_format=torch.channels_last)
        return benchmark(name, list(part), averaged, x, dtype, device)

    made = [("trunk", functools.partial(make, "trunk", blocks, True, size // 4))]
    pixels = size // 4
    for name, block in zip(names, blocks, strict=True):
        made.append((name, functools.partial(make, name, [block], False, pixels)))
        pixels = -(-pixels // block[1])
    chosen = command.matching(only, [name for name, _ in made], "cases")
    return [(name, maker) for name, maker in made if name in chosen]


def print_kernels(contender: Contender, images: int) -> None:
    """Print the microseconds per image of each kernel on a GPU, in the order of launches, the median of some calls."""
    try:
        call = contender.build()
    except Unavailable as reason:
        print(f"{contender.name}: {reason}")
        return
    calls = []
    for _ in range(PROFILED + 2):  # the first two compile and warm up
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
        events = [event for event in profile.events() if event.device_type == torch.profiler.DeviceType.CUDA]
        calls.append(sorted(events, key=lambda event: event.time_range.start))
    print(contender.name)
    for launches in zip(*calls[2:], strict=True):
        median = statistics.median(event.time_range.elapsed_us() for event in launches)
        print(f"{median / images:8.3f} us an image  {launches[0].name[:120]}")


def main(
    device: command.Device = "cuda",
    json_file: command.JsonFile = None,
    seconds: command.Seconds = 4.0,
    batch: command.Batch = 256,
    size: command.Size = 256,
    only: command.Only = "",
    kernels: Annotated[bool, typer.Option("--kernels", help="Print the time of each of our kernels instead.")] = False,
) -> None:
    """Compare our residual blocks in bfloat16 with cuDNN's convolutions, plain and fused; fail if ours are wrong."""
    target = command.available(device)
    detector, dtype = random_detector().to(target), torch.bfloat16
    if kernels:
        ((_, maker),) = cases(detector, batch, size, dtype, target, "^trunk$")
        for contender in maker().contenders:
            if contender.name in (f"{OURS} Triton", f"{OURS} CUDA C++"):
                print_kernels(contender, batch)
        return
    made = cases(detector, batch, size, dtype, target, only)
    command.measure_all((maker() for _, maker in made), target, seconds, json_file, only)


if __name__ == "__main__":
    typer.run(main)

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

from benchmarks import command
from benchmarks.harness import OURS, REFERENCE, Benchmark, Contender, Parity, Unavailable
from benchmarks.model import random_detector
from npr_kernels.testing import allowed, error
from npr_kernels.trunk import gpu_bottleneck, hopper_bottleneck
from npr_model.detectors.npr import NPRDetector
from npr_model.inference.fused import folded_layers

Blocks = list[tuple[list, int]]  # of each block its folded layers and its stride, as FusedBottlenecks takes them
JUDGED = 3  # images of a batch, whose results are compared: the first, the last and one between
PROFILED = 5  # calls
AT_ONCE = (8, 16, 32)  # images whose results a GPU's cache may hold from block to block


class Plain(nn.Module):
    """torch's convolutions one after another, channels_last."""

    def __init__(self, blocks: Blocks, averaged: bool) -> None:
        super().__init__()
        self.blocks, self.averaged = blocks, averaged

    def forward(self, x: Tensor) -> Tensor:
        return gpu_bottleneck.composed(x, self.blocks, self.averaged)


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
    """``build()`` on so many images after another, in the same memory."""

    def __init__(self, images: int, build: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.images, self.inner = images, build()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.inner(part) for part in x.split(self.images)])


def in_dtype(blocks: Blocks, dtype: torch.dtype, device: torch.device) -> Blocks:
    """Weights in ``dtype``, channels_last."""

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

    @functools.cache
    @torch.inference_mode()
    def truth() -> Tensor:
        return Plain(in_dtype(blocks, torch.float64, device), averaged)(x[judged].double())

    @functools.cache
    @torch.inference_mode()
    def eager_error() -> float:
        return error(Plain(in_dtype(blocks, dtype, device), averaged)(x[judged]), truth())

    def judge(result: Tensor, dtype: torch.dtype) -> Parity:
        return Parity(error(result[judged], truth()), allowed(eager_error(), dtype))

    def running(build: Callable[[], nn.Module]) -> Callable[[], Callable[[], Tensor]]:
        def prepare() -> Callable[[], Tensor]:
            module = build()
            return torch.inference_mode()(lambda: module(x))

        return prepare

    def fused(hopper: bool) -> nn.Module:
        reason = gpu_bottleneck.refusal(dtype, device) or (hopper and hopper_bottleneck.refusal(dtype, device))
        if reason:
            raise Unavailable(reason)
        made = gpu_bottleneck.FusedBottlenecks(blocks, dtype, averaged, hopper)
        if hopper and all(block.packed is None for block in made.blocks):
            raise Unavailable("no kernel for this block alone")
        return made.to(device)

    def cudnn_fused() -> nn.Module:
        if device.type != "cuda":
            raise Unavailable("cuDNN needs a CUDA device")
        return CudnnFused(in_dtype(blocks, dtype, device), averaged)

    contenders = [
        Contender(REFERENCE, running(lambda: Plain(in_dtype(blocks, dtype, device), averaged)), dtype),
        Contender("cuDNN fused", running(cudnn_fused), dtype),
        Contender(f"{OURS} Triton", running(lambda: fused(hopper=False)), dtype),
        Contender(f"{OURS} CUDA C++", running(lambda: fused(hopper=True)), dtype),
    ]
    if averaged:
        for images in AT_ONCE:
            build = functools.partial(InParts, images, lambda: fused(hopper=True))
            contenders.append(Contender(f"{OURS} CUDA C++, {images} images at a time", running(build), dtype))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        result = Plain(in_dtype(blocks, dtype, device), averaged)(x[:1])
    return Benchmark(
        f"{name}, {'x'.join(map(str, x.shape))} {str(dtype).removeprefix('torch.')}",
        contenders,
        judge,
        flops=counter.get_total_flops() * len(x),
        bytes=x.nbytes + result.nbytes * len(x),
        captured=True,
        images=len(x),
    )


def cases(
    detector: NPRDetector, batch: int, size: int, dtype: torch.dtype, device: torch.device, only: str
) -> list[tuple[str, Callable[[], Benchmark]]]:
    """Name and maker of every case: the trunk of the detector for images of size x size, then each block."""
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
    chosen = command.chosen(only, [name for name, _ in made], "cases")
    return [(name, maker) for name, maker in made if name in chosen]


def print_kernels(contender: Contender, images: int) -> None:
    """Microseconds an image of each kernel on a GPU, in the order of launches, the median of some calls."""
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
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 256,
    size: Annotated[int, typer.Option(min=4, help="Height and width of the image before the stem.")] = 256,
    only: Annotated[str, typer.Option(metavar="REGEX", help="Run only the cases whose name has a match.")] = "",
    kernels: Annotated[bool, typer.Option("--kernels", help="Print the time of each of our kernels instead.")] = False,
) -> None:
    """Residual blocks in bfloat16: cuDNN's convolutions, cuDNN's fused ones and ours; fails if ours are wrong."""
    target = command.checked_device(device)
    command.checked_json(json_file)
    if kernels:
        (_, maker), *_ = cases(random_detector().to(target), batch, size, torch.bfloat16, target, "^trunk$")
        for contender in maker().contenders:
            if contender.name in (f"{OURS} Triton", f"{OURS} CUDA C++"):
                print_kernels(contender, batch)
        return
    made = cases(random_detector().to(target), batch, size, torch.bfloat16, target, only)
    command.finish((maker() for _, maker in made), target, seconds, json_file)


if __name__ == "__main__":
    typer.run(main)

"""``python -m benchmarks.model``: uint8 batch -> logits, the detector against every engine for the same network."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import command, peers
from benchmarks.harness import OURS, REFERENCE, Benchmark, Contender, Parity
from npr_kernels.testing import allowed, error
from npr_model import checkpoints
from npr_model.detectors.base import IMAGENET_STD
from npr_model.detectors.npr import NPRDetector
from npr_model.errors import InputError
from npr_model.inference import quantisation
from npr_model.inference.freeze import freeze

INT8_LIMIT = 0.2  # of the largest logit, for its largest difference; on images, and in ranks: benchmarks.precision
FLOAT32_LIMIT = 1e-4  # largest difference of a logit from float64 in float32, where eager's is smaller


def random_detector() -> NPRDetector:
    """A detector with batch norms as after training; a fresh one's change nothing, which would hide mistakes."""
    torch.manual_seed(0)
    detector = NPRDetector()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
    return detector.eval()


def random_pixels(batch: int, size: int) -> Tensor:
    """uint8 (batch, 3, size, size): smooth patches and noise, in another mixture in each image."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(batch, 3, 8, 8, generator=generator)
    smooth = F.interpolate(smooth, (size, size), mode="bilinear", align_corners=False)
    noise = torch.randn(batch, 3, size, size, generator=generator) * torch.linspace(0.01, 0.2, batch).view(-1, 1, 1, 1)
    return ((smooth + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def benchmark(detector: NPRDetector, batch: int, size: int, device: torch.device) -> Benchmark:
    """The case: ``detector``, of the authors' configuration, on a batch of uint8 images of size x size."""
    pixels = random_pixels(batch, size).to(device)
    decoded = pixels.contiguous(memory_format=torch.channels_last)  # as decoders give them
    detector = detector.to(device).eval()
    bf16, f32, int8 = torch.bfloat16, torch.float32, torch.int8

    def authors(dtype: torch.dtype) -> nn.Module:
        return peers.AuthorsDetector(detector, dtype).to(device)

    @functools.cache
    @torch.inference_mode()
    def truth() -> Tensor:
        return authors(torch.float64)(pixels)

    @functools.cache
    @torch.inference_mode()
    def limit(dtype: torch.dtype) -> float:
        """Of a logit's difference from the truth."""
        largest = truth().abs().max().item()
        if dtype == int8:
            return INT8_LIMIT * largest
        rule = allowed(error(authors(dtype)(pixels), truth()), dtype) * largest
        return max(FLOAT32_LIMIT, rule) if dtype == f32 else rule  # on GPUs torch rounds to TF32 unless told otherwise

    def judge(logits: Tensor, dtype: torch.dtype) -> Parity:
        difference = error(logits, truth()) * truth().abs().max().item()
        details = {}
        if batch > 1:
            details["correlation"] = torch.corrcoef(torch.stack([logits.double(), truth()]).flatten(1))[0, 1].item()
        return Parity(difference, limit(dtype), details)

    def ours(dtype: torch.dtype, **options: bool) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            if dtype == int8:  # for these pixels, as the peers' are: a checkpoint's own steps are those of photographs
                detector.activation_steps = quantisation.measure_steps(detector, pixels.split(1))
            return freeze(detector, dtype, **options)

        return build

    def calling(build: Callable[[], Callable[[Tensor], Tensor]], images: Tensor) -> Callable[[], Callable[[], Tensor]]:
        def prepare() -> Callable[[], Tensor]:
            function = build()
            return torch.inference_mode()(lambda: function(images))

        return prepare

    @functools.cache
    def onnx_file() -> bytes:
        return peers.exported(authors(f32), pixels)

    @functools.cache
    def int8_file() -> bytes:
        return peers.quantised(onnx_file(), pixels)

    def frozen(dtype: torch.dtype) -> Callable[[], nn.Module]:
        return lambda: peers.compiled(authors(dtype).to(memory_format=torch.channels_last), device, frozen=True)

    def onnx_runtime_bf16() -> Callable[[], Tensor]:
        return peers.onnx_runtime(peers.exported(authors(bf16), pixels), pixels)

    contenders = [
        Contender(REFERENCE, calling(lambda: authors(f32), pixels), f32),
        Contender("eager bfloat16", calling(lambda: authors(bf16), pixels), bf16),
        Contender(f"{OURS} float32", calling(ours(f32), decoded), f32),
        Contender(f"{OURS} bfloat16", calling(ours(bf16), decoded), bf16),
        Contender(f"{OURS} int8", calling(ours(int8), decoded), int8),
        Contender(f"{OURS} bfloat16, compile=True", calling(ours(bf16, compile=True), decoded), bf16),
        Contender("torch.compile frozen float32", calling(frozen(f32), decoded), f32),
        Contender("torch.compile frozen bfloat16", calling(frozen(bf16), decoded), bf16),
        Contender("ONNX Runtime float32", lambda: peers.onnx_runtime(onnx_file(), pixels), f32),
        Contender("ONNX Runtime bfloat16", onnx_runtime_bf16, bf16),
        Contender("OpenVINO float32", lambda: peers.openvino(onnx_file(), pixels, "f32"), f32),
        Contender("OpenVINO bfloat16", lambda: peers.openvino(onnx_file(), pixels, "bf16"), bf16),
        Contender("ONNX Runtime int8", lambda: peers.onnx_runtime(int8_file(), pixels), int8),
        Contender("OpenVINO int8", lambda: peers.openvino(int8_file(), pixels, "bf16"), int8),
    ]
    name = f"detector, uint8 -> logits, {batch}x3x{size}x{size}"
    return Benchmark(name, contenders, judge, needed_flops(authors(f32), pixels), captured=True, images=batch)


def needed_flops(model: peers.AuthorsDetector, pixels: Tensor) -> float:
    """Operations of all convolutions and the last layer, without the first one's products that are always zero."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(pixels)
    half = pixels.shape[-1] // 2
    return counter.get_total_flops() - 2.0 * 3 * model.stem.conv.out_channels * pixels.shape[0] * half**2


def main(
    device: command.Device = "cpu",
    json_file: command.JsonFile = None,
    seconds: command.Seconds = 60.0,
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 8,
    size: Annotated[int, typer.Option(min=2, help="Height and width of an image.")] = 256,
    checkpoint: Annotated[str, typer.Option(metavar="FILE", help="Weights to use; random ones if left out.")] = "",
    only: Annotated[
        str, typer.Option(metavar="REGEX", help="Run only the contenders whose name has a match, and eager.")
    ] = "",
) -> None:
    """The detector against eager PyTorch, torch.compile, ONNX Runtime and OpenVINO; fails if our logits are wrong."""
    target = command.checked_device(device)
    command.checked_json(json_file)
    try:
        detector = checkpoints.load(checkpoint).model if checkpoint else random_detector()
    except InputError as failure:
        command.refuse(f"--checkpoint: {failure}")
    if not isinstance(detector, NPRDetector):
        command.refuse(f"--checkpoint {checkpoint}: the detector is {detector.detector}, not npr")
    found = (detector.grid_size, detector.anchor, detector.scale, detector.pixel_std)
    if found != (2, 0, 2 / 3, IMAGENET_STD):
        command.refuse(f"--checkpoint {checkpoint}: not of the authors' configuration, which the peers compute")
    case = benchmark(detector, batch, size, target)
    chosen = command.chosen(only, [contender.name for contender in case.contenders], "contenders") | {REFERENCE}
    case = replace(case, contenders=[contender for contender in case.contenders if contender.name in chosen])
    command.finish([case], target, seconds, json_file)


if __name__ == "__main__":
    typer.run(main)

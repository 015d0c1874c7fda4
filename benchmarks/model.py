"""``python -m benchmarks.model``: uint8 batch -> logits, the detector against every engine for the same network."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import command, peers
from benchmarks.harness.inputs import random_detector, random_pixels
from benchmarks.harness.parity import Parity
from benchmarks.harness.rows import OURS, REFERENCE
from benchmarks.harness.runner import Benchmark, Contender
from npr_kernels.testing import allowed, error
from npr_model import checkpoints
from npr_model.detectors.base import IMAGENET_STD
from npr_model.detectors.npr import NPRDetector
from npr_model.errors import InputError
from npr_model.inference import quantisation
from npr_model.inference.freeze import freeze

F32, BF16, INT8 = torch.float32, torch.bfloat16, torch.int8
INT8_LIMIT = 0.2  # largest difference of a logit, relative to the largest logit; benchmarks.precision measures ranks
FLOAT32_LIMIT = 1e-4  # largest difference of a logit in float32, where eager's is smaller
PIECE = 8  # images whose exact logits are computed at once

Network = Callable[[Tensor], Tensor]


class LogitJudge:
    """Judges the logits of ``detector``, which is on ``device``, for ``pixels`` against float64.

    ``parts``: consecutive pixels that belong to one image, whose logit is the mean of theirs.
    """

    def __init__(self, detector: NPRDetector, pixels: Tensor, device: torch.device, parts: int = 1) -> None:
        self._detector, self._pixels, self._device, self._parts = detector, pixels, device, parts
        self.limit = functools.cache(self._limit)

    @torch.inference_mode()
    def _eager(self, dtype: torch.dtype) -> Tensor:
        network = peers.AuthorsDetector(self._detector, dtype).to(self._device)
        logits = torch.cat([network(piece.to(self._device)) for piece in self._pixels.split(PIECE)])
        return logits.view(-1, self._parts).mean(1, keepdim=True)

    @functools.cached_property
    def truth(self) -> Tensor:
        return self._eager(torch.float64)

    @functools.cached_property
    def _largest(self) -> float:
        return self.truth.abs().max().item()

    def _limit(self, dtype: torch.dtype) -> float:
        """Return the largest difference that a logit may have."""
        if dtype == INT8:
            return INT8_LIMIT * self._largest
        by_rule = allowed(error(self._eager(dtype), self.truth), dtype) * self._largest
        # On GPUs torch rounds to TF32 unless told otherwise.
        return max(FLOAT32_LIMIT, by_rule) if dtype == F32 else by_rule

    def __call__(self, logits: Tensor, dtype: torch.dtype) -> Parity:
        logits = logits.to(self._device)
        details = {}
        if len(logits) > 1:
            pair = torch.stack([logits.double(), self.truth]).flatten(1)
            details["correlation"] = torch.corrcoef(pair)[0, 1].item()
        return Parity(error(logits, self.truth) * self._largest, self.limit(dtype), details)


def benchmark(detector: NPRDetector, batch: int, size: int, device: torch.device) -> Benchmark:
    """The case: ``detector``, of the authors' configuration, on a batch of uint8 images of size x size."""
    pixels = random_pixels(batch, size).to(device)
    detector = detector.to(device).eval()
    authors = peers.AuthorsDetector(detector).to(device)
    name = "detector" if detector.size == "paper" else f"{detector.size} detector"
    return Benchmark(
        f"{name}, uint8 -> logits, {batch}x3x{size}x{size}",
        [*torch_contenders(detector, pixels), *engine_contenders(detector, pixels)],
        LogitJudge(detector, pixels, device),
        needed_flops(authors, pixels),
        captured=True,
        images=batch,
    )


def calling(build: Callable[[], Network], images: Tensor) -> Callable[[], Callable[[], Tensor]]:
    """Return what builds a network, and then a call of it on ``images``."""

    def prepare() -> Callable[[], Tensor]:
        network = build()
        return torch.inference_mode()(lambda: network(images))

    return prepare


def torch_contenders(detector: NPRDetector, pixels: Tensor) -> list[Contender]:
    """Eager PyTorch, ours and torch.compile."""
    decoded = pixels.contiguous(memory_format=torch.channels_last)  # as decoders give them

    def eager(dtype: torch.dtype) -> nn.Module:
        return peers.AuthorsDetector(detector, dtype).to(pixels.device)

    def ours(dtype: torch.dtype, **options: bool) -> nn.Module:
        if dtype == INT8:  # for these pixels, as the peers' are: a checkpoint's own scales are those of photographs
            detector.activation_steps = quantisation.measure_steps(detector, pixels.split(1))
        return freeze(detector, dtype, **options)

    def compiled(dtype: torch.dtype) -> Network:
        return peers.compiled(eager(dtype).to(memory_format=torch.channels_last), pixels.device, frozen=True)

    return [
        Contender(REFERENCE, calling(lambda: eager(F32), pixels), F32),
        Contender("eager bfloat16", calling(lambda: eager(BF16), pixels), BF16),
        Contender(f"{OURS} float32", calling(lambda: ours(F32), decoded), F32),
        Contender(f"{OURS} bfloat16", calling(lambda: ours(BF16), decoded), BF16),
        Contender(f"{OURS} int8", calling(lambda: ours(INT8), decoded), INT8),
        Contender(f"{OURS} bfloat16, compile=True", calling(lambda: ours(BF16, compile=True), decoded), BF16),
        Contender("torch.compile frozen float32", calling(lambda: compiled(F32), pixels), F32),
        Contender("torch.compile frozen bfloat16", calling(lambda: compiled(BF16), pixels), BF16),
    ]


def engine_contenders(detector: NPRDetector, pixels: Tensor) -> list[Contender]:
    """ONNX Runtime and OpenVINO."""

    @functools.cache
    def onnx_file(dtype: torch.dtype) -> bytes:
        if dtype == INT8:
            return peers.quantised(onnx_file(F32), pixels)
        return peers.exported(peers.AuthorsDetector(detector, dtype).to(pixels.device), pixels)

    def onnx_runtime(dtype: torch.dtype) -> Callable[[], Callable[[], Tensor]]:
        return lambda: peers.onnx_runtime(onnx_file(dtype), pixels)

    def openvino(dtype: torch.dtype, precision: str) -> Callable[[], Callable[[], Tensor]]:
        return lambda: peers.openvino(onnx_file(dtype), pixels, precision)

    return [
        Contender("ONNX Runtime float32", onnx_runtime(F32), F32),
        Contender("ONNX Runtime bfloat16", onnx_runtime(BF16), BF16),
        Contender("OpenVINO float32", openvino(F32, "f32"), F32),
        Contender("OpenVINO bfloat16", openvino(F32, "bf16"), BF16),
        Contender("ONNX Runtime int8", onnx_runtime(INT8), INT8),
        Contender("OpenVINO int8", openvino(INT8, "bf16"), INT8),
    ]


def needed_flops(model: peers.AuthorsDetector, pixels: Tensor) -> float:
    """Return the operations of all convolutions and the last layer, without the products that are always zero."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(pixels)
    half = pixels.shape[-1] // 2
    return counter.get_total_flops() - 2.0 * 3 * model.stem.conv.out_channels * pixels.shape[0] * half**2


def main(
    device: command.Device = "cpu",
    json_file: command.JsonFile = None,
    seconds: command.Seconds = 60.0,
    batch: command.Batch = 8,
    size: command.Size = 256,
    network: command.Network = "paper",
    checkpoint: Annotated[
        str, typer.Option(metavar="FILE", show_default=False, help="Network and weights to use instead.")
    ] = "",
    only: command.OnlyContenders = "",
) -> None:
    """Compare the detector with PyTorch, torch.compile, ONNX Runtime and OpenVINO; fail if our logits are wrong."""
    target = command.available(device)
    try:
        detector = checkpoints.load(checkpoint).model if checkpoint else random_detector(network)
    except InputError as failure:
        command.refuse(f"--checkpoint: {failure}")
    if not isinstance(detector, NPRDetector):
        command.refuse(f"--checkpoint {checkpoint}: the detector is {detector.detector}, not npr")
    configuration = (detector.grid_size, detector.anchor, detector.scale, detector.pixel_std)
    if configuration != (2, 0, 2 / 3, IMAGENET_STD):
        command.refuse(f"--checkpoint {checkpoint}: the peers compute the authors' configuration only")
    case = benchmark(detector, batch, size, target)
    chosen = command.matching(only, [contender.name for contender in case.contenders], "contenders") | {REFERENCE}
    case = replace(case, contenders=[contender for contender in case.contenders if contender.name in chosen])
    command.measure_all([case], target, seconds, json_file)


if __name__ == "__main__":
    typer.run(main)

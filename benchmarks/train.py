"""``python -m benchmarks.train``: one training step of the detector, then training from JPEG files.

A loader is fast enough if the steps hardly wait for it.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import command, parity, peers, runner
from benchmarks.harness.inputs import random_pixels
from benchmarks.harness.parity import Parity
from benchmarks.harness.rows import OURS, REFERENCE, unjudged
from benchmarks.harness.runner import Benchmark, Contender
from benchmarks.harness.timing import synchronize
from npr_kernels.testing import allowed, error
from npr_model.checkpoints import Metadata
from npr_model.datasets.folders import CLASS_FOLDERS, find_reals, read
from npr_model.errors import InputError
from npr_model.imaging.encode import encode_jpeg
from npr_model.imaging.views import tile
from npr_model.training.config import TrainConfig
from npr_model.training.distributed import Process
from npr_model.training.loading import BalancedBatches, Loader
from npr_model.training.loop import find_images
from npr_model.training.trainer import Trainer

F32, BF16 = torch.float32, torch.bfloat16
FILES = 256  # JPEGs that the loader reads
WARM_UP = 4  # steps before the waiting is measured: the workers have begun by then


@dataclass(frozen=True)
class Evidence:
    """What parity is judged by: the loss of each image, and all gradients in one vector."""

    losses: Tensor
    gradients: Tensor


def evidence(network: nn.Module, pixels: Tensor, labels: Tensor, autocast: bool) -> Evidence:
    with torch.autocast(pixels.device.type, BF16, enabled=autocast):
        logits = network(pixels)
    losses = F.binary_cross_entropy_with_logits(logits.to(labels.dtype), labels, reduction="none")
    losses.mean().backward()
    gradients = torch.cat([parameter.grad.flatten().double() for parameter in network.parameters()])
    network.zero_grad(set_to_none=True)
    return Evidence(losses.detach().double(), gradients)


def distances(measured: Evidence, truth: Evidence) -> list[float]:
    """Return the largest error of a loss and the length of the gradients' error, both relative."""
    gradients = (measured.gradients - truth.gradients).norm() / truth.gradients.norm()
    return [error(measured.losses, truth.losses), gradients.item()]


@contextlib.contextmanager
def peak_memory(device: torch.device, details: dict[str, float]) -> Iterator[None]:
    """Note what the block allocates at most on a GPU, on top of weights, optimizer and batch."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    yield
    details["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20


class Step:
    """Forward, backward and Adam on one batch of uint8 images, from the same weights for every contender."""

    def __init__(self, batch_size: int, size: int, device: torch.device) -> None:
        self.device = device
        self.pixels = random_pixels(batch_size, size).to(device)
        self.decoded = self.pixels.contiguous(memory_format=torch.channels_last)  # as decoders give them
        self.labels = (torch.arange(batch_size, device=device)[:, None] % 2).float()
        self.limits = functools.cache(self._limits)

    def eager(self, dtype: torch.dtype, channels_last: bool = False) -> tuple[nn.Module, Callable[[], Tensor]]:
        """Return the authors' layers in plain PyTorch, and a step of them; ``dtype`` bfloat16 is autocast."""
        torch.manual_seed(0)
        wide = torch.float64 if dtype == torch.float64 else F32
        network = peers.AuthorsDetector(Metadata().network().to(self.device), wide).train().requires_grad_(True)
        if channels_last:
            network.to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-4)
        batch, labels = self.decoded if channels_last else self.pixels, self.labels.to(wide)

        def step() -> Tensor:
            with torch.autocast(self.device.type, BF16, enabled=dtype == BF16):
                logits = network(batch)
            loss = F.binary_cross_entropy_with_logits(logits.to(wide), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return network, step

    def ours(self, dtype: torch.dtype) -> tuple[nn.Module, Callable[[], object]]:
        """Return the network of a trainer, and a step of it."""
        batch_size = len(self.pixels)
        config = TrainConfig(batch_size=batch_size, seed=0, dtype="bfloat16" if dtype == BF16 else "float32")
        trainer = Trainer(config, Process(self.device))
        return trainer.network, lambda: trainer.step(iter([(self.decoded, self.labels)]))

    def evidence(self, network: nn.Module, dtype: torch.dtype) -> Evidence:
        labels = self.labels.to(next(network.parameters()).dtype)
        return evidence(network, self.decoded, labels, dtype == BF16)

    @functools.cached_property
    def truth(self) -> Evidence:
        return self.evidence(self.eager(torch.float64)[0], torch.float64)

    def _limits(self, dtype: torch.dtype) -> list[float]:
        """Return the allowed distances, from the larger of two of eager's: as it is, and with weights rounded anew.

        An activation near 0 that rounding turns off moves the gradients by a jump, so one run alone may be lucky.
        """
        plain = distances(self.evidence(self.eager(dtype)[0], dtype), self.truth)
        network = self.eager(dtype)[0]
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1 + torch.finfo(dtype).eps * torch.randn_like(parameter))
        moved = distances(self.evidence(network, dtype), self.truth)
        return [allowed(max(pair), dtype) for pair in zip(plain, moved, strict=True)]

    def judge(self, result: tuple[Evidence, dict[str, float]], dtype: torch.dtype) -> Parity:
        measured, details = result
        errors = distances(measured, self.truth)
        details = details | dict(zip(("loss_error", "gradient_error"), errors, strict=True))
        return parity.worst(errors, self.limits(dtype), details)

    def contender(
        self, name: str, make: Callable[[], tuple[nn.Module, Callable[[], object]]], dtype: torch.dtype
    ) -> Contender:
        def build() -> Callable[[], tuple[Evidence, dict[str, float]]]:
            network, step = make()
            measured, details = self.evidence(network, dtype), {}
            step()  # the optimizer's state is made
            with peak_memory(self.device, details):
                step()

            def call() -> tuple[Evidence, dict[str, float]]:
                step()
                return measured, details

            return call

        return Contender(name, build, dtype)


def benchmark(batch_size: int, size: int, device: torch.device) -> Benchmark:
    """The case: a training step on ``batch_size`` images of size x size."""
    step = Step(batch_size, size, device)
    contenders = [
        step.contender(REFERENCE, lambda: step.eager(F32), F32),
        step.contender("eager bfloat16", lambda: step.eager(BF16), BF16),
        step.contender("eager bfloat16, channels_last", lambda: step.eager(BF16, channels_last=True), BF16),
        step.contender(f"{OURS} float32", lambda: step.ours(F32), F32),
        step.contender(f"{OURS} bfloat16", lambda: step.ours(BF16), BF16),
    ]
    with FlopCounterMode(display=False) as counter:
        step.eager(F32)[1]()
    name = f"training step, uint8 -> weights, {batch_size}x3x{size}x{size}"
    return Benchmark(name, contenders, step.judge, counter.get_total_flops())


# ---- from files


def make_dataset(folder: Path, photos: Path | None, size: int) -> None:
    """Write FILES JPEGs of size x size into 0_real and 1_fake: crops of ``photos``, or smooth patches and noise."""
    if photos is None:
        crops = list(random_pixels(FILES, size).permute(0, 2, 3, 1).numpy())
    else:
        photographs = find_reals(photos)
        random = np.random.default_rng(0)
        chosen = sorted(random.choice(len(photographs), FILES, replace=len(photographs) < FILES).tolist())
        crops = []
        for number in chosen:
            pixels = tile(read(photographs[number].path).pixels, size)
            top, left = (random.integers(side - size + 1) for side in pixels.shape[:2])
            crops.append(pixels[top : top + size, left : left + size])
    for number, pixels in enumerate(crops):
        path = folder / list(CLASS_FOLDERS)[number % 2] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_jpeg(pixels, 90))


def loading(
    batch_size: int, size: int, workers: int, device: torch.device, photos: Path | None, seconds: float
) -> Iterator[dict]:
    """Return rows of the loader alone, and of training steps that wait for it."""
    case = f"training from {size}x{size} JPEGs, {workers} workers, batches of {batch_size}"
    with tempfile.TemporaryDirectory() as name:
        make_dataset(Path(name), photos, size)
        for dtype in ("float32", "bfloat16"):
            config = TrainConfig(folders=(name,), batch_size=batch_size, crop_size=size, workers=workers, dtype=dtype)
            samples = find_images(config).samples
            batches = BalancedBatches(samples, config)
            loader, trainer = Loader(samples, batches, device), Trainer(config, Process(device))

            def parts(batches: BalancedBatches = batches, loader: Loader = loader) -> Iterator:
                for epoch in range(10**9):
                    batches.start(epoch)
                    yield from loader

            if dtype == "float32":
                times, _ = _timed(parts(), next, loader, device, seconds / 4)
                yield unjudged(case, "loader alone", median(times), batch_size, rounds=len(times))
            times, waiting = _timed(parts(), trainer.step, loader, device, seconds)
            yield unjudged(case, f"{OURS} {dtype}", median(times), batch_size, rounds=len(times), waiting=waiting)


def _timed(
    parts: Iterator, step: Callable[[Iterator], object], loader: Loader, device: torch.device, seconds: float
) -> tuple[list[float], float]:
    """Return the seconds of each step, and the share of their sum spent waiting for data."""
    for _ in range(WARM_UP):
        step(parts)
    synchronize(device)
    loader.waited, times, began = 0.0, [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        step(parts)
        synchronize(device)  # a step that is only queued would seem to wait for data, or not at all
        times.append(time.perf_counter() - start)
    return times, loader.waited / (time.perf_counter() - began)


def main(
    device: command.Device = "cpu",
    json_file: command.JsonFile = None,
    seconds: command.Seconds = 60.0,
    batch: Annotated[int, typer.Option(min=2, help="Images per batch.")] = 32,
    size: command.Size = 224,
    workers: Annotated[int, typer.Option(min=1, help="Processes that decode.")] = 2,
    photos: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", show_default=False, help="Photographs to cut the JPEGs from, instead of noise."),
    ] = None,
) -> None:
    """Compare a training step with eager PyTorch, then train from files; fail if our losses or gradients are wrong."""
    target = command.available(device)
    try:
        if photos is not None:
            find_reals(photos)
    except InputError as failure:
        command.refuse(f"--photos: {failure}")
    results = command.start(target, json_file)
    runner.measure(benchmark(batch, size, target), results, target, seconds)
    rows: list[dict] = []
    for row in loading(batch, size, workers, target, photos, seconds / 6):
        rows.append(row)
        results.save(rows)
    results.add(rows)
    raise typer.Exit(results.exit_code())


if __name__ == "__main__":
    typer.run(main)

"""``python -m benchmarks.train``: one training step of the detector, and the share of it spent waiting for data."""

from __future__ import annotations

import contextlib
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import command, machine, peers
from benchmarks.harness import OURS, REFERENCE, Benchmark, Contender, Parity, report
from benchmarks.model import random_pixels
from benchmarks.timing import synchronize
from npr_kernels.testing import allowed, error
from npr_model import datasets
from npr_model.checkpoints import Metadata
from npr_model.errors import InputError
from npr_model.imaging.encode import encode_jpeg
from npr_model.imaging.views import tile
from npr_model.training.config import TrainConfig
from npr_model.training.distributed import Process
from npr_model.training.loading import BalancedBatches, Loader
from npr_model.training.loop import find_images
from npr_model.training.trainer import Trainer

FILES = 256  # JPEGs that the loader reads
WARM_UP = 4  # steps before the waiting is measured: the workers have begun by then


@dataclass(frozen=True)
class Evidence:
    """What parity is judged by: the loss of each image, and all gradients in one vector."""

    losses: Tensor
    gradients: Tensor


def evidence(network: nn.Module, pixels: Tensor, labels: Tensor, autocast: bool) -> Evidence:
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=autocast):
        logits = network(pixels)
    losses = F.binary_cross_entropy_with_logits(logits.to(labels.dtype), labels, reduction="none")
    losses.mean().backward()
    gradients = torch.cat([parameter.grad.flatten().double() for parameter in network.parameters()])
    network.zero_grad(set_to_none=True)
    return Evidence(losses.detach().double(), gradients)


def distances(found: Evidence, truth: Evidence) -> tuple[float, float]:
    """Of the losses the largest error, of the gradients the length of theirs; relative."""
    gradients = (found.gradients - truth.gradients).norm() / truth.gradients.norm()
    return error(found.losses, truth.losses), gradients.item()


@contextlib.contextmanager
def peak_memory(device: torch.device, details: dict[str, float]) -> Iterator[None]:
    """Notes what the block allocates at most on a GPU, on top of weights, optimizer and batch."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    yield
    details["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20


def benchmark(batch_size: int, size: int, device: torch.device) -> Benchmark:
    """Forward, backward and Adam on a batch of uint8 images, from the same weights for every contender."""
    pixels = random_pixels(batch_size, size).to(device)
    decoded = pixels.contiguous(memory_format=torch.channels_last)  # as decoders give them
    labels = (torch.arange(batch_size, device=device)[:, None] % 2).float()
    f32, bf16 = torch.float32, torch.bfloat16

    def eager(dtype: torch.dtype, channels_last: bool = False) -> tuple[nn.Module, Callable[[], Tensor]]:
        """The authors' layers in plain PyTorch; ``dtype`` bfloat16 is autocast."""
        torch.manual_seed(0)
        wide = torch.float64 if dtype == torch.float64 else f32
        network = peers.AuthorsDetector(Metadata().network().to(device), wide).train().requires_grad_(True)
        if channels_last:
            network.to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-4)
        batch, wanted = decoded if channels_last else pixels, labels.to(wide)

        def step() -> Tensor:
            with torch.autocast(device.type, bf16, enabled=dtype == bf16):
                logits = network(batch)
            loss = F.binary_cross_entropy_with_logits(logits.to(wide), wanted)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return network, step

    def ours(dtype: torch.dtype) -> tuple[nn.Module, Callable[[], Tensor]]:
        config = TrainConfig(batch_size=batch_size, seed=0, dtype="bfloat16" if dtype == bf16 else "float32")
        trainer = Trainer(config, Process(device))
        return trainer.network, lambda: trainer.step(iter([(decoded, labels)]))

    def judged(network: nn.Module, dtype: torch.dtype) -> Evidence:
        return evidence(network, decoded, labels.to(next(network.parameters()).dtype), dtype == bf16)

    @functools.cache
    def limits(dtype: torch.dtype) -> list[float]:
        """Eager's distances, the larger of two: as it is, and with weights that differ by a rounding.

        An activation near 0 that rounding turns off moves the gradients by a jump, so one run alone may be lucky.
        """
        found = [distances(judged(eager(dtype)[0], dtype), truth)]
        network = eager(dtype)[0]
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1 + torch.finfo(dtype).eps * torch.randn_like(parameter))
        found.append(distances(judged(network, dtype), truth))
        return [allowed(max(pair), dtype) for pair in zip(*found, strict=True)]

    def judge(result: tuple[Evidence, dict[str, float]], dtype: torch.dtype) -> Parity:
        found, details = result
        pairs = list(zip(distances(found, truth), limits(dtype), strict=True))
        details = details | {"loss_error": pairs[0][0], "gradient_error": pairs[1][0]}
        return Parity(*max(pairs, key=lambda pair: pair[0] / pair[1]), details)

    def contender(name: str, make: Callable[[], tuple[nn.Module, Callable]], dtype: torch.dtype) -> Contender:
        def build() -> Callable[[], tuple[Evidence, dict[str, float]]]:
            network, step = make()
            found, details = judged(network, dtype), {}
            step()  # the optimizer's state is made
            with peak_memory(device, details):
                step()

            def call() -> tuple[Evidence, dict[str, float]]:
                step()
                return found, details

            return call

        return Contender(name, build, dtype)

    truth = judged(eager(torch.float64)[0], torch.float64)
    contenders = [
        contender(REFERENCE, lambda: eager(f32), f32),
        contender("eager bfloat16", lambda: eager(bf16), bf16),
        contender("eager bfloat16, channels_last", lambda: eager(bf16, channels_last=True), bf16),
        contender(f"{OURS} float32", lambda: ours(f32), f32),
        contender(f"{OURS} bfloat16", lambda: ours(bf16), bf16),
    ]
    with FlopCounterMode(display=False) as counter:
        eager(f32)[1]()
    name = f"training step, uint8 -> weights, {batch_size}x3x{size}x{size}"
    return Benchmark(name, contenders, judge, counter.get_total_flops())


def make_files(folder: Path, photos: Path | None, size: int) -> None:
    """FILES JPEGs of size x size in 0_real and 1_fake: crops of ``photos``, or smooth patches and noise."""
    if photos is None:
        crops = list(random_pixels(FILES, size).permute(0, 2, 3, 1).numpy())
    else:
        found = datasets.find_reals(photos)
        random = np.random.default_rng(0)
        chosen = sorted(random.choice(len(found), FILES, replace=len(found) < FILES).tolist())
        crops = []
        for number in chosen:
            pixels = tile(datasets.read(found[number].path).pixels, size)
            top, left = (random.integers(side - size + 1) for side in pixels.shape[:2])
            crops.append(pixels[top : top + size, left : left + size])
    for number, pixels in enumerate(crops):
        path = folder / list(datasets.CLASS_FOLDERS)[number % 2] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_jpeg(pixels, 90))


def loading(batch_size: int, size: int, workers: int, device: torch.device, photos: Path | None, seconds: float):
    """Rows of the loader on its own, and of steps that wait for it."""
    with tempfile.TemporaryDirectory() as name:
        make_files(Path(name), photos, size)
        for dtype in ("float32", "bfloat16"):
            config = TrainConfig(folders=(name,), batch_size=batch_size, crop_size=size, workers=workers, dtype=dtype)
            samples = find_images(config).samples
            batches = BalancedBatches([sample.label for sample in samples], config)
            loader, trainer = Loader(samples, batches, device), Trainer(config, Process(device))

            def parts(batches: BalancedBatches = batches, loader: Loader = loader) -> Iterator:
                for epoch in range(10**9):
                    batches.start(epoch)
                    yield from loader

            case = f"training from {size}x{size} JPEGs, {workers} workers, batches of {batch_size}"
            if dtype == "float32":
                times, _ = _timed(parts(), next, loader, device, seconds / 4)
                yield _row(case, "loader alone", times, batch_size)
            times, waiting = _timed(parts(), trainer.step, loader, device, seconds)
            yield _row(case, f"{OURS} {dtype}", times, batch_size) | {"waiting": waiting}


def _timed(
    parts: Iterator, step: Callable[[Iterator], object], loader: Loader, device: torch.device, seconds: float
) -> tuple[list[float], float]:
    """Seconds of each step, and the share of all of them spent waiting for data."""
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


def _row(case: str, contender: str, times: list[float], batch_size: int) -> dict:
    median = statistics.median(times)
    row = {"case": case, "contender": contender, "median_ms": 1e3 * median, "ratio_to_reference": None}
    return row | {"parity": "not judged", "rounds": len(times), "images_per_second": batch_size / median}


def main(
    device: command.Device = "cpu",
    json_file: command.JsonFile = None,
    seconds: command.Seconds = 60.0,
    batch: Annotated[int, typer.Option(min=2, help="Images in a batch.")] = 32,
    size: Annotated[int, typer.Option(min=8, help="Height and width of an image.")] = 224,
    workers: Annotated[int, typer.Option(min=1, help="Processes that decode.")] = 2,
    photos: Annotated[Path | None, typer.Option(metavar="DIR", help="Photographs to cut the JPEGs from.")] = None,
) -> None:
    """A training step against eager PyTorch, then training from files; fails if our losses or gradients are wrong."""
    target = command.checked_device(device)
    command.checked_json(json_file)
    try:
        if photos is not None:
            datasets.find_reals(photos)
    except InputError as failure:
        command.refuse(f"--photos: {failure}")
    console = Console(width=None if sys.stdout.isatty() else 160)
    described = machine.describe(target)
    code = report([benchmark(batch, size, target)], described, target, seconds, json_file, console)
    rows = []
    for row in loading(batch, size, workers, target, photos, seconds / 6):
        waiting = f", {row['waiting']:.1%} of the time waiting for data" if "waiting" in row else ""
        times = f"{row['median_ms']:.1f} ms, {row['images_per_second']:.0f} images/s"
        console.print(f"{row['case']}: {row['contender']} {times}{waiting}", soft_wrap=True)
        rows.append(row)
    if json_file is not None:
        content = json.loads(json_file.read_text())
        content["rows"] += rows
        json_file.write_text(json.dumps(content, indent=1) + "\n")
    raise typer.Exit(code)


if __name__ == "__main__":
    typer.run(main)

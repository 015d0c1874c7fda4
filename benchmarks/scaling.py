"""``python -m benchmarks.scaling``: a model of the time that screening takes, and what a billion images cost by it.

Each part (decoding, the copy to a GPU, the stem, the trunk) takes a fixed time per call and a time per pixel. Both are
fitted to times of the parts alone at several sizes and batches. The model's predictions are compared with whole runs.
On a CPU decoding and network share the cores; with a GPU they run side by side, and the slower one counts. Two
predictions for machines whose cores are as fast as these follow from the fit: on paper (:func:`seconds_an_image`), and
by simulating a run (:func:`simulate`).
"""

from __future__ import annotations

import functools
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import typer
from scipy.optimize import nnls

from benchmarks.harness import command
from benchmarks.harness.inputs import as_checkpoint, make_files, random_detector, random_pixels
from benchmarks.harness.rows import OURS, unjudged
from benchmarks.harness.timing import Timer, interleave
from npr_model.imaging.decode import decode
from npr_model.inference.freeze import freeze
from npr_model.inference.fused import split_by_pixels
from npr_model.scoring.scorer import Scorer
from npr_model.screening.inputs.sources import Sources

BATCH = 16  # what `npr screen` scores together
SHAPES = {  # (batch, side) that the parts are timed at
    "cpu": [(batch, 256) for batch in (1, 2, 4, 8, 16, 32)] + [(8, 128), (8, 512), (4, 1024)],
    "cuda": [(batch, 256) for batch in (1, 4, 16, 64, 256)] + [(64, 128), (64, 512), (16, 1024)],
}
FILES = {128: 192, 256: 96, 512: 32, 1024: 16}  # JPEG files of whole runs, by side
WORKERS = {512: (1, 4)}  # decoding threads of additional whole runs; the others have one per core, up to MOST_WORKERS
MOST_WORKERS = 16
IMAGES = 10**9
MACHINES = (2, 16, 64)  # cores
SIMULATED = 2_000  # images of a simulated run


@dataclass(frozen=True)
class Line:
    """A time in seconds: a fixed one per call, and one per million pixels."""

    call: float
    megapixel: float

    def __call__(self, megapixels: float) -> float:
        return self.call + self.megapixel * megapixels


def fit(megapixels: Sequence[float], seconds: Sequence[float]) -> Line:
    """Return the line whose relative errors have the least sum of squares, neither part of it negative."""
    weights = 1 / np.array(seconds)
    terms = np.stack([np.ones(len(seconds)), np.array(megapixels)], 1)
    (call, megapixel), _ = nnls(terms * weights[:, None], np.ones(len(seconds)))
    return Line(float(call), float(megapixel))


@dataclass(frozen=True)
class Model:
    """Seconds of decoding one image on one core, and of copying and scoring one batch.

    ``cores``: how many the network was timed on; 0 if it runs on a GPU.
    """

    decode: Line
    copy: Line
    stem: Line
    trunk: Line
    cores: int

    def network(self, batch: int, side: int) -> float:
        megapixels = batch * side**2 / 1e6
        return self.copy(megapixels) + self.stem(megapixels) + self.trunk(megapixels)


def seconds_an_image(model: Model, side: int, cores: int) -> float:
    """Return the seconds per image on paper: the work divided by the cores; with a GPU the slower of the two halves."""
    decode, network = model.decode(side**2 / 1e6) / cores, model.network(BATCH, side) / BATCH
    return decode + network * model.cores / cores if model.cores else max(decode, network)


def simulate(model: Model, side: int, cores: int, workers: int = 0, count: int = SIMULATED) -> float:
    """Return the seconds per image of a simulated run of ``count`` images.

    ``workers`` threads (0: one per core, up to MOST_WORKERS) decode at most two batches ahead. They and the network's
    threads, one per core, have equal shares of the cores. Decoding an image takes 0.5 to 1.5 times as long as the model
    says, the same in every simulation.
    """
    workers = workers or min(MOST_WORKERS, cores)
    ahead = 2 * max(BATCH, workers)
    spread = np.random.default_rng(0).uniform(0.5, 1.5, count)
    work = model.decode(side**2 / 1e6) * spread
    batch_work = model.network(BATCH, side) * model.cores  # seconds of one core
    decoding: dict[int, float] = {}  # work left on each image, in seconds of a core
    begun = decoded = scored = 0
    scoring, now = None, 0.0
    while scored < count:
        while len(decoding) < workers and begun < count and begun - scored < ahead + BATCH:
            decoding[begun] = float(work[begun])
            begun += 1
        size = min(BATCH, count - scored)
        if scoring is None and decoded - scored >= size:
            scoring = batch_work * size / BATCH if model.cores else model.network(BATCH, side) * size / BATCH
        threads = len(decoding) + (cores if scoring is not None and model.cores else 0)
        speed = min(1.0, cores / threads) if threads else 1.0  # share of a core that each thread has
        network_speed = speed * cores if model.cores else 1.0
        step = min(
            [left / speed for left in decoding.values()] + ([] if scoring is None else [scoring / network_speed])
        )
        now += step
        decoding = {number: left - step * speed for number, left in decoding.items()}
        finished = [number for number, left in decoding.items() if left <= 1e-12]
        for number in finished:
            del decoding[number]
        decoded += len(finished)
        if scoring is not None:
            scoring -= step * network_speed
            if scoring <= 1e-12:
                scoring, scored = None, scored + size
    return now / count


def time_parts(device: torch.device, folder: Path, seconds: float) -> dict[tuple[str, int, int], float]:
    """Return the median seconds of a call by (part, batch, side).

    The parts are "decode" (one JPEG file of quality 90 on one core) and, for batches, "network", "stem" and on a GPU
    "copy".
    """
    frozen = freeze(random_detector().to(device))

    @torch.inference_mode()
    def stem(pixels: torch.Tensor) -> None:
        for part in split_by_pixels(pixels, frozen.pixels_at_once):
            frozen.stem(part)

    calls: dict[tuple[str, int, int], Callable[[], object]] = {}
    for side in FILES:
        (path,) = make_files(folder, "JPEG", side, 1)
        calls["decode", 1, side] = functools.partial(decode, path.read_bytes())
    for batch, side in SHAPES[device.type]:
        host = random_pixels(batch, side).contiguous(memory_format=torch.channels_last)  # as decoders give them
        pixels = host.to(device)
        calls["network", batch, side] = functools.partial(frozen, pixels)
        calls["stem", batch, side] = functools.partial(stem, pixels)
        if device.type == "cuda":
            calls["copy", batch, side] = functools.partial(host.pin_memory().to, device, non_blocking=True)
    return medians(calls, device, seconds)


def medians(calls: dict, device: torch.device, seconds: float) -> dict:
    timers = {key: Timer([call], device) for key, call in calls.items()}
    return {key: statistics.median(times) for key, times in interleave(timers, seconds).items()}


def fit_model(times: dict[tuple[str, int, int], float], cores: int) -> Model:
    """Fit the model to times of :func:`time_parts`; the trunk is the network without its stem."""

    def line(part: str, less: str = "") -> Line:
        of_part = [key for key in times if key[0] == part]
        if not of_part:
            return Line(0, 0)
        seconds = [times[key] - times.get((less, *key[1:]), 0) for key in of_part]
        return fit([batch * side**2 / 1e6 for _, batch, side in of_part], seconds)

    return Model(line("decode"), line("copy"), line("stem"), line("network", less="stem"), cores)


def time_runs(device: torch.device, folder: Path, seconds: float) -> dict[tuple[int, int], float]:
    """Return the median seconds per image of whole runs, by (side, workers); workers 0: the default."""
    loaded = as_checkpoint(random_detector())

    def run(scorer: Scorer, paths: list[Path]) -> None:
        failed = [row.error for row in scorer.score(Sources(paths)) if row.error is not None]
        if failed:
            raise RuntimeError(failed[0])

    calls = {}
    for side, count in FILES.items():
        below = folder / str(side)
        below.mkdir()
        paths = make_files(below, "JPEG", side, count)
        for workers in (0, *WORKERS.get(side, ())):
            calls[side, workers] = functools.partial(run, Scorer(loaded, device=device, workers=workers), paths)
    return {key: time / FILES[key[0]] for key, time in medians(calls, device, seconds).items()}


def rows_of(times: dict[tuple[str, int, int], float], runs: dict[tuple[int, int], float], model: Model) -> list[dict]:
    """Return the report: parts and whole runs beside the model's predictions, and what IMAGES cost."""
    rows: list[dict] = []
    lines = {"decode": model.decode, "copy": model.copy, "stem": model.stem}
    for (part, batch, side), seconds in times.items():
        megapixels = batch * side**2 / 1e6
        fitted = lines[part](megapixels) if part in lines else model.stem(megapixels) + model.trunk(megapixels)
        row = unjudged(f"scaling, {part}", f"{batch}x{side}x{side}", seconds, batch, predicted_ms=1e3 * fitted)
        rows.append(row)
    cores = torch.get_num_threads() if model.cores else min(MOST_WORKERS, os.cpu_count() or 1)
    for (side, workers), seconds in runs.items():
        threads = f", {workers} worker{'s' * (workers > 1)}" if workers else ""
        name = f"{OURS}, {side}x{side}{threads}"
        predicted = _predictions(model, side, cores, workers)
        rows.append(unjudged("scaling, whole runs, an image", name, seconds, 1, **predicted))
    device = "" if model.cores else " and a GPU as here"
    for cores in MACHINES:
        for side in FILES:
            predicted = _predictions(model, side, cores)
            days = IMAGES * predicted["simulated_ms"] / 1e3 / 86_400
            name = f"{cores} cores{device}, {side}x{side}"
            rows.append(unjudged(f"scaling, {IMAGES:,} images", name, **predicted, days=days))
    return rows


def _predictions(model: Model, side: int, cores: int, workers: int = 0) -> dict[str, float]:
    simulated = simulate(model, side, cores, workers)
    return {"predicted_ms": 1e3 * seconds_an_image(model, side, cores), "simulated_ms": 1e3 * simulated}


def main(
    device: command.Device = "cpu",
    json_file: command.JsonFile = None,
    seconds: command.Seconds = 90.0,
) -> None:
    """Time the parts of screening and whole runs, fit the model, and predict the time of a billion images."""
    target = command.available(device)
    results = command.start(target, json_file)
    with tempfile.TemporaryDirectory() as folder:
        times = time_parts(target, Path(folder), seconds)
        runs = time_runs(target, Path(folder), seconds)
    model = fit_model(times, torch.get_num_threads() if device == "cpu" else 0)
    for part in ("decode", "copy", "stem", "trunk"):
        line = getattr(model, part)
        if line.megapixel:
            results.console.print(
                f"{part}: {1e3 * line.call:.3g} ms per call + {1e3 * line.megapixel:.3g} ms per million pixels"
            )
    results.content["model"] = asdict(model)
    rows = rows_of(times, runs, model)
    for case in dict.fromkeys(row["case"] for row in rows):
        results.add([row for row in rows if row["case"] == case])


if __name__ == "__main__":
    typer.run(main)

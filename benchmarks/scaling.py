"""``python -m benchmarks.scaling``: where the time of screening goes, as a model, and what a billion images cost.

Each part (decoding, on a GPU the copy, the stem, the trunk) takes so long a call and so long a pixel. Both are fitted
to the parts, timed alone at several sizes and batches, and what the model says of whole runs is compared with whole
runs. On the CPU decoding and network share the cores; on a GPU they run side by side, and the slower one counts. From
the fit, on paper (:func:`seconds_an_image`) and by simulation of a run (:func:`simulate`), come the costs of machines
whose cores are as fast as these.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from scipy.optimize import nnls

from benchmarks import command, machine
from benchmarks.harness import OURS
from benchmarks.model import random_detector, random_pixels
from benchmarks.screening import make_files
from benchmarks.timing import Timer, interleave
from npr_model.checkpoints import LoadedCheckpoint, Metadata
from npr_model.imaging.decode import decode
from npr_model.inference.freeze import freeze
from npr_model.inference.fused import split_by_pixels
from npr_model.screening.runner import Scorer
from npr_model.screening.sources import Sources

BATCH = 16  # what `npr screen` scores together
SHAPES = {  # (batch, side) that the parts are timed at
    "cpu": [(batch, 256) for batch in (1, 2, 4, 8, 16, 32)] + [(8, 128), (8, 512), (4, 1024)],
    "cuda": [(batch, 256) for batch in (1, 4, 16, 64, 256)] + [(64, 128), (64, 512), (16, 1024)],
}
FILES = {128: 192, 256: 96, 512: 32, 1024: 16}  # JPEG files of whole runs, by side
WORKERS = {512: (1, 4)}  # decoding threads of more whole runs; otherwise one for each core, up to MOST_WORKERS
MOST_WORKERS = 16
IMAGES = 10**9
MACHINES = (2, 16, 64)  # cores
SIMULATED = 2_000  # images of a simulated run


@dataclass(frozen=True)
class Line:
    """Seconds: so many a call, and so many a million pixels."""

    call: float
    megapixel: float

    def __call__(self, megapixels: float) -> float:
        return self.call + self.megapixel * megapixels


def fit(megapixels: Sequence[float], seconds: Sequence[float]) -> Line:
    """The line whose relative errors have the least sum of squares, neither part of it negative."""
    weights = 1 / np.array(seconds)
    terms = np.stack([np.ones(len(seconds)), np.array(megapixels)], 1)
    (call, megapixel), _ = nnls(terms * weights[:, None], np.ones(len(seconds)))
    return Line(float(call), float(megapixel))


@dataclass(frozen=True)
class Model:
    """Seconds of decoding one image on one core, and of copying and scoring one batch.

    ``cores`` are those that the network was timed on; 0: it runs on a GPU, and takes none.
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
    """On paper: the work over the cores, or of decoding and a GPU's network the slower one."""
    decode, network = model.decode(side**2 / 1e6) / cores, model.network(BATCH, side) / BATCH
    return decode + network * model.cores / cores if model.cores else max(decode, network)


def simulate(model: Model, side: int, cores: int, workers: int = 0, count: int = SIMULATED) -> float:
    """Seconds an image of a run of ``count`` that decodes on ``workers`` threads, at most two batches ahead.

    ``workers`` 0: one for each core, up to MOST_WORKERS. The network's threads, one for each core, and those that
    decode have equal shares of the cores; decoding takes up to half as long again or half as long as the model says,
    in a fixed order.
    """
    workers = workers or min(MOST_WORKERS, cores)
    ahead = 2 * max(BATCH, workers)
    spread = np.random.default_rng(0).uniform(0.5, 1.5, count)
    work = model.decode(side**2 / 1e6) * spread
    batch_work = model.network(BATCH, side) * model.cores  # seconds of one core
    decoding: dict[int, float] = {}  # what is left to do of each image, in seconds of a core
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
        speed = min(1.0, cores / threads) if threads else 1.0  # of each thread
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
    """Median seconds of a call by part, batch and side: "decode" of one JPEG file of quality 90 on one core, "network",
    "stem" and, to a GPU, "copy" of a batch."""
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
    """The model of :func:`time_parts`; the trunk is what the network takes beside its stem."""

    def line(part: str, less: str = "") -> Line:
        of_part = [key for key in times if key[0] == part]
        if not of_part:
            return Line(0, 0)
        found = [times[key] - times.get((less, *key[1:]), 0) for key in of_part]
        return fit([batch * side**2 / 1e6 for _, batch, side in of_part], found)

    return Model(line("decode"), line("copy"), line("stem"), line("network", less="stem"), cores)


def time_runs(device: torch.device, folder: Path, seconds: float) -> dict[tuple[int, int], float]:
    """Median seconds an image of whole runs, from files on disk to rows, by side and workers (0: the default)."""
    loaded = LoadedCheckpoint(random_detector(), Metadata(), "0" * 64, Path("random"))

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
    """The report: parts and whole runs beside what the model says of them, and what IMAGES cost."""
    rows: list[dict] = []

    def add(case: str, contender: str, seconds: float | None, count: int, **more: float) -> None:
        timed = {"median_ms": seconds and 1e3 * seconds, "images_per_second": seconds and count / seconds}
        rows.append({"case": case, "contender": contender} | timed | {"ratio_to_reference": None} | more)

    lines = {"decode": model.decode, "copy": model.copy, "stem": model.stem}
    for (part, batch, side), seconds in times.items():
        megapixels = batch * side**2 / 1e6
        fitted = lines[part](megapixels) if part in lines else model.stem(megapixels) + model.trunk(megapixels)
        add(f"scaling, {part}", f"{batch}x{side}x{side}", seconds, batch, predicted_ms=1e3 * fitted)
    cores = torch.get_num_threads() if model.cores else min(MOST_WORKERS, os.cpu_count() or 1)
    for (side, workers), seconds in runs.items():
        paper, simulated = seconds_an_image(model, side, cores), simulate(model, side, cores, workers)
        ahead = {"predicted_ms": 1e3 * paper, "simulated_ms": 1e3 * simulated}
        threads = f", {workers} worker{'s' * (workers > 1)}" if workers else ""
        add("scaling, whole runs, an image", f"{OURS}, {side}x{side}{threads}", seconds, 1, **ahead)
    device = "" if model.cores else " and a GPU as here"
    for cores in MACHINES:
        for side in FILES:
            paper, simulated = seconds_an_image(model, side, cores), simulate(model, side, cores)
            cost = {"predicted_ms": 1e3 * paper, "simulated_ms": 1e3 * simulated, "days": IMAGES * simulated / 86_400}
            add(f"scaling, {IMAGES:,} images", f"{cores} cores{device}, {side}x{side}", None, 1, **cost)
    return rows


COLUMNS = {  # title: key of the row, format
    "ms": ("median_ms", ".3g"),
    "images/s": ("images_per_second", ".3g"),
    "on paper, ms": ("predicted_ms", ".3g"),
    "simulated, ms": ("simulated_ms", ".3g"),
    "days": ("days", ".3g"),
}


def table(case: str, rows: list[dict]) -> Table:
    """The rows of one case; columns that none fills are left out."""
    columns = {title: column for title, column in COLUMNS.items() if any(row.get(column[0]) for row in rows)}
    result = Table("", *columns, title=case, title_justify="left")
    for row in rows:
        result.add_row(
            row["contender"], *(f"{row[key]:{form}}" if row.get(key) else "" for key, form in columns.values())
        )
    return result


def main(
    device: command.Device = "cpu",
    json_file: command.JsonFile = None,
    seconds: command.Seconds = 90.0,
) -> None:
    """Time the parts of screening and whole runs, fit the model, and say what a billion images cost."""
    target = command.checked_device(device)
    command.checked_json(json_file)
    console = Console(width=None if sys.stdout.isatty() else 120)
    described = machine.describe(target)
    with tempfile.TemporaryDirectory() as name:
        times = time_parts(target, Path(name), seconds)
        runs = time_runs(target, Path(name), seconds)
    model = fit_model(times, torch.get_num_threads() if target.type == "cpu" else 0)
    for part in ("decode", "copy", "stem", "trunk"):
        line = getattr(model, part)
        if line.megapixel:
            console.print(f"{part}: {1e3 * line.call:.3g} ms a call + {1e3 * line.megapixel:.3g} ms a million pixels")
    rows = rows_of(times, runs, model)
    for case in dict.fromkeys(row["case"] for row in rows):
        console.print(table(case, [row for row in rows if row["case"] == case]))
    if json_file:
        json_file.write_text(json.dumps({"machine": described, "model": asdict(model), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)

"""``python -m benchmarks.cluster``: the engine ray against the engine local, and two nodes against one.

Two nodes on one machine have no more cores than one, so they score with a network that only waits, a fixed time for an
image. Rates leave out the first half of the rows: starting workers is paid once, however long the run.
"""

from __future__ import annotations

import json
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import ray
import torch
import typer
from ray.cluster_utils import Cluster
from ray.data import DataContext
from rich.console import Console
from torch import Tensor

from benchmarks import command, machine
from benchmarks.harness import OURS
from benchmarks.memory import make_tars
from benchmarks.model import random_detector
from benchmarks.screening import make_files
from npr_model.checkpoints import LoadedCheckpoint, Metadata
from npr_model.detectors.base import DetectorNetwork
from npr_model.screening.parts import Finished
from npr_model.screening.ray_engine import RayEngine
from npr_model.screening.rows import Row
from npr_model.screening.runner import Scorer
from npr_model.screening.sources import Sources

CORES = 4  # that a node is told it has: Ray needs more of them than there are actors
SECONDS_AN_IMAGE = 0.01
ROUNDS = 3
SAME_MOMENT = 0.05  # seconds


class FixedCost(DetectorNetwork):
    """Takes SECONDS_AN_IMAGE for each image and no core."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(SECONDS_AN_IMAGE * len(x))
        return torch.zeros(len(x), 1)


def maker(model: DetectorNetwork) -> partial[Scorer]:
    return partial(Scorer, LoadedCheckpoint(model, Metadata(), "0" * 64, Path("random")))


def rate(rows: Iterator[Row], count: int) -> float:
    """Rows a second after the first half of them. Raises RuntimeError unless there are ``count`` without error."""
    times = []
    for row in rows:
        if row.error is not None:
            raise RuntimeError(row.error)
        times.append(time.perf_counter())
    if len(times) != count:
        raise RuntimeError(f"{len(times)} rows of {count} images")
    began = times[count // 2]
    after = sum(moment > began + SAME_MOMENT for moment in times)  # rows of one block come together
    return after / (times[-1] - began)


def on_ray(make_scorer: partial[Scorer], sources: Sources, count: int) -> float:
    engine = RayEngine(make_scorer, device="cpu")
    return rate(engine.score(sources, make_scorer(device="cpu").decoder, Finished()), count)


def one_machine(folder: Path, count: int) -> tuple[float, float]:
    """Rates of the engines ray and local on JPEG files of 256x256, medians of ROUNDS in turn."""
    sources = Sources(make_files(folder, "JPEG", 256, count))
    make_scorer = maker(random_detector())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CORES})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    found: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        local = rate(make_scorer(device="cpu").score(sources), count)
        found.append((on_ray(make_scorer, sources, count), local))
    stop(cluster)
    ours, local = zip(*found, strict=True)
    return statistics.median(ours), statistics.median(local)


def nodes(folder: Path, count: int) -> tuple[float, float]:
    """Rates of two nodes and of one with FixedCost, on tars of tiny images."""
    make_tars(folder, count, images_a_tar=50)
    sources, make_scorer, found = Sources([f"{folder}/*.tar"]), maker(FixedCost()), []
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CORES})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    for number in (1, 2):
        if number == 2:
            cluster.add_node(num_cpus=CORES)
            cluster.wait_for_nodes()
        found.append(on_ray(make_scorer, sources, count))
    stop(cluster)
    return found[1], found[0]


def stop(cluster: Cluster) -> None:
    ray.shutdown()
    cluster.shutdown()


def main(
    json_file: command.JsonFile = None,
    images: Annotated[int, typer.Option(min=512, help="Of each run.")] = 3000,
) -> None:
    """Fails if an image has no row, or one with an error."""
    command.checked_json(json_file)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    DataContext.get_current().enable_progress_bars = False
    console, rows = Console(), []
    cases = (
        (one_machine, images, "JPEG files of 256x256", "engine ray", "engine local"),
        (nodes, 3 * images, f"images of {1000 * SECONDS_AN_IMAGE:.0f} ms each", "two nodes", "one node"),
    )
    for measure, count, what, ours, other in cases:
        case = f"screening {count} {what}"
        with tempfile.TemporaryDirectory() as name:
            rates = measure(Path(name), count)
        ratio = rates[0] / rates[1]
        for contender, value in zip((ours, other), rates, strict=True):
            console.print(f"{case}, {contender}: {value:.1f} images/s", highlight=False)
            row = {"case": case, "contender": f"{OURS}, {contender}", "median_ms": 1000 * count / value}
            row |= {"images_per_second": value, "ratio_to_reference": value / rates[1], "parity": "not judged"}
            rows.append(row)
        console.print(f"{ours} against {other}: {ratio:.2f}", highlight=False)
    if json_file:
        content = {"machine": machine.describe(torch.device("cpu")), "rows": rows}
        json_file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)

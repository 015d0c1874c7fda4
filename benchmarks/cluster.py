"""``python -m benchmarks.cluster``: the engine ray against the engine local, and two nodes against one.

Two nodes on one machine have no more cores than one, so they score with a network that only waits, a fixed time for an
image. Rates leave out the first half of the rows: starting workers is paid once, however long the run.
"""

from __future__ import annotations

import contextlib
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
from torch import Tensor

from benchmarks.harness import command
from benchmarks.harness.inputs import as_checkpoint, make_files, make_tars, random_detector
from benchmarks.harness.rows import OURS, unjudged
from npr_model.detectors.base import DetectorNetwork
from npr_model.scoring.rows import Row
from npr_model.scoring.scorer import Scorer
from npr_model.screening.engines.ray import RayEngine
from npr_model.screening.inputs.sources import Sources
from npr_model.screening.outputs.parts import Finished

CORES = 4  # that a node is told it has: Ray needs more of them than there are actors
SECONDS_AN_IMAGE = 0.01
ROUNDS = 3
SAME_MOMENT = 0.05  # seconds


class FixedCost(DetectorNetwork):
    """Takes SECONDS_AN_IMAGE for each image and no core."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(SECONDS_AN_IMAGE * len(x))
        return torch.zeros(len(x), 1)


def scorer_maker(model: DetectorNetwork) -> partial[Scorer]:
    return partial(Scorer, as_checkpoint(model))


def rate(rows: Iterator[Row], count: int) -> float:
    """Return the rows per second after the first half. Raises RuntimeError unless ``count`` rows have no error."""
    times = []
    for row in rows:
        if row.error is not None:
            raise RuntimeError(row.error)
        times.append(time.perf_counter())
    if len(times) != count:
        raise RuntimeError(f"{len(times)} rows of {count} images")
    began = times[count // 2]
    after = sum(moment > began + SAME_MOMENT for moment in times)  # rows of one block come together
    if not after:
        raise RuntimeError(f"{count} images are too few to measure a rate: use more --images")
    return after / (times[-1] - began)


def on_ray(make_scorer: partial[Scorer], sources: Sources, count: int) -> float:
    engine = RayEngine(make_scorer, device="cpu")
    return rate(engine.score(sources, make_scorer(device="cpu").decoder, Finished()), count)


def engines(folder: Path, count: int) -> dict[str, float]:
    """Return the rates of the engines ray and local on JPEG files of 256x256, medians of ROUNDS in turn."""
    sources = Sources(make_files(folder, "JPEG", 256, count))
    make_scorer = scorer_maker(random_detector())
    rates: dict[str, list[float]] = {"engine ray": [], "engine local": []}
    with ray_cluster():
        for _ in range(ROUNDS):
            rates["engine local"].append(rate(make_scorer(device="cpu").score(sources), count))
            rates["engine ray"].append(on_ray(make_scorer, sources, count))
    return {name: statistics.median(values) for name, values in rates.items()}


def nodes(folder: Path, count: int) -> dict[str, float]:
    """Return the rates of two nodes and of one, with FixedCost on tars of tiny images."""
    make_tars(folder, count, images_per_tar=50)
    sources, make_scorer = Sources([f"{folder}/*.tar"]), scorer_maker(FixedCost())
    with ray_cluster() as cluster:
        one = on_ray(make_scorer, sources, count)
        cluster.add_node(num_cpus=CORES)
        cluster.wait_for_nodes()
        two = on_ray(make_scorer, sources, count)
    return {"two nodes": two, "one node": one}


@contextlib.contextmanager
def ray_cluster() -> Iterator[Cluster]:
    """A cluster of one node on this machine."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CORES})
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def main(
    json_file: command.JsonFile = None,
    images: Annotated[
        int, typer.Option(min=512, help="Images per run; runs of nodes take three times as many.")
    ] = 3000,
) -> None:
    """Compare Ray with one process, and two nodes with one; fail if an image has no row or one with an error."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    DataContext.get_current().enable_progress_bars = False
    results = command.start(torch.device("cpu"), json_file)
    for measure, count, name in (
        (engines, images, "JPEG files of 256x256"),
        (nodes, 3 * images, f"images of {1000 * SECONDS_AN_IMAGE:.0f} ms each"),
    ):
        with tempfile.TemporaryDirectory() as folder:
            rates = measure(Path(folder), count)
        case = f"screening {count} {name}"
        results.add(
            [unjudged(case, f"{OURS}, {contender}", count / value, count) for contender, value in rates.items()]
        )
        (first, value), (second, other) = rates.items()
        results.console.print(f"{first}: {value / other:.2f} times the rate of {second}")


if __name__ == "__main__":
    typer.run(main)

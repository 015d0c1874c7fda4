"""``python -m benchmarks.cascade DATASET``: rate and accuracy of a cascade beside those of its parts.

The files are read beforehand. The rate is that from a file in memory to its row, with decoding; the rate of the
networks alone is beside it. Rounds of the contenders take turns. The mean AUC is over the families of generators with
LARGE images or more, each against all real images. Each logit of the cascade must be that of the part that gave it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.harness import command
from benchmarks.harness.rows import OURS, unjudged
from npr_kernels.trunk import cpu_bottleneck
from npr_model import checkpoints
from npr_model.checkpoints import LoadedCheckpoint
from npr_model.datasets.folders import Sample, find_samples
from npr_model.detectors.cascade import Cascade
from npr_model.errors import InputError
from npr_model.evaluation.metrics import mean_auc
from npr_model.scoring.items import in_memory
from npr_model.scoring.rows import Row
from npr_model.scoring.scorer import Scorer

LARGE = 10  # images of a family that counts
ROUNDS = 3


def parts(joined: LoadedCheckpoint) -> Iterator[LoadedCheckpoint]:
    """Yield the checkpoints that a checkpoint joins and that score images alone; then those that they join.

    Raises CheckpointError.
    """
    for argument in type(joined.model).joins:
        loaded = checkpoints.part(joined.path, getattr(joined.model, argument))
        if loaded.model.detector in ("npr", "pair"):
            yield loaded
            yield from parts(loaded)


def parity(rows: Mapping[str, Sequence[Row]], cascade: str) -> dict[str, Any]:
    """Return whether each row of the cascade has the logit of the part that it names, as keys of a row."""
    by_part = {found[0].model: [row.logit for row in found] for name, found in rows.items() if name != cascade}
    wrong = sum(row.logit != by_part[str(row.scored_by)][number] for number, row in enumerate(rows[cascade]))
    note = f"{wrong} of {len(rows[cascade])} logits are not those of the part that is named"
    return {"parity": "red", "note": note} if wrong else {"parity": "green", "error": 0.0, "allowed_error": 0.0}


def measure(cascade: LoadedCheckpoint, samples: Sequence[Sample], dtype: torch.dtype) -> list[dict]:
    """Return a row for the cascade and for each of its parts. Raises InputError if an image cannot be scored."""
    assert isinstance(cascade.model, Cascade)
    everyone = {loaded.metadata.name: loaded for loaded in (*parts(cascade), cascade)}
    scorers = {name: Scorer(one, view=cascade.metadata.view, dtype=dtype) for name, one in everyone.items()}
    items = [in_memory(str(number), sample.path.read_bytes()) for number, sample in enumerate(samples)]
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    networks: dict[str, list[float]] = {name: [] for name in scorers}
    rows: dict[str, list[Row]] = {}
    for _ in range(ROUNDS):
        for name, scorer in scorers.items():
            began = time.perf_counter()
            rows[name] = list(scorer.score_in_order(items))
            seconds[name].append(time.perf_counter() - began)
            networks[name].append(scorer.rates.scoring_seconds)
            for row, sample in zip(rows[name], samples, strict=True):
                if row.error is not None:
                    raise InputError(f"{sample.path}: {row.error}; leave it out")
    precision, count = str(dtype).removeprefix("torch."), len(samples)
    case = f"{cascade.model_id} in {precision}, view {cascade.metadata.view}, {count} images"
    families, labels = [sample.group for sample in samples], [sample.label for sample in samples]
    found = []
    for name, of in rows.items():
        values: dict[str, Any] = {"roc_auc": mean_auc(families, labels, [row.logit for row in of], LARGE)}
        if everyone[name].model.detector != "pair":  # whose encoder runs while other images are decoded
            values["network_images_per_second"] = count / statistics.median(networks[name])
        if name == cascade.metadata.name:
            sent_on = sum(row.scored_by == cascade.model.second_checkpoint for row in of)
            values |= {"share_sent_on": sent_on / count} | parity(rows, name)
        found.append(unjudged(case, f"{OURS} {name}", statistics.median(seconds[name]), count, **values))
    return found


def main(
    root: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder with 0_real and 1_fake at any depth.")],
    json_file: command.JsonFile = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME_OR_FILE", help="A cascade (default: cascade). Repeatable.", show_default=False),
    ] = None,
) -> None:
    """Compare cascades with their parts."""
    try:
        names = checkpoint or ["cascade"]
        cascades, samples = [checkpoints.load(name) for name in names], find_samples(root)
    except InputError as failure:
        command.refuse(str(failure))
    for name, loaded in zip(names, cascades, strict=True):
        if not isinstance(loaded.model, Cascade):
            command.refuse(f"--checkpoint {name}: it is a {loaded.model.detector}, not a cascade")
    results = command.start(torch.device("cpu"), json_file)
    int8 = cpu_bottleneck.unsupported_reason(torch.int8, 64) is None
    try:
        for loaded in cascades:
            results.add(measure(loaded, samples, torch.int8 if int8 else torch.float32))
    except InputError as failure:
        command.refuse(str(failure))
    raise typer.Exit(results.exit_code())


if __name__ == "__main__":
    typer.run(main)

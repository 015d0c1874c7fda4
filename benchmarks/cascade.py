"""``python -m benchmarks.cascade DATASET``: rate and accuracy of a cascade beside those of its two networks.

The images are decoded beforehand; the rate is that of the networks alone. Rounds of the contenders take turns. The mean
AUC is over the families of generators with LARGE images or more, each against all real images.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.harness import command
from benchmarks.harness.rows import OURS, unjudged
from npr_kernels.trunk import cpu_bottleneck
from npr_model import checkpoints
from npr_model.checkpoints import LoadedCheckpoint
from npr_model.datasets.folders import Sample, find_samples, read
from npr_model.detectors.cascade import Cascade
from npr_model.errors import InputError
from npr_model.evaluation.metrics import mean_auc
from npr_model.scoring.items import Item
from npr_model.scoring.scorer import Scorer

LARGE = 10  # images of a family that counts
ROUNDS = 3


def measure(cascade: LoadedCheckpoint, samples: Sequence[Sample], dtype: torch.dtype) -> list[dict]:
    """Return a row for the cascade and for each of its parts."""
    assert isinstance(cascade.model, Cascade)
    names = (cascade.model.first_checkpoint, cascade.model.second_checkpoint)
    parts = [checkpoints.load(name.partition("@")[0]) for name in names]
    scorers = {
        loaded.metadata.name: Scorer(loaded, view=cascade.metadata.view, dtype=dtype) for loaded in (*parts, cascade)
    }
    items = [Item(str(number), lambda image=read(sample.path): image) for number, sample in enumerate(samples)]
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    rows = {}
    for _ in range(ROUNDS):
        for name, scorer in scorers.items():
            rows[name] = list(scorer.score_in_order(items))
            seconds[name].append(scorer.rates.scoring_seconds)
    precision, count = str(dtype).removeprefix("torch."), len(samples)
    case = f"{cascade.model_id} in {precision}, view {cascade.metadata.view}, {count} images"
    families, labels = [sample.group for sample in samples], [sample.label for sample in samples]
    found = []
    for name, of in rows.items():
        sent_on = sum(row.scored_by == names[1] for row in of) / count if name == cascade.metadata.name else None
        auc = mean_auc(families, labels, [row.logit for row in of], LARGE)
        median = statistics.median(seconds[name])
        found.append(unjudged(case, f"{OURS} {name}", median, count, roc_auc=auc, share_sent_on=sent_on))
    return found


def main(
    root: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder with 0_real and 1_fake at any depth.")],
    json_file: command.JsonFile = None,
    checkpoint: Annotated[str, typer.Option(metavar="NAME_OR_FILE", help="A cascade.")] = "cascade",
) -> None:
    """Compare a cascade with its parts."""
    try:
        loaded, samples = checkpoints.load(checkpoint), find_samples(root)
    except InputError as failure:
        command.refuse(str(failure))
    if not isinstance(loaded.model, Cascade):
        command.refuse(f"--checkpoint {checkpoint}: it is a {loaded.model.detector}, not a cascade")
    results = command.start(torch.device("cpu"), json_file)
    int8 = cpu_bottleneck.unsupported_reason(torch.int8, 64) is None
    results.add(measure(loaded, samples, torch.int8 if int8 else torch.float32))


if __name__ == "__main__":
    typer.run(main)

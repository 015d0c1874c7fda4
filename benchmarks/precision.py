"""``python -m benchmarks.precision DATASET...``: what the detector loses in bfloat16 and int8, one table per dataset.

Every image is scored in each dtype by the checkpoint's own view. Compared with float32 are the rank correlation
(Spearman) of the logits and their differences. ROC AUC and average precision are means over the generators.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from scipy.stats import spearmanr

from benchmarks.harness import command
from benchmarks.harness.rows import OURS, unjudged
from npr_model import checkpoints, weights
from npr_model.checkpoints import LoadedCheckpoint
from npr_model.datasets.folders import Sample
from npr_model.errors import InputError
from npr_model.evaluation.evaluate import collect, evaluate
from npr_model.inference.fused import block_shapes, trunk_engine
from npr_model.scoring.rows import Row
from npr_model.scoring.scorer import Scorer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


def measure(loaded: LoadedCheckpoint, samples: Sequence[Sample], dtypes: Collection[str]) -> list[dict]:
    """Return a row for float32 and for each of ``dtypes`` that this processor has kernels for."""
    rows: list[dict] = []
    reference: dict[str, float] = {}
    for name, dtype in DTYPES.items():
        if name not in {"float32", *dtypes}:
            continue
        if trunk_engine(torch.device("cpu"), dtype, False, block_shapes(loaded.model)) == "torch":
            print(f"{name} is left out: this processor has no kernels for it, and without them it takes hours")
            continue
        logits: dict[str, float] = {}

        def note(row: Row, logits: dict[str, float] = logits) -> None:
            if row.error is None:
                logits[row.source] = row.logit

        result = evaluate(Scorer(loaded, dtype=dtype), samples, on_row=note)
        reference = reference or logits
        ours, exact = (np.array([scores[source] for source in sorted(reference)]) for scores in (logits, reference))
        row = unjudged(
            f"precision of {loaded.model_id} on {len(exact)} images",
            f"{OURS} {name}",
            rank_correlation=float(spearmanr(ours, exact).statistic),
            rms_difference=float(np.sqrt(np.mean((ours - exact) ** 2))),
            largest_difference=float(np.abs(ours - exact).max()),
        )
        if result.mean is not None:
            row |= {"roc_auc": result.mean.roc_auc, "average_precision": result.mean.average_precision}
        rows.append(row)
    return rows


def main(
    roots: Annotated[list[Path], typer.Argument(metavar="DATASET...", help="Folders as `npr evaluate` takes them.")],
    json_file: command.JsonFile = None,
    checkpoint: Annotated[
        str, typer.Option(metavar="NAME_OR_FILE", help="Name of a bundled checkpoint, or a file.")
    ] = weights.DEFAULT,
    only: Annotated[
        str, typer.Option(metavar="REGEX", show_default=False, help="Run only float32 and the dtypes that match.")
    ] = "",
) -> None:
    """Compare the logits in bfloat16 and int8 with those in float32."""
    dtypes = command.matching(only, list(DTYPES), "dtypes")
    try:
        loaded = checkpoints.load(checkpoint)
        datasets = [collect([root]) for root in roots]
    except InputError as failure:
        command.refuse(str(failure))
    results = command.start(torch.device("cpu"), json_file)
    for samples in datasets:
        results.add(measure(loaded, samples, dtypes))


if __name__ == "__main__":
    typer.run(main)

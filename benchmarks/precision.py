"""``python -m benchmarks.precision DATASET...``: what the detector loses in bfloat16 and int8, a table a dataset.

Every image is scored in float32 and in each of the others by the checkpoint's own view: rank correlation (Spearman) of
the logits, how far they lie apart, and ROC AUC and average precision, means over the generators.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from benchmarks import command, machine
from benchmarks.harness import OURS
from npr_model import checkpoints
from npr_model.errors import InputError
from npr_model.evaluation.evaluate import collect, evaluate
from npr_model.inference.fused import trunk_engine
from npr_model.screening.rows import Row
from npr_model.screening.runner import Scorer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
COLUMNS = {
    "rank correlation": ("rank_correlation", "{:.5f}"),
    "RMS difference": ("rms_difference", "{:.4f}"),
    "largest": ("largest_difference", "{:.3f}"),
    "AUC": ("roc_auc", "{:.4f}"),
    "average precision": ("average_precision", "{:.4f}"),
}


def measure(checkpoint: str, root: Path, dtypes: Collection[str]) -> list[dict]:
    """A row for float32 and each of ``dtypes`` that this processor has kernels for. Raises InputError."""
    loaded, samples, rows = checkpoints.load(checkpoint), collect([root]), []
    reference: dict[str, float] = {}
    for name, dtype in DTYPES.items():
        if name not in {"float32", *dtypes}:
            continue
        if trunk_engine(torch.device("cpu"), dtype, compile=False) == "torch":
            print(f"{name} is left out: this processor has no kernels for it, and without it takes hours")
            continue
        logits: dict[str, float] = {}

        def note(row: Row, logits: dict[str, float] = logits) -> None:
            if row.error is None:
                logits[row.source] = row.logit

        result = evaluate(Scorer(loaded, dtype=dtype), samples, on_row=note)
        reference = reference or logits
        ours, exact = (np.array([found[source] for source in sorted(reference)]) for found in (logits, reference))
        row = {
            "case": f"precision of {loaded.model_id} on {len(exact)} images",
            "contender": f"{OURS} {name}",
            "median_ms": None,
            "rank_correlation": float(spearmanr(ours, exact).statistic),
            "rms_difference": float(np.sqrt(np.mean((ours - exact) ** 2))),
            "largest_difference": float(np.abs(ours - exact).max()),
        }
        if result.mean is not None:
            row |= {"roc_auc": result.mean.roc_auc, "average_precision": result.mean.average_precision}
        rows.append(row)
    return rows


def main(
    roots: Annotated[list[Path], typer.Argument(metavar="DATASET...", help="Folders as `npr evaluate` takes them.")],
    json_file: command.JsonFile = None,
    checkpoint: Annotated[str, typer.Option(metavar="FILE", help="A bundled name or a file.")] = "preview",
    only: Annotated[str, typer.Option(metavar="REGEX", help="Run only the dtypes that match, and float32.")] = "",
) -> None:
    """Compare the logits in bfloat16 and int8 with those in float32."""
    command.checked_json(json_file)
    try:
        tables = [measure(checkpoint, root, command.chosen(only, list(DTYPES), "dtypes")) for root in roots]
    except InputError as failure:
        command.refuse(str(failure))
    for rows in tables:
        table = Table(title=rows[0]["case"], title_justify="left")
        for title in ("contender", *COLUMNS):
            table.add_column(title, no_wrap=True)
        for row in rows:
            table.add_row(
                row["contender"], *(form.format(row[key]) if key in row else "" for key, form in COLUMNS.values())
            )
        Console(width=120).print(table)
    if json_file:
        content = {"machine": machine.describe(torch.device("cpu")), "rows": [row for rows in tables for row in rows]}
        json_file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)

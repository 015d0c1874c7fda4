"""``npr compare``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from npr_model.commands.options import (
    EVALUATION,
    Equalise,
    Folders,
    Perturb,
    Real,
    folder_option,
    parsed_changes,
    scoring_options,
)
from npr_model.commands.samples import labelled_samples
from npr_model.commands.terminal import EXIT_FAILED_INPUTS, print_errors, print_paths, print_table, progress_bar
from npr_model.errors import InputError
from npr_model.scoring.options import ScoringOptions


@scoring_options(*EVALUATION)
def compare(
    folders: Folders,
    checkpoint: Annotated[
        list[str],
        typer.Option("--checkpoint", "-c", help="Trained network of any detector, as for npr screen. Repeatable."),
    ],
    output: Annotated[Path, folder_option("Write comparison.md and comparison.json to this folder.")],
    real: Real = None,
    equalise: Equalise = None,
    perturb: Perturb = None,
    *,
    options: ScoringOptions,
) -> None:
    """Measure several checkpoints on the same labelled folders, in one table.

    Each checkpoint uses its own view unless --view is given. For the accuracy, images with a probability above 0.5
    count as generated. The output files are written again after every checkpoint.
    """
    changes = parsed_changes(equalise, perturb)

    from npr_model import checkpoints
    from npr_model.evaluation.evaluate import evaluate
    from npr_model.files import make_folder
    from npr_model.studies import comparison

    kinds = [checkpoints.load(name).model.paper_name for name in checkpoint]  # all, before the slow part
    samples = labelled_samples(folders, real)
    make_folder(output)
    entries = []
    with progress_bar("scoring", total=len(samples) * len(checkpoint)) as advance:
        for name, kind in zip(checkpoint, kinds, strict=True):
            scorer = replace(options, checkpoint=name).scorer()
            evaluation = evaluate(scorer, samples, threshold=0.0, on_row=lambda row: advance(1), **changes)
            if evaluation.mean is None:
                raise InputError("no generator has both real and generated images: give real ones with --real")
            entries.append(comparison.Entry(kind, evaluation))
            written = comparison.write(entries, output)
    print_table(comparison.table(entries))
    errors = {source: error for entry in entries for source, error in entry.evaluation.errors.items()}
    print_errors(errors)
    print_paths(*written)
    if errors:
        raise typer.Exit(EXIT_FAILED_INPUTS)

"""``npr compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npr_model.commands.evaluate import (
    Equalise,
    Folders,
    Perturb,
    Real,
    parsed_changes,
    print_errors,
    print_table,
)
from npr_model.commands.terminal import (
    EXIT_FAILED_INPUTS,
    Backend,
    BatchSize,
    Device,
    DtypeOption,
    ViewOption,
    Workers,
    make_scorer,
    out,
    printable,
    progress_bar,
)


def compare(
    folders: Folders,
    checkpoint: Annotated[
        list[str],
        typer.Option("-c", "--checkpoint", help="A name or file as for npr evaluate, of any detector; once for each."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the table and all numbers.")],
    real: Real = None,
    equalise: Equalise = None,
    perturb: Perturb = None,
    view: ViewOption = None,
    batch_size: BatchSize = 16,
    workers: Workers = 0,
    backend: Backend = None,
    dtype: DtypeOption = None,
    device: Device = "auto",
) -> None:
    """Several checkpoints on the same files: NPR, or the other detectors of the paper that npr train trains.

    What is measured is written after every checkpoint. Every one sees the pixels of its own view, unless --view says
    otherwise; accuracies are at a probability of 0.5.
    Exit code 0: all images were scored; 1: some could not be, they are listed; 2: wrong usage.
    """
    changes = parsed_changes(equalise, perturb)

    from npr_model import checkpoints
    from npr_model.errors import InputError
    from npr_model.evaluation.evaluate import collect, evaluate
    from npr_model.files import atomic_write
    from npr_model.studies import comparison

    kinds = [checkpoints.load(name).model.paper_name for name in checkpoint]  # all, before the slow part
    samples = collect(folders, real or [])
    try:
        output.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"output {output} is a file: give a folder") from None
    written = {output / "comparison.md": comparison.markdown, output / "comparison.json": comparison.as_json}
    entries = []
    with progress_bar("scoring", total=len(samples) * len(checkpoint)) as advance:
        for name, kind in zip(checkpoint, kinds, strict=True):
            scorer = make_scorer(name, view, batch_size, workers, backend, dtype, device)
            found = evaluate(scorer, samples, threshold=0.0, on_row=lambda row: advance(1), **changes)
            if found.mean is None:
                raise InputError("no generator has both real and generated images: give the real ones with --real")
            entries.append(comparison.Entry(kind, found))
            for path, text in written.items():
                with atomic_write(path) as temporary:
                    temporary.write_text(text(entries), encoding="utf-8")
    print_table(comparison.table(entries))
    errors = print_errors(entry.evaluation for entry in entries)
    for path in written:
        out.print(printable(str(path)), soft_wrap=True)
    if errors:
        raise typer.Exit(EXIT_FAILED_INPUTS)

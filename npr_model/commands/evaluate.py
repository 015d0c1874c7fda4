"""``npr evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from npr_model.commands.terminal import (
    EXIT_FAILED_INPUTS,
    Backend,
    BatchSize,
    Checkpoint,
    Device,
    DtypeOption,
    ViewOption,
    Workers,
    make_scorer,
    out,
    printable,
    progress_bar,
)

if TYPE_CHECKING:
    from npr_model.evaluate import Evaluation
    from npr_model.metrics import Metrics


def evaluate(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Folders with 0_real and 1_fake, at any depth.")
    ],
    real: Annotated[
        list[Path] | None,
        typer.Option(help="Real images for generators without any of their own; may be given more than once."),
    ] = None,
    equalise: Annotated[
        str | None,
        typer.Option(help="Re-encode both classes in memory: png, or jpeg:Q as in jpeg:90.", show_default=False),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result to this file, too.", show_default=False)
    ] = None,
    checkpoint: Checkpoint = "preview",
    view: ViewOption = None,
    batch_size: BatchSize = 16,
    workers: Workers = 0,
    backend: Backend = None,
    dtype: DtypeOption = None,
    device: Device = "auto",
) -> None:
    """Accuracy, average precision and ROC AUC for every generator: the first folder below FOLDER names it.

    A generator without real images is measured against those of all folders that have only real ones.
    Exit code 0: all images were scored; 1: some could not be, they are listed; 2: wrong usage.
    """
    from npr_model.evaluate import Codec, collect

    codec = Codec.parse(equalise) if equalise else None
    samples = collect(folders, real or [])
    scorer = make_scorer(checkpoint, view, batch_size, workers, backend, dtype, device)

    from npr_model.evaluate import evaluate as run
    from npr_model.files import replacing

    with progress_bar("scoring", total=len(samples)) as advance:
        result = run(scorer, samples, equalise=codec, on_row=lambda row: advance(1))
    _print_evaluation(result)
    if json_file is not None:
        with replacing(json_file) as temporary:
            temporary.write_text(json.dumps(result.as_dict(), indent=2) + "\n", encoding="utf-8")
    if result.errors:
        raise typer.Exit(EXIT_FAILED_INPUTS)


def _print_evaluation(result: Evaluation) -> None:
    table = Table(title=f"{escape(result.model)}, view {result.view}, logit threshold {result.threshold:g}")
    table.add_column("generator", overflow="fold")
    for column in ("real", "gen.", "accuracy", "acc. real", "acc. gen.", "AP", "ROC AUC"):
        table.add_column(column, justify="right")
    for group, row in result.generators.items():
        table.add_row(printable(group), *_cells(row))
    if result.mean and len(result.generators) > 1:
        table.add_section()
        table.add_row("mean", "", "", *_cells(result.mean)[2:])
    if result.reals:
        table.add_section()
        for group, row in result.reals.items():
            table.add_row(printable(group), *_cells(row))
    out.print(table)
    for group, row in result.generators.items():
        if row.reason:
            out.print(f"{printable(group)}: {row.reason}, so no average precision and no ROC AUC")
    out.print(result.comparison, soft_wrap=True, highlight=False)
    if result.warning:
        out.print(f"[yellow]warning: {result.warning}[/]", soft_wrap=True)
    if result.errors:
        out.print(f"{len(result.errors)} images could not be scored and are in no number above:")
        for source, error in result.errors.items():
            out.print(f"  {printable(source)}: {printable(error)}", soft_wrap=True)


def _cells(row: Metrics) -> list[str]:
    values = (row.accuracy, row.accuracy_real, row.accuracy_fake, row.average_precision, row.roc_auc)
    return [str(row.real), str(row.fake), *("-" if value is None else f"{100 * value:.1f}" for value in values)]

"""``npr screen``."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from npr_model.commands.options import scoring_options
from npr_model.commands.terminal import (
    EXIT_FAILED_INPUTS,
    EXIT_INTERRUPTED,
    err,
    out,
    printable,
    progress_bar,
    termination_interrupts,
)
from npr_model.errors import InputError
from npr_model.screening.options import ScoringOptions

if TYPE_CHECKING:
    from npr_model.screening.rows import Row
    from npr_model.screening.run import Screening

TABLE_ROWS = 50  # runs of up to this many images are shown image by image


@scoring_options(
    "checkpoint",
    "false_positive_rate",
    "view",
    "device",
    "dtype",
    "backend",
    "batch_size",
    "workers",
    "max_pixels",
    "cache",
)
def screen(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH...",
            help="Image files, folders, tar, zip and Parquet files, patterns such as 'shards/*.tar', and URLs of these "
            "(s3://, gs://, https://).",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE|FOLDER/",
            help="Write the rows to a .parquet, .csv or .jsonl file, or to a folder of Parquet parts (end it in /). "
            "Run the same command again to continue an interrupted run into a folder.",
            show_default=False,
        ),
    ] = None,
    files_from: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Read more paths from a file, one per line; - is standard input.", show_default=False
        ),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            help="Parquet column that holds the encoded images (default: the only binary column).", show_default=False
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            help="local: run on this machine. ray: run on the Ray cluster in RAY_ADDRESS, or on the one that this "
            "machine belongs to, or start one on this machine."
        ),
    ] = "local",
    actors: Annotated[
        int,
        typer.Option(
            min=0,
            help="Ray workers that run the network (0: one per GPU, or one per node without GPUs). Needs --engine ray.",
        ),
    ] = 0,
    *,
    options: ScoringOptions,
) -> None:
    """Score images and write a row for each: logit, probability and verdict, or an error.

    Folders are searched at all depths for files with image suffixes. Archives inside folders are not read; name them on
    the command line. Identical files are scored once. Bad input never aborts a run: it becomes a row with an error.
    """
    from npr_model.screening.sources import Sources

    if not paths and files_from is None:
        raise InputError("Missing argument 'PATH...', or --files-from")
    sources = Sources(paths or [], files_from=files_from, column=column)
    from npr_model.screening.run import Screening

    run = Screening(
        sources,
        output,
        options,
        engine=engine,
        actors=actors,
        announce=lambda line: err.print(line, highlight=False),
    )
    shown: list[Row] = []
    interrupted, began = False, time.perf_counter()
    try:
        with (
            termination_interrupts(),
            progress_bar("screening", total=None) as advance,
            contextlib.closing(iter(run)) as rows,
        ):
            for row in rows:
                if len(shown) <= TABLE_ROWS:
                    shown.append(row)
                advance(1, run.scorer.rates.text)
    except KeyboardInterrupt:
        interrupted = True
    if run.scorer is None:
        err.print("npr: interrupted")
        raise typer.Exit(EXIT_INTERRUPTED)
    if len(shown) <= TABLE_ROWS:
        out.print(_row_table(shown))
    _print_totals(run, time.perf_counter() - began)
    if interrupted:
        err.print("npr: interrupted; the rows so far are kept" if run.totals.count else "npr: interrupted")
        raise typer.Exit(EXIT_INTERRUPTED)
    if run.totals.failed or run.failed_before:
        raise typer.Exit(EXIT_FAILED_INPUTS)


def _row_table(rows: list[Row]) -> Table:
    from npr_model.files import natural_key

    styles = {"generated": "red", "real": "green", "uncertain": "yellow"}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))  # narrow, so that names fit on 80 columns
    table.add_column("file", overflow="fold")
    for column in ("verdict", "probability", "size", "format"):
        table.add_column(column, justify="right" if column == "probability" else "left", no_wrap=column != "verdict")
    for row in sorted(rows, key=lambda row: natural_key(row.source)):
        size = f"{row.width}x{row.height}" if row.width else ""
        if row.error is None:
            verdict, probability = f"[{styles[row.verdict]}]{row.verdict}[/]", f"{row.probability:.3f}"
        else:
            verdict, probability = f"[magenta]error: {printable(row.error)}[/]", ""
        table.add_row(printable(row.source), verdict, probability, size, row.format or "")
    return table


def _print_totals(run: Screening, seconds: float) -> None:
    totals, scorer = run.totals, run.scorer
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in totals.verdicts.items())
    out.print(
        f"{totals.count} images: {verdicts}, {totals.failed} failed; {totals.count / seconds:.1f} images/s",
        soft_wrap=True,
    )
    if scorer.rates.text:
        out.print(f"throughput: {scorer.rates.text}; the lower one limits the run", highlight=False)
    if run.sources.skipped:
        out.print(f"{run.sources.skipped} other files in the folders were skipped: they have no image suffix")
    note = scorer.verdict_caveat or (f"verdicts: {scorer.calibration.note}" if scorer.calibration.note else "")
    out.print(f"model {escape(scorer.model_id)}, view {scorer.view}{escape(note and f'; {note}')}", soft_wrap=True)
    if run.output is not None and totals.count:
        out.print(f"rows written to {escape(run.output)}", soft_wrap=True)
    if run.kept:
        out.print(f"{run.kept} rows were already there from earlier runs, {run.failed_before} of them failed")

"""``npr screen``."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from npr_model.commands.shared.options import scoring_options
from npr_model.commands.shared.terminal import (
    EXIT_FAILED_INPUTS,
    EXIT_INTERRUPTED,
    err,
    out,
    printable,
    progress_bar,
    termination_interrupts,
)
from npr_model.errors import InputError
from npr_model.scoring.options import ScoringOptions

if TYPE_CHECKING:
    from npr_model.scoring.rows import Row
    from npr_model.scoring.scorer import Scorer
    from npr_model.screening.run import Screening

TABLE_ROWS = 50  # runs of up to this many images are shown image by image
NARROW = 60  # columns of a terminal; below, only names, verdicts and probabilities are shown

Paths = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PATH",
        help="Image file, folder, archive (tar, zip, Parquet), pattern such as 'shards/*.tar' or '{a,b}.tar', or URL "
        "of one of these (s3://, gs://, https://).",
        show_default=False,
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE|FOLDER/",
        help="Write the rows to a .parquet, .csv or .jsonl file, or to Parquet files in a folder (its name ends in /). "
        "With a folder, the same command continues an interrupted run. Without this option, no file is written.",
        show_default=False,
    ),
]
FilesFrom = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Read more paths from a file, one per line (-: standard input).", show_default=False
    ),
]
Null = Annotated[
    bool,
    typer.Option("--null", "-0", help="Names in the --files-from list end in NUL bytes, as find -print0 writes them."),
]
Column = Annotated[
    str | None,
    typer.Option(
        help="Parquet column that holds the encoded images. Needed if several columns could hold them.",
        show_default=False,
    ),
]
RetryFailed = Annotated[
    bool,
    typer.Option("--retry-failed", help="Score again the inputs whose rows in the output folder have an error."),
]
Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(
        help="local: score on this machine. ray: score on a cluster with Ray (extra: ray). Ray joins the cluster at "
        "RAY_ADDRESS, or else the cluster that this machine belongs to; if there is none, it starts one here."
    ),
]
Actors = Annotated[
    int,
    typer.Option(
        min=0,
        help="Number of actors: Ray processes that run the network (0: one per GPU, or without GPUs one per machine). "
        "Needs --engine ray.",
    ),
]


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
    "raw_previews",
    "cache",
)
def screen(
    paths: Paths = None,
    output: Output = None,
    files_from: FilesFrom = None,
    null: Null = False,
    column: Column = None,
    retry_failed: RetryFailed = False,
    engine: Engine = "local",
    actors: Actors = 0,
    *,
    options: ScoringOptions,
) -> None:
    """Score images and write a row for each: logit, probability and verdict, or an error.

    Folders are searched with all their subfolders. Hidden files and archives in folders are skipped; to read an
    archive, name it. Files with identical content are scored once. An input that cannot be read or scored gets a row
    with an error and does not stop the run.
    """
    from npr_model.screening.inputs.sources import Sources

    if not paths and files_from is None:
        raise InputError("Missing argument 'PATH' or option '--files-from'")
    if null and files_from is None:
        raise InputError("--null needs --files-from")
    sources = Sources(paths or [], files_from=files_from, null_separated=null, column=column)
    from npr_model.screening.run import Screening

    run = Screening(
        sources,
        output,
        options,
        retry_failed=retry_failed,
        engine=engine,
        actors=actors,
        announce=lambda line: err.print(line, highlight=False),
    )
    if _run(run):
        err.print("npr: interrupted; the rows so far are kept" if run.totals.count else "npr: interrupted")
        raise typer.Exit(EXIT_INTERRUPTED)
    if run.totals.failed or run.totals.kept_failed:
        raise typer.Exit(EXIT_FAILED_INPUTS)


def _run(run: Screening) -> bool:
    """Run a screening and print its result. Returns whether it was interrupted."""
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
                advance(1, run.scorer.rates.text if run.scorer else "")
    except KeyboardInterrupt:
        interrupted = True
    if run.scorer is not None:
        if 0 < len(shown) <= TABLE_ROWS:
            out.print(_row_table(shown, out.width))
        _print_totals(run, run.scorer, time.perf_counter() - began)
    return interrupted


def _row_table(rows: list[Row], width: int) -> Table:
    from npr_model.files import natural_key
    from npr_model.verdicts import DECLARED

    styles: dict[str | None, str] = {"generated": "red", DECLARED: "red", "real": "green", "uncertain": "yellow"}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))  # narrow, so that names fit on 80 columns
    is_narrow = width < NARROW
    others = len("  generated  probability")
    table.add_column("file", overflow="fold", max_width=max(4, width - others) if is_narrow else None)
    table.add_column("verdict", min_width=len("generated"), max_width=len("generated") if is_narrow else None)
    table.add_column("probability", justify="right", no_wrap=True)
    for column in () if is_narrow else ("size", "format"):
        table.add_column(column, no_wrap=True)
    for row in sorted(rows, key=lambda row: natural_key(row.source)):
        size = f"{row.width}x{row.height}" if row.width else ""
        if row.error is None:
            verdict, probability = f"[{styles[row.verdict]}]{row.verdict}[/]", f"{row.probability:.3f}"
        else:
            verdict, probability = f"[magenta]error: {printable(row.error)}[/]", ""
        cells = (printable(row.source), verdict, probability, size, row.format or "")
        table.add_row(*cells[: len(table.columns)])
    return table


def _print_totals(run: Screening, scorer: Scorer, seconds: float) -> None:
    from npr_model.screening.inputs.skipped import describe_skipped
    from npr_model.verdicts import DECLARED

    totals = run.totals
    shown = {verdict: count for verdict, count in totals.verdicts.items() if count or verdict != DECLARED}
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in shown.items())
    out.print(
        f"{totals.count} images: {verdicts}, {totals.failed} failed; {totals.count / seconds:.1f} images/s",
        soft_wrap=True,
    )
    if scorer.rates.text:
        out.print(f"each part alone: {scorer.rates.text}; the slower part limits the run", highlight=False)
    if totals.scored_by:
        shares = (f"{100 * n / totals.scored:.1f} % ({n}) by {part}" for part, n in sorted(totals.scored_by.items()))
        out.print(f"scored {', '.join(shares)}", highlight=False, soft_wrap=True)
    if totals.skipped:
        out.print(f"skipped: {describe_skipped(totals.skipped)}", soft_wrap=True)
    if totals.kept:
        out.print(
            f"{totals.kept} of the inputs already had rows from earlier runs, {totals.kept_failed} of them failed",
            soft_wrap=True,
        )
    if totals.kept_failed:
        out.print("--retry-failed tries the failed ones again")
    note = scorer.verdict_caveat or (f"verdicts: {scorer.calibration.note}" if scorer.calibration.note else "")
    out.print(f"model {escape(scorer.model_id)}, view {scorer.view}{escape(note and f'; {note}')}", soft_wrap=True)
    if run.output is not None and totals.count:
        out.print(f"rows written to {escape(run.output)}", soft_wrap=True)

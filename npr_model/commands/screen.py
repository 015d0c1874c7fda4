"""``npr screen``."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from npr_model.commands.terminal import (
    EXIT_FAILED_INPUTS,
    EXIT_INTERRUPTED,
    Backend,
    BatchSize,
    Checkpoint,
    Device,
    DtypeOption,
    ViewOption,
    Workers,
    chosen_device,
    err,
    out,
    printable,
    progress_bar,
    scorer_maker,
    termination_interrupts,
)
from npr_model.errors import InputError

if TYPE_CHECKING:
    from npr_model.screening.parts import Finished
    from npr_model.screening.rows import Row, Totals
    from npr_model.screening.runner import Scorer
    from npr_model.screening.sources import Sources


ENGINES = ("local", "ray")
TABLE_ROWS = 50  # runs of up to so many images are shown image by image


def screen(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH...",
            help="Image files, folders of them, tar, zip and Parquet files, patterns such as 'shards/*.tar', and URLs "
            "of all of these (s3://, gs://, https://).",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="scores.parquet, .csv or .jsonl, or scores/ for a folder of Parquet parts: the same command goes on "
            "with a run that was killed.",
            show_default=False,
        ),
    ] = None,
    files_from: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="More of them, one a line; - is standard input.", show_default=False),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(help="Of Parquet files the column with the images. Default: the only one of bytes."),
    ] = None,
    checkpoint: Checkpoint = "preview",
    view: ViewOption = None,
    batch_size: BatchSize = 16,
    workers: Workers = 0,
    backend: Backend = None,
    dtype: DtypeOption = None,
    device: Device = "auto",
    max_pixels: Annotated[int, typer.Option(min=1, help="Larger images are an error.")] = 178_956_970,
    engine: Annotated[
        str,
        typer.Option(
            help="local, or ray: on the Ray cluster that RAY_ADDRESS names or this machine belongs to, else on one "
            "started for the run, with a process for each GPU."
        ),
    ] = "local",
    actors: Annotated[
        int,
        typer.Option(min=0, help="Of the engine ray, copies of the network; 0 is one a GPU, without GPUs one a node."),
    ] = 0,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="A file, made if there is none, that remembers scores by the bytes of the images: what any run with "
            "it has scored is not scored again.",
            show_default=False,
        ),
    ] = None,
    false_positive_rate: Annotated[
        float | None,
        typer.Option(
            help="The share of photographs that may be called generated: one that the checkpoint was calibrated at, as "
            "in 0.01. Default: the checkpoint's first.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Score images: one row each, with logit, probability and verdict, or with the error of a file that is not scored.

    A folder's images are found by their names at all depths; archives inside it must be named. Identical files are
    scored once.
    Exit code 0: all were scored; 1: some failed (see the error column); 2: wrong usage, nothing was scored;
    130: interrupted, the rows so far are kept.
    """
    from npr_model.screening import sinks
    from npr_model.screening.sources import Sources

    if not paths and files_from is None:
        raise InputError("Missing argument 'PATH...', or --files-from")
    if output is not None:
        sinks.check(output)
    items = Sources(paths or [], files_from=files_from, column=column)
    if engine not in ENGINES:
        raise InputError(f"no engine {engine!r}; there are {' and '.join(ENGINES)}")
    if engine == "ray" and (workers or cache is not None):
        raise InputError(f"{'--workers' if workers else '--cache'} is for the engine local alone")
    if engine == "local" and actors:
        raise InputError("--actors is for the engine ray alone")
    make_scorer = scorer_maker(
        checkpoint, view, batch_size, workers, backend, dtype, max_pixels, false_positive_rate, cache
    )
    from npr_model.screening.rows import Totals
    from npr_model.screening.sinks import Sink

    summary, shown = Totals(), []
    interrupted, kept, failed_before, scorer = False, 0, 0, None
    began = time.perf_counter()
    try:
        with (
            termination_interrupts(),
            _engine(engine, make_scorer, items, device, actors) as (scorer, score),
            sinks.open_sink(output, scorer.identity) if output else contextlib.nullcontext(Sink(_ignore)) as sink,
            progress_bar("screening", total=None) as advance,
        ):
            kept, failed_before = sink.finished.count, sink.finished.failed
            for row in score(sink.finished):
                sink.write(row)
                summary.add(row)
                if len(shown) <= TABLE_ROWS:
                    shown.append(row)
                advance(1, scorer.rates.text)
    except KeyboardInterrupt:
        interrupted = True
    if scorer is None:
        err.print("npr: interrupted")
        raise typer.Exit(EXIT_INTERRUPTED)
    seconds = time.perf_counter() - began
    if len(shown) <= TABLE_ROWS:
        out.print(_row_table(shown))
    _print_summary(summary, items.skipped, seconds, scorer, output)
    if kept:
        out.print(f"{kept} rows of earlier runs were there already, {failed_before} of them failed")
    if interrupted:
        err.print(
            "npr: interrupted; the rows above are kept" if summary.scored + summary.failed else "npr: interrupted"
        )
        raise typer.Exit(EXIT_INTERRUPTED)
    if summary.failed or failed_before:
        raise typer.Exit(EXIT_FAILED_INPUTS)


@contextlib.contextmanager
def _engine(
    name: str, make_scorer: functools.partial[Scorer], items: Sources, device: str, actors: int
) -> Iterator[tuple[Scorer, Callable[[Finished], Iterator[Row]]]]:
    """A scorer to ask for model, view and rates, and what gives the rows that are not there yet."""
    if name == "local":
        scorer = make_scorer(device=chosen_device(device))
        yield scorer, lambda finished: scorer.score(finished.remaining(items))
        return
    from npr_model.screening.ray_engine import RayEngine

    scorer = make_scorer(device="cpu")
    with contextlib.closing(RayEngine(make_scorer, device=device, actors=actors)) as cluster:
        err.print(f"Ray: {len(cluster.nodes)} nodes, {cluster.actors} actors", highlight=False)
        yield scorer, functools.partial(cluster.score, items, scorer.decoder)


def _ignore(row: Row) -> None:
    """Where rows go without an output."""


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


def _print_summary(summary: Totals, skipped: int, seconds: float, scorer: Scorer, output: str | None) -> None:
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in summary.verdicts.items())
    total = summary.scored + summary.failed
    out.print(f"{total} images: {verdicts}, {summary.failed} failed; {total / seconds:.1f} images/s", soft_wrap=True)
    if scorer.rates.text:
        out.print(f"each alone: {scorer.rates.text}", highlight=False)
    if skipped:
        out.print(f"{skipped} other files in the folders were left out: their names are not those of images")
    note = scorer.verdict_caveat or (f"verdicts: {scorer.calibration.note}" if scorer.calibration.note else "")
    out.print(f"model {escape(scorer.model_id)}, view {scorer.view}{escape(note and f'; {note}')}", soft_wrap=True)
    if output is not None and total:
        out.print(f"rows written to {escape(output)}", soft_wrap=True)

"""``npr evaluate``."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
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
    err,
    make_scorer,
    out,
    printable,
    progress_bar,
)
from npr_model.errors import InputError

if TYPE_CHECKING:
    from npr_model.evaluation import report
    from npr_model.evaluation.evaluate import Evaluation
    from npr_model.evaluation.protocols import Found, Protocol
    from npr_model.imaging.perturbations import Perturbation
    from npr_model.screening.runner import Scorer

Folders = Annotated[
    list[Path], typer.Argument(metavar="FOLDER...", help="Folders with 0_real and 1_fake, at any depth.")
]
Real = Annotated[
    list[Path] | None,
    typer.Option(help="Real images for generators without any of their own; may be given more than once."),
]
Equalise = Annotated[
    str | None,
    typer.Option(
        help="Cut both classes to one size and write them with one codec, in memory: png, jpeg:Q or webp:Q.",
        show_default=False,
    ),
]

Perturb = Annotated[
    str | None,
    typer.Option(help="What is done to every image first, as in resize:0.5+jpeg:90.", show_default=False),
]


def evaluate(
    folders: Folders,
    real: Real = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="A benchmark set in FOLDER, with the view and threshold its numbers are published for: forensynths, "
            "gangen-detection, diffusionforensics, universalfakedetect, diffusion1kstep, aigcdetectbenchmark or "
            "genimage; paper is the first five.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(help="A method of the paper's tables to stand beside a preset's numbers. Default: NPR."),
    ] = None,
    equalise: Equalise = None,
    perturb: Perturb = None,
    output: Annotated[
        list[Path] | None,
        typer.Option("-o", "--output", help="A report: .json, .csv, .md or .tex; may be given more than once."),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Folder for ROC and reliability plots, as PNG.", show_default=False)
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
    from npr_model.evaluation import protocols, published
    from npr_model.evaluation.evaluate import collect, evaluate, require_classes
    from npr_model.evaluation.report import SUFFIXES, Report
    from npr_model.figures import require_matplotlib
    from npr_model.imaging.views import View

    changes = parsed_changes(equalise, perturb)
    for path in output or []:
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path} has no suffix of a report; give one of {', '.join(SUFFIXES)}")
    if compare and not preset:
        raise InputError("--compare needs --preset: the paper's numbers are those of its sets")
    if plots:
        require_matplotlib()
    methods = tuple(map(published.find_method, compare or ["NPR"])) if preset else ()
    found = []
    if preset:
        if len(folders) != 1 or real:
            raise InputError("--preset takes one FOLDER and no --real: a set brings its own real images")
        found = _find(protocols.choose(preset), folders[0])
    samples = [require_classes(sets.samples) for sets in found] or [collect(folders, real or [])]
    scorer = make_scorer(checkpoint, view, batch_size, workers, backend, dtype, device)
    for sets in found:
        _warn_of_view(scorer, view, sets.protocol)

    evaluations = []
    with progress_bar("scoring", total=sum(map(len, samples))) as advance:
        run = functools.partial(evaluate, on_row=lambda row: advance(1), **changes)
        if not preset:
            evaluations.append(run(scorer, samples[0]))
        for sets, own in zip(found, samples, strict=False):
            seen = scorer if view else scorer.with_view(View.parse(sets.protocol.view))
            result = run(seen, own, threshold=0.0)  # published accuracies are those at a probability of 0.5
            evaluations.append(replace(result, protocol=sets.protocol.name, missing=sets.missing, unused=sets.unused))
    result = Report(tuple(evaluations), methods)
    for table in result.tables(brief=True):
        print_table(table)
    errors = print_errors(evaluations)
    for path in output or []:
        result.write(path)
    if plots:
        from npr_model.evaluation.plots import plot_evaluation

        for path in plot_evaluation(result, plots):
            out.print(printable(str(path)), soft_wrap=True)
    if errors:
        raise typer.Exit(EXIT_FAILED_INPUTS)


def _find(chosen: list[Protocol], folder: Path) -> list[Found]:
    from npr_model.evaluation import protocols

    if len(chosen) == 1:
        return [protocols.find(chosen[0], folder)]
    found, absent = protocols.find_all(chosen, folder)
    for protocol in absent:
        err.print(
            f"npr: warning: {protocol.title} is not in {printable(str(folder))} and is in no number", soft_wrap=True
        )
    return found


def _warn_of_view(scorer: Scorer, view: str | None, protocol: Protocol) -> None:
    """A protocol's numbers are those of its view, a checkpoint's those of its own."""
    if view and view != protocol.view:
        err.print(
            f"npr: warning: {protocol.title} is published for the view {protocol.view}, measured here is {view}",
            soft_wrap=True,
        )
    elif not view and str(scorer.view) != protocol.view:
        err.print(
            f"npr: warning: {protocol.title} is measured in its view {protocol.view}; the checkpoint was trained for "
            f"{scorer.view} (--view {scorer.view} takes that)",
            soft_wrap=True,
        )


def parsed_changes(equalise: str | None, perturb: str | None) -> dict[str, Perturbation | None]:
    """What --equalise and --perturb ask for, as the arguments of :func:`npr_model.evaluation.evaluate.evaluate`."""
    from npr_model.imaging import perturbations

    return {
        "equalise": perturbations.codec(equalise) if equalise else None,
        "perturbation": perturbations.Perturbation.parse(perturb) if perturb else None,
    }


def print_errors(evaluations: Iterable[Evaluation]) -> dict[str, str]:
    """The images that were not scored, each with the reason; they are returned."""
    errors = {source: error for evaluation in evaluations for source, error in evaluation.errors.items()}
    for source, error in errors.items():
        out.print(f"  {printable(source)}: {printable(error)}", soft_wrap=True)
    return errors


def print_table(table: report.Table) -> None:
    """With its notes below."""
    shown = Table(title=printable(table.title), title_justify="left")
    for number, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if number else "left", overflow="fold")
    for number, row in enumerate(table.rows):
        if number in table.emphasised:
            shown.add_section()
        shown.add_row(*map(printable, row), end_section=number in table.emphasised)
    out.print(shown)
    for note in table.notes:
        style = "yellow" if note.startswith("Warning") else ""
        out.print(printable(note), soft_wrap=True, highlight=False, style=style)

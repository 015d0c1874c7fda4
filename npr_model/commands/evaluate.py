"""``npr evaluate``."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from npr_model.commands.options import (
    EVALUATION,
    Benchmark,
    Equalise,
    Folders,
    Perturb,
    Real,
    scoring_options,
)
from npr_model.commands.terminal import (
    EXIT_FAILED_INPUTS,
    err,
    print_errors,
    print_paths,
    print_table,
    printable,
    progress_bar,
)
from npr_model.errors import InputError
from npr_model.screening.options import ScoringOptions

if TYPE_CHECKING:
    from npr_model.evaluation.protocols import Found, Protocol
    from npr_model.imaging.perturbations import Perturbation
    from npr_model.screening.runner import Scorer


@scoring_options("checkpoint", *EVALUATION)
def evaluate(
    folders: Folders,
    real: Real = None,
    benchmark: Annotated[
        Benchmark | None,
        typer.Option(
            case_sensitive=False,
            help="Benchmark set in FOLDER: use the view and threshold of its published numbers. paper: the first five.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD",
            help="Show the paper's numbers of a method beside a benchmark's: CNNDetection, Frank, Durall, Patchfor, "
            "F3Net, SelfBland, GANDetection, BiHPF, FrePGAN, LGrad, Ojha or NPR (default: NPR). Repeatable.",
            show_default=False,
        ),
    ] = None,
    equalise: Equalise = None,
    perturb: Perturb = None,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write the tables to a .json, .csv, .md or .tex file. Repeatable.",
            show_default=False,
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write ROC and reliability plots to a folder, as PNG.", show_default=False),
    ] = None,
    *,
    options: ScoringOptions,
) -> None:
    """Measure accuracy, average precision and ROC AUC on labelled folders.

    The first folder below FOLDER names the generator. A generator without real images is measured against the real
    images of all folders that have no generated ones. Images that cannot be scored are listed and excluded.
    """
    from npr_model.evaluation import protocols, published
    from npr_model.evaluation.evaluate import collect, evaluate, require_classes
    from npr_model.evaluation.report import SUFFIXES, Report
    from npr_model.figures import require_matplotlib
    from npr_model.imaging.views import View

    changes = parsed_changes(equalise, perturb)
    for path in output or []:
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"output {path} must end in {', '.join(SUFFIXES)}")
    if compare and not benchmark:
        raise InputError("--compare needs --benchmark: the paper's numbers are those of its benchmark sets")
    if plots:
        require_matplotlib()
    methods = tuple(map(published.find_method, compare or ["NPR"])) if benchmark else ()
    sets = []
    if benchmark:
        if len(folders) != 1 or real:
            raise InputError("--benchmark takes one FOLDER and no --real: a benchmark set has its own real images")
        sets = _find(protocols.choose(benchmark), folders[0])
    samples = [require_classes(one.samples) for one in sets] or [collect(folders, real or [])]
    scorer = options.scorer()
    for one in sets:
        _warn_of_view(scorer, options.view, one.protocol)

    evaluations = []
    with progress_bar("scoring", total=sum(map(len, samples))) as advance:
        run = functools.partial(evaluate, on_row=lambda row: advance(1), **changes)
        if not benchmark:
            evaluations.append(run(scorer, samples[0]))
        for one, own in zip(sets, samples, strict=False):
            seen = scorer if options.view else scorer.with_view(View.parse(one.protocol.view))
            result = run(seen, own, threshold=0.0)  # published accuracies are those at a probability of 0.5
            evaluations.append(replace(result, protocol=one.protocol.name, missing=one.missing, unused=one.unused))
    result = Report(tuple(evaluations), methods)
    for table in result.tables(brief=True):
        print_table(table)
    errors = {source: error for evaluation in evaluations for source, error in evaluation.errors.items()}
    print_errors(errors)
    for path in output or []:
        result.write(path)
    if plots:
        from npr_model.evaluation.plots import plot_evaluation

        print_paths(*plot_evaluation(result, plots))
    if errors:
        raise typer.Exit(EXIT_FAILED_INPUTS)


def _find(chosen: list[Protocol], folder: Path) -> list[Found]:
    from npr_model.evaluation import protocols

    if len(chosen) == 1:
        return [protocols.find(chosen[0], folder)]
    found, absent = protocols.find_all(chosen, folder)
    for protocol in absent:
        err.print(
            f"npr: warning: {protocol.title} is not in {printable(str(folder))} and is excluded from the averages",
            soft_wrap=True,
        )
    return found


def _warn_of_view(scorer: Scorer, view: str | None, protocol: Protocol) -> None:
    """A protocol's numbers are those of its view, a checkpoint's those of its own."""
    if view and view != protocol.view:
        err.print(
            f"npr: warning: the published numbers of {protocol.title} use the view {protocol.view}, not {view}",
            soft_wrap=True,
        )
    elif not view and str(scorer.view) != protocol.view:
        err.print(
            f"npr: warning: {protocol.title} is measured with its view {protocol.view}, but the checkpoint was trained "
            f"for {scorer.view} (use --view {scorer.view} for that)",
            soft_wrap=True,
        )


def parsed_changes(equalise: str | None, perturb: str | None) -> dict[str, Perturbation | None]:
    """--equalise and --perturb as the arguments of :func:`npr_model.evaluation.evaluate.evaluate`."""
    from npr_model.imaging import perturbations

    return {
        "equalise": perturbations.codec(equalise) if equalise else None,
        "perturbation": perturbations.Perturbation.parse(perturb) if perturb else None,
    }

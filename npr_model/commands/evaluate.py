"""``npr evaluate``."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from npr_model.commands.shared.options import (
    EVALUATION,
    Benchmark,
    Changes,
    Equalise,
    Folders,
    Perturb,
    Real,
    choice,
    parsed_changes,
    report_option,
    require_suffix,
    scoring_options,
)
from npr_model.commands.shared.terminal import (
    EXIT_FAILED_INPUTS,
    print_errors,
    print_paths,
    print_table,
    progress_bar,
    warn,
)
from npr_model.errors import InputError
from npr_model.scoring.options import ScoringOptions

if TYPE_CHECKING:
    from npr_model.evaluation.evaluate import Evaluation
    from npr_model.evaluation.protocols import BenchmarkSet, Protocol
    from npr_model.scoring.scorer import Scorer

Method = choice(
    "Method",
    (
        "CNNDetection",
        "Frank",
        "Durall",
        "Patchfor",
        "F3Net",
        "SelfBland",
        "GANDetection",
        "BiHPF",
        "FrePGAN",
        "LGrad",
        "Ojha",
        "NPR",
    ),
)


@scoring_options("checkpoint", *EVALUATION)
def evaluate(
    folders: Folders,
    real: Real = None,
    benchmark: Annotated[
        Benchmark | None,
        typer.Option(
            case_sensitive=False,
            help="Evaluate on this benchmark set, with the view and the threshold of the published numbers. FOLDER "
            "holds the set, in folders with the names that its authors gave them. paper: the first five sets.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        list[Method] | None,  # type: ignore[valid-type]  # choice() makes the class
        typer.Option(
            help="With --benchmark, show the numbers that the paper gives for this method (default: NPR). Repeatable.",
            show_default=False,
        ),
    ] = None,
    equalise: Equalise = None,
    perturb: Perturb = None,
    output: Annotated[list[Path] | None, report_option(".json", ".csv", ".md", ".tex")] = None,
    plots: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write ROC and reliability plots to a folder, as PNG.", show_default=False),
    ] = None,
    *,
    options: ScoringOptions,
) -> None:
    """Measure accuracy, average precision and ROC AUC on labelled folders.

    FOLDER/stylegan3/1_fake/a.png is an image from the generator stylegan3. FOLDER/stylegan3/0_real/b.png is a real
    image to measure it against. A generator without a 0_real folder is measured against the real images of all folders
    that have no 1_fake folder. Images that cannot be scored are listed and excluded.

    The accuracy uses the checkpoint's threshold; with --benchmark, it uses a probability of 0.5.
    """
    from npr_model.evaluation.tables import SUFFIXES, Report
    from npr_model.reporting.figures import require_matplotlib

    changes = parsed_changes(equalise, perturb)
    require_suffix(output, SUFFIXES)
    if compare and not benchmark:
        raise InputError("--compare needs --benchmark: the paper's numbers are those of its benchmark sets")
    if plots:
        require_matplotlib()
    if benchmark:
        evaluations = _on_benchmarks(benchmark, folders, real, options, changes)
    else:
        evaluations = [_on_folders(folders, real, options, changes)]
    named = cast("list[Enum]", compare)
    methods = tuple(method.value for method in named) if named else ("NPR",) if benchmark else ()
    report = Report(tuple(evaluations), methods)
    for table in report.tables(brief=True):
        print_table(table)
    errors = {source: error for evaluation in evaluations for source, error in evaluation.errors.items()}
    print_errors(errors)
    for path in output or []:
        report.write(path)
    if plots:
        from npr_model.evaluation.plots import plot_evaluation

        print_paths(*plot_evaluation(report, plots))
    if errors:
        raise typer.Exit(EXIT_FAILED_INPUTS)


def _on_folders(folders: list[Path], real: list[Path] | None, options: ScoringOptions, changes: Changes) -> Evaluation:
    """Evaluate on labelled folders, with the checkpoint's threshold."""
    from npr_model.datasets.folders import LeftOut
    from npr_model.evaluation.evaluate import collect, evaluate

    left_out = LeftOut()
    samples = collect(folders, real or [], left_out.add)
    scorer = options.scorer()
    with progress_bar("scoring", total=len(samples)) as advance:
        evaluation = evaluate(scorer, samples, on_row=lambda row: advance(1), **changes)
    return replace(evaluation, left_out=left_out)


def _on_benchmarks(
    name: str,
    folders: list[Path],
    real: list[Path] | None,
    options: ScoringOptions,
    changes: Changes,
) -> list[Evaluation]:
    """Evaluate on each set of a benchmark as its published numbers were measured: its view, a probability of 0.5."""
    from npr_model.evaluation.evaluate import evaluate, require_classes
    from npr_model.imaging.views import View

    if len(folders) != 1 or real:
        raise InputError("--benchmark takes one FOLDER and no --real: a benchmark set has its own real images")
    sets = _benchmark_sets(name, folders[0])
    samples = [require_classes(one.samples) for one in sets]
    scorer = options.scorer()
    for one in sets:
        _warn_of_view(scorer, options.view, one.protocol)
    evaluations = []
    with progress_bar("scoring", total=sum(map(len, samples))) as advance:
        for one, own in zip(sets, samples, strict=True):
            viewing = scorer if options.view else scorer.with_view(View.parse(one.protocol.view))
            evaluation = evaluate(viewing, own, threshold=0.0, on_row=lambda row: advance(1), **changes)
            about = replace(evaluation, protocol=one.protocol.name, missing=one.missing, unused=one.unused)
            evaluations.append(replace(about, left_out=one.left_out))
    return evaluations


def _benchmark_sets(name: str, folder: Path) -> list[BenchmarkSet]:
    """The sets of a benchmark below ``folder``; absent ones of several are left out with a warning."""
    from npr_model.evaluation import protocols

    chosen = protocols.choose(name)
    if len(chosen) == 1:
        return [protocols.find(chosen[0], folder)]
    sets, absent = protocols.find_all(chosen, folder)
    for protocol in absent:
        warn(f"{protocol.title} is not in {folder} and is excluded from the averages")
    return sets


def _warn_of_view(scorer: Scorer, view: str | None, protocol: Protocol) -> None:
    """A protocol's numbers are those of its view, a checkpoint's those of its own."""
    if view and view != protocol.view:
        warn(f"the published numbers of {protocol.title} use the view {protocol.view}, not {view}")
    elif not view and str(scorer.view) != protocol.view:
        warn(
            f"{protocol.title} is measured with its view {protocol.view}, but the checkpoint was calibrated for "
            f"{scorer.view} (use --view {scorer.view} for that)"
        )

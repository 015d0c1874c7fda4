"""``npr calibrate``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from npr_model.commands.terminal import (
    EXIT_FAILED_INPUTS,
    Backend,
    BatchSize,
    Device,
    DtypeOption,
    ViewOption,
    Workers,
    listed,
    make_scorer,
    out,
    printable,
    progress_bar,
)
from npr_model.errors import InputError

if TYPE_CHECKING:
    from npr_model.datasets import Sample
    from npr_model.evaluation.calibration import Result


def calibrate(
    checkpoint: Annotated[str, typer.Argument(help="A .safetensors file, or with --output another checkpoint.")],
    reals: Annotated[
        list[Path],
        typer.Argument(
            metavar="REALS...",
            help="Folders of photographs that the checkpoint was not trained on; of folders with 0_real and 1_fake "
            "both classes are used.",
        ),
    ],
    fakes: Annotated[
        list[Path] | None, typer.Option(help="Folders of generated images, for the temperature.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write to this file. Default: into the checkpoint.", show_default=False),
    ] = None,
    rates: Annotated[
        str, typer.Option(help="False-positive rates for thresholds, separated by commas; the first is the default.")
    ] = "0.05,0.01,0.001",
    uncertain_rate: Annotated[
        float, typer.Option(help="Verdicts are uncertain from the threshold at this rate up to that of the verdict.")
    ] = 0.2,
    view: ViewOption = None,
    batch_size: BatchSize = 16,
    workers: Workers = 0,
    backend: Backend = None,
    dtype: DtypeOption = None,
    device: Device = "auto",
) -> None:
    """Give a checkpoint thresholds at fixed false-positive rates, an uncertain band, a temperature, and the steps of
    its activations for --dtype int8.

    A rate for which there are too few photographs is refused. `npr screen` uses the result for its verdicts.
    Exit code 0: all images were scored; 1: some could not be, they are listed; 2: wrong usage.
    """

    from npr_model import checkpoints, datasets
    from npr_model.detectors.npr import NPRDetector
    from npr_model.evaluation import calibration
    from npr_model.inference import quantisation
    from npr_model.screening.sources import file_item
    from npr_model.verdicts import Calibration

    try:
        parsed = [float(rate) for rate in listed(rates)]
    except ValueError:
        raise InputError(f"no false-positive rates {rates!r}; write them as in 0.05,0.01") from None
    destination = output or checkpoints.find(checkpoint)
    if destination.suffix != ".safetensors" or destination.parent == checkpoints.WEIGHTS:
        raise InputError(f"calibrating {checkpoint} needs an --output that ends in .safetensors")
    samples = [sample for root in reals for sample in datasets.find_reals(root)]
    samples += [sample for root in reals if datasets.has_fakes(root) for sample in datasets.find_fakes(root)]
    samples += [sample for root in fakes or [] for sample in datasets.find_fakes(root)]
    samples = list({sample.path.resolve(): sample for sample in samples}.values())
    by_source = {file_item(sample.path).source: sample for sample in samples}
    scorer = make_scorer(checkpoint, view, batch_size, workers, backend, dtype, device)

    scored, errors = [], {}
    with progress_bar("scoring", total=len(samples)) as advance:
        for row in scorer.score(file_item(sample.path) for sample in samples):
            advance(1)
            if row.error is None:
                scored.append((by_source[row.source], row.logit))
            else:
                errors[row.source] = row.error
    logits = {
        label: [logit for sample, logit in scored if sample.label == label] for label in (datasets.REAL, datasets.FAKE)
    }
    loaded = checkpoints.load(checkpoint)
    result = calibration.calibrate(
        logits[datasets.REAL],
        logits[datasets.FAKE],
        rates=parsed,
        uncertain_rate=uncertain_rate,
        temperature=(loaded.metadata.calibration or Calibration()).temperature,
    )
    if isinstance(loaded.model, NPRDetector):
        paths = [sample.path for sample, _ in scored]
        with progress_bar("activations", total=min(len(paths), quantisation.IMAGES)) as advance:
            batches = quantisation.central_parts(paths, loaded.model.grid_size, lambda: advance(1))
            loaded.model.activation_steps = quantisation.measure_steps(loaded.model, batches)
    metadata = dataclasses.replace(loaded.metadata, calibration=result.calibration, view=scorer.view)
    checkpoints.save(destination, loaded.model, metadata)
    _print_calibration(result, scored, len(logits[datasets.FAKE]))
    out.print(f"written to {escape(str(destination))}, view {scorer.view}", soft_wrap=True)
    if errors:
        out.print(f"{len(errors)} images could not be scored and were left out:")
        for source, error in errors.items():
            out.print(f"  {printable(source)}: {printable(error)}", soft_wrap=True)
        raise typer.Exit(EXIT_FAILED_INPUTS)


def _print_calibration(result: Result, scored: list[tuple[Sample, float]], fakes: int) -> None:
    from npr_model.datasets import REAL

    calibration = result.calibration
    sources: dict[str, list[float]] = {}
    for sample, logit in scored:
        if sample.label == REAL:
            sources.setdefault(sample.group, []).append(logit)
    table = Table()
    for column in ("false positives", "logit threshold", "photographs", "at most (95 %)", "worst source"):
        table.add_column(column, justify="right", overflow="fold")
    for point in calibration.points:
        shares = {name: sum(x > point.threshold for x in logits) / len(logits) for name, logits in sources.items()}
        worst = max(shares, key=shares.get)
        table.add_row(
            f"{100 * point.rate:g} %",
            f"{point.threshold:.3f}",
            str(point.photographs),
            f"{100 * point.upper:.2g} %",
            f"{printable(worst)} {100 * shares[worst]:.1f} %",
        )
    out.print(table)
    low, high = calibration.band
    out.print(f"verdicts: {calibration.note}; uncertain between the logits {low:.3f} and {high:.3f}", soft_wrap=True)
    if fakes:
        out.print(f"temperature {calibration.temperature:.3g}, fitted with {fakes} generated images", soft_wrap=True)
    else:
        out.print(f"no generated images were given, so the temperature stays {calibration.temperature:.3g}")
    for warning in result.warnings:
        out.print(f"[yellow]warning: {warning}[/]", soft_wrap=True)

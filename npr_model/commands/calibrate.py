"""``npr calibrate``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from npr_model.commands.shared.options import CHECKPOINT, EVALUATION, scoring_options
from npr_model.commands.shared.samples import calibration_samples
from npr_model.commands.shared.terminal import (
    EXIT_FAILED_INPUTS,
    out,
    print_errors,
    printable,
    progress_bar,
    warn,
    warn_of_data,
)
from npr_model.errors import InputError
from npr_model.scoring.options import ScoringOptions

if TYPE_CHECKING:
    from npr_model.evaluation.calibration import Calibrated
    from npr_model.evaluation.distinct import DistinctScores
    from npr_model.verdicts import OperatingPoint


@scoring_options(*EVALUATION)
def calibrate(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help=CHECKPOINT)],
    reals: Annotated[
        list[Path],
        typer.Argument(
            metavar="REALS",
            help="Folders of photographs that were not in the training set, or folders with 0_real (photographs) and "
            "1_fake (generated images).",
        ),
    ],
    fake: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of generated images, to fit the temperature of the probabilities. Repeatable.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write to this .safetensors file (default: CHECKPOINT-calibrated.safetensors).",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output file if it exists. It may be CHECKPOINT itself.")
    ] = False,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            "--false-positive-rate",
            help="False-positive rate to find a threshold for (default: 0.05, 0.01 and 0.001). npr screen uses the "
            "first of these rates for which there are enough photographs. Repeatable.",
            show_default=False,
        ),
    ] = None,
    uncertain_rate: Annotated[
        float,
        typer.Option(
            help="False-positive rate of a second, lower threshold. Logits between the two have the verdict "
            '"uncertain".'
        ),
    ] = 0.2,
    *,
    options: ScoringOptions,
) -> None:
    """Find thresholds for fixed false-positive rates from photographs, and write them to a new checkpoint.

    Use photographs like those you will screen. A false-positive rate of 5 % needs at least 19 photographs, 1 % needs
    99, and 0.1 % needs 999. A rate with too few photographs gets no threshold. The command prints an upper bound of the
    true rate; more photographs make it lower. Copies of a photograph count once.

    Each condition of files (lossless; JPEG of quality 90 or more; JPEG below; recompressed JPEG; other lossy formats)
    that has enough photographs gets thresholds of its own, as logits differ between them. The others use the thresholds
    computed from all photographs.

    Thresholds are computed from the photographs only. The probability is sigmoid(logit / temperature); the temperature
    is fitted only if generated images are given. The quantisation scales for --dtype int8 are measured on all images.
    """
    from npr_model.evaluation.calibration import RATES
    from npr_model.evaluation.checkpoint_calibration import calibrate_checkpoint

    destination = _destination(checkpoint, output, overwrite)
    samples = calibration_samples(reals, fake)
    found: list[DistinctScores] = []
    try:
        with progress_bar("calibrating", total=len(samples)) as advance:
            calibrated = calibrate_checkpoint(
                replace(options, checkpoint=checkpoint),
                samples,
                destination,
                rates=rate or RATES,
                uncertain_rate=uncertain_rate,
                on_row=lambda row: advance(1),
                on_scores=found.append,
                on_measured=lambda: advance(0, "measuring quantisation scales"),
            )
    finally:  # also if there are too few photographs, as copies may be the reason
        for scores in found:
            _print_scores(scores)
    scores = calibrated.scores
    _print_calibration(calibrated.result, scores)
    out.print(f"written to {escape(str(destination))}, view {calibrated.view}", soft_wrap=True)
    if scores.errors:
        out.print(f"{len(scores.errors)} images could not be scored and were excluded:")
        print_errors(scores.errors)
        raise typer.Exit(EXIT_FAILED_INPUTS)


def _destination(checkpoint: str, output: Path | None, overwrite: bool) -> Path:
    """The file to write: by default beside the checkpoint, or in the working folder for a bundled one."""
    from npr_model import checkpoints

    source = checkpoints.find(checkpoint)
    folder = source.parent if Path(checkpoint).is_file() else Path()
    destination = output or folder / f"{source.stem}-calibrated.safetensors"
    if destination.suffix != ".safetensors":
        raise InputError(f"output {destination} must end in .safetensors")
    if destination.exists() and not overwrite:
        raise InputError(f"output {destination} exists: use --overwrite to replace it, or -o for another file")
    return destination


def _print_scores(scores: DistinctScores) -> None:
    warn_of_data(scores.contradictions)
    if scores.copies:
        out.print(f"{scores.copies} copies of other images were left out: their pixels are equal", soft_wrap=True)


def _print_calibration(result: Calibrated, scores: DistinctScores) -> None:
    from npr_model.datasets.folders import FAKE, REAL

    calibration = result.calibration
    sources: dict[str, list[float]] = {}
    for sample, logit in scores.scored:
        if sample.label == REAL:
            sources.setdefault(sample.group, []).append(logit)
    table = Table()
    for column in ("condition", "false positives", "threshold", "photographs", "upper bound (95 %)", "worst source"):
        table.add_column(column, justify="left" if column == "condition" else "right", overflow="fold")
    for point in calibration.points:
        shares = {name: sum(x > point.threshold for x in logits) / len(logits) for name, logits in sources.items()}
        worst = max(shares, key=shares.__getitem__)
        table.add_row("all", *_cells(point), f"{printable(worst)} {100 * shares[worst]:.1f} %")
    for name, own in calibration.conditions.items():
        for point in own.points:
            table.add_row(name, *_cells(point), "")
    out.print(table)
    low, high = calibration.band
    out.print(f"verdicts: {calibration.note}; uncertain between the logits {low:.3f} and {high:.3f}", soft_wrap=True)
    if fakes := len(scores.logits(FAKE)):
        out.print(f"temperature {calibration.temperature:.3g}, fitted with {fakes} generated images", soft_wrap=True)
    else:
        out.print(f"no generated images were given: the temperature stays {calibration.temperature:.3g}")
    for warning in result.warnings:
        warn(warning)


def _cells(point: OperatingPoint) -> tuple[str, ...]:
    return f"{100 * point.rate:g} %", f"{point.threshold:.3f}", str(point.photographs), f"{100 * point.upper:.2g} %"

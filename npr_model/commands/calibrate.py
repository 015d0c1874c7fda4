"""``npr calibrate``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from npr_model.commands.options import CHECKPOINT, EVALUATION, scoring_options
from npr_model.commands.terminal import (
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
    from npr_model.datasets import Sample
    from npr_model.detectors.base import DetectorNetwork
    from npr_model.evaluation.calibration import Result
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
    99, and 0.1 % needs 999; for a rate with too few photographs, no threshold is set. The command prints an upper bound
    of the true rate; more photographs make it lower. Copies of a photograph count once.

    Each condition of files (lossless; JPEG of quality 90 or more; JPEG below; recompressed JPEG; other lossy formats)
    that has enough photographs gets thresholds of its own, as logits differ between them. The others use the thresholds
    computed from all photographs.

    The photographs alone decide the thresholds. The temperature divides the logits before they become probabilities. It
    is fitted only if there are generated images. All images together
    decide the quantisation scales for --dtype int8.
    """
    from npr_model import checkpoints
    from npr_model.datasets import FAKE, REAL
    from npr_model.evaluation import calibration
    from npr_model.evaluation.distinct import score_distinct
    from npr_model.verdicts import Calibration

    destination = _destination(checkpoint, output, overwrite)
    rates = rate or calibration.RATES
    samples = _samples(reals, fake or [])
    calibration.require_enough(sum(sample.label == REAL for sample in samples), rates, uncertain_rate)
    scorer = replace(options, checkpoint=checkpoint).scorer()
    with progress_bar("scoring", total=len(samples)) as advance:
        scores = score_distinct(scorer, samples, on_row=lambda row: advance(1))
    warn_of_data(scores.contradictions)
    if scores.copies:
        out.print(f"{scores.copies} copies of other images were left out: their pixels are equal", soft_wrap=True)
    loaded = checkpoints.load(checkpoint)
    result = calibration.calibrate(
        scores.logits(REAL),
        scores.logits(FAKE),
        rates=rates,
        uncertain_rate=uncertain_rate,
        temperature=(loaded.metadata.calibration or Calibration()).temperature,
        conditions=scores.logits_by_condition(REAL),
    )
    _measure_activations(loaded.model, [sample for sample, _ in scores.scored])
    metadata = replace(loaded.metadata, calibration=result.calibration, view=scorer.view)
    checkpoints.save(destination, loaded.model, metadata)
    _print_calibration(result, scores)
    out.print(f"written to {escape(str(destination))}, view {scorer.view}", soft_wrap=True)
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


def _samples(reals: list[Path], fakes: list[Path]) -> list[Sample]:
    """The images of all folders, each file once; folders of REALS with class folders give both classes."""
    from npr_model import datasets

    left_out = datasets.LeftOut()
    samples: list[Sample] = []
    for root in reals:
        list_root = datasets.find_samples if datasets.has_class_folders(root) else datasets.find_reals
        samples += list_root(root, on_other=left_out.add)
    if not any(sample.label == datasets.REAL for sample in samples):
        raise InputError(f"no real images in {', '.join(map(str, reals))}")
    samples += [sample for root in fakes for sample in datasets.find_fakes(root, left_out.add)]
    warn_of_data(left_out)
    return list({(sample.path.resolve(), sample.label): sample for sample in samples}.values())


def _measure_activations(model: DetectorNetwork, samples: list[Sample]) -> None:
    """Give an NPR detector the quantisation scales of these images."""
    from npr_model.detectors.npr import NPRDetector
    from npr_model.inference import quantisation

    if not isinstance(model, NPRDetector):
        return
    paths = [sample.path for sample in samples]
    with progress_bar("activations", total=min(len(paths), quantisation.IMAGES)) as advance:
        batches = quantisation.central_parts(paths, model.grid_size, lambda: advance(1))
        model.set_activation_steps(quantisation.measure_steps(model, batches))


def _print_calibration(result: Result, scores: DistinctScores) -> None:
    from npr_model.datasets import FAKE, REAL

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

"""``npr calibrate``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from npr_model.commands.options import EVALUATION, scoring_options
from npr_model.commands.terminal import EXIT_FAILED_INPUTS, out, print_errors, printable, progress_bar
from npr_model.errors import InputError
from npr_model.screening.options import ScoringOptions

if TYPE_CHECKING:
    from npr_model.datasets import Sample
    from npr_model.evaluation.calibration import Result
    from npr_model.screening.runner import Scorer


@scoring_options(*EVALUATION)
def calibrate(
    checkpoint: Annotated[str, typer.Argument(help="Name of a bundled checkpoint, or a .safetensors or .pth file.")],
    reals: Annotated[
        list[Path],
        typer.Argument(
            metavar="REALS...",
            help="Folders of photographs that were not in the training set. Of folders with 0_real and 1_fake, both "
            "classes are used.",
        ),
    ],
    fake: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of generated images, for the temperature. Repeatable.", show_default=False),
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
        bool, typer.Option("--overwrite", help="Replace the output file if it exists, also CHECKPOINT itself.")
    ] = False,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            help="False-positive rate to find a threshold for; the first one gives the default verdict (default: 0.05, "
            "0.01 and 0.001). Repeatable.",
            show_default=False,
        ),
    ] = None,
    uncertain_rate: Annotated[
        float,
        typer.Option(help='Scores between this rate\'s threshold and the verdict threshold are "uncertain".'),
    ] = 0.2,
    *,
    options: ScoringOptions,
) -> None:
    """Find the thresholds for fixed false-positive rates on photographs, and write them to a new checkpoint.

    Use photographs like those you will screen: at least 19, 99 or 999 for 5, 1 or 0.1 % false positives; more of them
    tighten the upper bound that is printed. A rate with too few photographs is refused. The checkpoint also gets an
    uncertain band, a temperature for the probabilities, and the quantisation scales for --dtype int8.
    """
    from npr_model import checkpoints, datasets
    from npr_model.detectors.npr import NPRDetector
    from npr_model.evaluation import calibration
    from npr_model.inference import quantisation
    from npr_model.verdicts import Calibration

    source = checkpoints.find(checkpoint)
    destination = output or _default_output(checkpoint, source)
    if destination.suffix != ".safetensors":
        raise InputError(f"output {destination} must end in .safetensors")
    if destination.exists() and not overwrite:
        raise InputError(f"output {destination} exists: use --overwrite to replace it, or -o for another file")
    samples = _labelled(reals, fake or [])
    rates = rate or calibration.RATES
    calibration.require_enough(sum(sample.label == datasets.REAL for sample in samples), rates, uncertain_rate)
    scorer = replace(options, checkpoint=checkpoint).scorer()
    scored, errors = _scored(scorer, samples)
    logits = {
        label: [logit for sample, logit in scored if sample.label == label] for label in (datasets.REAL, datasets.FAKE)
    }
    loaded = checkpoints.load(checkpoint)
    result = calibration.calibrate(
        logits[datasets.REAL],
        logits[datasets.FAKE],
        rates=rates,
        uncertain_rate=uncertain_rate,
        temperature=(loaded.metadata.calibration or Calibration()).temperature,
    )
    if isinstance(loaded.model, NPRDetector):
        paths = [sample.path for sample, _ in scored]
        with progress_bar("activations", total=min(len(paths), quantisation.IMAGES)) as advance:
            batches = quantisation.central_parts(paths, loaded.model.grid_size, lambda: advance(1))
            loaded.model.set_activation_steps(quantisation.measure_steps(loaded.model, batches))
    metadata = replace(loaded.metadata, calibration=result.calibration, view=scorer.view)
    checkpoints.save(destination, loaded.model, metadata)
    _print_calibration(result, scored, len(logits[datasets.FAKE]))
    out.print(f"written to {escape(str(destination))}, view {scorer.view}", soft_wrap=True)
    if errors:
        out.print(f"{len(errors)} images could not be scored and were excluded:")
        print_errors(errors)
        raise typer.Exit(EXIT_FAILED_INPUTS)


def _labelled(reals: list[Path], fakes: list[Path]) -> list[Sample]:
    """The images of all folders, each file once; folders of REALS with class folders give both classes."""
    from npr_model import datasets

    samples = [sample for root in reals for sample in datasets.find_reals(root)]
    samples += [sample for root in reals if datasets.has_fakes(root) for sample in datasets.find_fakes(root)]
    samples += [sample for root in fakes for sample in datasets.find_fakes(root)]
    return list({sample.path.resolve(): sample for sample in samples}.values())


def _scored(scorer: Scorer, samples: list[Sample]) -> tuple[list[tuple[Sample, float]], dict[str, str]]:
    """Samples with their logits, and the messages of those that could not be scored, by source."""
    from npr_model.screening.sources import file_item

    by_source = {file_item(sample.path).source: sample for sample in samples}
    scored, errors = [], {}
    with progress_bar("scoring", total=len(samples)) as advance:
        for row in scorer.score(file_item(sample.path) for sample in samples):
            advance(1)
            if row.error is None:
                scored.append((by_source[row.source], row.logit))
            else:
                errors[row.source] = row.error
    return scored, errors


def _default_output(checkpoint: str, source: Path) -> Path:
    """Beside the checkpoint, or in the working folder for a bundled one."""
    folder = source.parent if Path(checkpoint).is_file() else Path()
    return folder / f"{source.stem}-calibrated.safetensors"


def _print_calibration(result: Result, scored: list[tuple[Sample, float]], fakes: int) -> None:
    from npr_model.datasets import REAL

    calibration = result.calibration
    sources: dict[str, list[float]] = {}
    for sample, logit in scored:
        if sample.label == REAL:
            sources.setdefault(sample.group, []).append(logit)
    table = Table()
    for column in ("false positives", "logit threshold", "photographs", "upper bound (95 %)", "worst source"):
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
        out.print(f"no generated images were given: the temperature stays {calibration.temperature:.3g}")
    for warning in result.warnings:
        out.print(f"[yellow]warning: {warning}[/]", soft_wrap=True)

"""``npr robustness``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npr_model.commands.shared.options import EVALUATION, Folders, Real, folder_option, scoring_options
from npr_model.commands.shared.samples import labelled_samples
from npr_model.commands.shared.terminal import EXIT_FAILED_INPUTS, out, print_paths, print_table, progress_bar
from npr_model.scoring.options import ScoringOptions


@scoring_options("checkpoint", *EVALUATION)
def robustness(
    folders: Folders,
    output: Annotated[Path, folder_option("Write the table, the numbers and the curves to this folder.")],
    real: Real = None,
    perturb: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STEPS",
            help="Measure this change instead of the standard ones, e.g. resize:0.5+jpeg:90. Repeatable.",
            show_default=False,
        ),
    ] = None,
    *,
    options: ScoringOptions,
) -> None:
    """Measure how compression, resizing, blur, cropping and other decoders change the metrics.

    Each result is saved at once. Run the same command again to continue after an interruption.
    """
    from npr_model.imaging.perturbations import Perturbation

    for text in perturb or []:
        Perturbation.parse(text)

    from npr_model.files import write_text
    from npr_model.reporting.figures import require_matplotlib
    from npr_model.studies import robustness as study

    families = {"given": tuple(perturb)} if perturb else study.FAMILIES
    require_matplotlib()
    samples = labelled_samples(folders, real)
    scorer = options.scorer()
    texts = list(dict.fromkeys([study.UNCHANGED, *(text for family in families.values() for text in family)]))
    with progress_bar("scoring", total=len(texts) * len(samples)) as advance:
        points = study.measure(scorer, samples, texts, output, on_row=lambda row: advance(1))
    note = (
        f"Checkpoint {scorer.model_id}, view {scorer.view}, {len(samples)} images; every image is changed alike, in "
        f"memory. False positives and detected images at the logit {scorer.calibration.threshold:g}. In percent."
    )
    table = study.table(points, note)
    print_table(table)
    written = [output / study.RESULTS, output / "robustness.md"]
    write_text(written[1], table.markdown())

    from npr_model.studies.plots import plot_robustness

    print_paths(*written, *plot_robustness(points, families, output))
    if failed := max(point.errors for point in points):
        out.print(f"up to {failed} images could not be scored and are excluded; npr evaluate lists them")
        raise typer.Exit(EXIT_FAILED_INPUTS)

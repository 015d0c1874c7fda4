"""``npr robustness``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npr_model.commands.evaluate import Folders, Real, print_table
from npr_model.commands.terminal import (
    EXIT_FAILED_INPUTS,
    Backend,
    BatchSize,
    Checkpoint,
    Device,
    DtypeOption,
    ViewOption,
    Workers,
    make_scorer,
    out,
    printable,
    progress_bar,
)


def robustness(
    folders: Folders,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the table, the results and the curves.")],
    real: Real = None,
    perturb: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure these instead, as in resize:0.5+jpeg:90; may be given more than once. Default: JPEG, WebP, "
            "resizing, blur, cell offsets, re-encoding and decoders.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Checkpoint = "preview",
    view: ViewOption = None,
    batch_size: BatchSize = 16,
    workers: Workers = 0,
    backend: Backend = None,
    dtype: DtypeOption = None,
    device: Device = "auto",
) -> None:
    """How the numbers change as images are compressed, resized, blurred, cropped, re-encoded, decoded otherwise.

    What is measured is kept at once: run it again after an interruption, and it goes on.
    Exit code 0: all images were scored; 1: some could not be; 2: wrong usage.
    """
    from npr_model.imaging.perturbations import Perturbation

    families = {"given": tuple(perturb)} if perturb else None
    for text in perturb or []:
        Perturbation.parse(text)

    from npr_model.evaluation.evaluate import collect
    from npr_model.figures import require_matplotlib
    from npr_model.files import atomic_write
    from npr_model.studies import robustness as robust

    families = families or robust.FAMILIES
    require_matplotlib()
    samples = collect(folders, real or [])
    scorer = make_scorer(checkpoint, view, batch_size, workers, backend, dtype, device)
    texts = list(dict.fromkeys([robust.UNCHANGED, *(text for family in families.values() for text in family)]))
    with progress_bar("scoring", total=len(texts) * len(samples)) as advance:
        points = robust.measure(scorer, samples, texts, output, on_row=lambda row: advance(1))
    note = (
        f"Checkpoint {scorer.model_id}, view {scorer.view}, {len(samples)} images; every image is perturbed alike, in "
        f"memory. False positives and found at the logit {scorer.calibration.threshold:g}. In percent."
    )
    table = robust.table(points, note)
    print_table(table)
    written = [output / robust.RESULTS, output / "robustness.md"]
    with atomic_write(written[1]) as temporary:
        temporary.write_text(table.markdown(), encoding="utf-8")

    from npr_model.studies.plots import plot_robustness

    written += plot_robustness(points, families, output)
    for path in written:
        out.print(printable(str(path)), soft_wrap=True)
    if failed := max(point.errors for point in points):
        out.print(f"up to {failed} images could not be scored and are in no number; npr evaluate lists them")
        raise typer.Exit(EXIT_FAILED_INPUTS)

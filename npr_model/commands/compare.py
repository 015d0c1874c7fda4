"""``npr compare``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from npr_model.commands.shared.options import (
    EVALUATION,
    LABELLED,
    Config,
    Equalise,
    Perturb,
    Preset,
    Real,
    Settings,
    choice,
    folder_option,
    parsed_changes,
    scoring_options,
)
from npr_model.commands.shared.samples import labelled_samples
from npr_model.commands.shared.terminal import (
    EXIT_FAILED_INPUTS,
    out,
    print_errors,
    print_paths,
    print_table,
    progress_bar,
)
from npr_model.commands.shared.training_progress import TrainingProgress, saying_how_to_continue
from npr_model.detectors import NAMES
from npr_model.errors import InputError
from npr_model.scoring.options import ScoringOptions

ALL = "all"
DetectorName = choice("DetectorName", (ALL, *NAMES))


@scoring_options(*EVALUATION)
def compare(
    evaluate: Annotated[list[Path], typer.Option(metavar="FOLDER", help=f"{LABELLED} Evaluate on them. Repeatable.")],
    output: Annotated[Path, folder_option("Write comparison.md, comparison.json and the trained runs to this folder.")],
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpoint",
            "-c",
            help="Trained network of any detector, as for npr screen. Repeatable.",
            show_default=False,
        ),
    ] = None,
    train: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help=f"{LABELLED} Train --detectors on them. Repeatable.", show_default=False),
    ] = None,
    detectors: Annotated[
        list[DetectorName] | None,  # type: ignore[valid-type]  # a class that choice() made
        typer.Option(help="Detector to train, or all. Repeatable.", show_default=False),
    ] = None,
    real: Real = None,
    preset: Preset = None,
    config: Config = None,
    settings: Settings = None,
    equalise: Equalise = None,
    perturb: Perturb = None,
    *,
    options: ScoringOptions,
) -> None:
    """Compare checkpoints on the same labelled folders, in one table.

    Give --checkpoint, or --train with --detectors, or all three. With --train, each of --detectors is trained with one
    config (default: the preset wild), and its last checkpoint is measured. --set does not change the weight_decay of
    frank, and the resize, crop_size and view of ojha. Each checkpoint uses its own view unless --view is given. For the
    accuracy, images with a probability above 0.5 count as generated.

    The output files are written again after every checkpoint. Run the same command again to continue after an
    interruption; what is trained or measured is not done again.
    """
    changes = parsed_changes(equalise, perturb)
    chosen = {str(getattr(name, "value", name)) for name in detectors or ()}
    names = [name for name in NAMES if name in chosen or ALL in chosen]
    if bool(names) != bool(train):
        raise InputError("--train and --detectors need each other: which images to train on, and which detectors")
    if not names and (preset or config or settings):
        raise InputError("--preset, --config and --set need --train")
    if not names and not checkpoint:
        raise InputError("nothing to compare: give --checkpoint, or --train and --detectors")

    from npr_model.training import config as configs

    shared = configs.one_of(preset, config, default="wild").changed(folders=[str(path) for path in train or ()])

    from npr_model import checkpoints
    from npr_model.files import make_folder
    from npr_model.studies import comparison

    recipes = comparison.recipes(names, shared, settings or ())
    for name in checkpoint or ():
        checkpoints.load(name)  # all, before the slow part
    samples = labelled_samples(evaluate, real)
    make_folder(output)
    known = comparison.read(output)
    entries: list[comparison.Entry] = []

    def measure(name: str) -> None:
        scorer = replace(options, checkpoint=name).scorer()
        with progress_bar(scorer.model_id, total=len(samples)) as advance:
            entry = comparison.measure(scorer, samples, known, on_row=lambda row: advance(1), **changes)
        entries.append(entry)
        comparison.write(entries, output, known)

    for name in checkpoint or ():
        measure(name)
    with saying_how_to_continue("run the same command again to continue"):
        for number, recipe in enumerate(recipes, 1):
            out.print(f"{recipe.detector}, {number} of {len(recipes)}")
            with TrainingProgress() as progress:
                trained = comparison.trained(recipe, output, progress.callbacks)
            measure(str(trained))
    for table in comparison.tables(entries):
        print_table(table)
    errors = {source: error for entry in entries for source, error in entry.errors.items()}
    print_errors(errors)
    print_paths(*comparison.write(entries, output, known))
    if errors:
        raise typer.Exit(EXIT_FAILED_INPUTS)

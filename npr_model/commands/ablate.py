"""``npr ablate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npr_model.commands.shared.options import Config, Preset, Real, Settings, folder_option
from npr_model.commands.shared.samples import labelled_samples
from npr_model.commands.shared.terminal import out, print_paths, print_table
from npr_model.commands.shared.training_progress import TrainingProgress, saying_how_to_continue


def ablate(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER", help="Folders with the training images, as for npr train.")
    ],
    evaluate: Annotated[list[Path], typer.Option(help="Labelled folder to evaluate every variant on. Repeatable.")],
    output: Annotated[Path, folder_option("Write the runs, ablation.md and ablation.json to this folder.")],
    real: Real = None,
    grid_size: Annotated[
        list[int] | None,
        typer.Option(help="Side of the cells, in pixels (default: 2 and 3). Repeatable.", show_default=False),
    ] = None,
    anchor: Annotated[
        list[str] | None,
        typer.Option(
            help="What is subtracted from a cell: the pixel with this number (0 is the paper's w_1), mean or max "
            "(default: 0 to 3, mean and max). Repeatable.",
            show_default=False,
        ),
    ] = None,
    preset: Preset = None,
    config: Config = None,
    settings: Settings = None,
) -> None:
    """Train and evaluate a detector for every grid size and anchor, as in the paper's Table 7.

    The training preset is "paper" unless --preset or --config is given. Run the same command again to continue after an
    interruption; finished variants are not trained again.
    """
    from npr_model.training import config as configs

    chosen = configs.one_of(preset, config, default="paper")
    chosen = chosen.changed(folders=[str(path) for path in folders]).overridden(settings or [])

    from npr_model.studies import ablation

    anchors = [int(text) if text.isdecimal() else text for text in anchor or []]
    variants = ablation.variants(grid_size or ablation.GRID_SIZES, anchors or ablation.ANCHORS)
    samples = labelled_samples(evaluate, real)

    def announce(variant: ablation.Variant) -> None:
        out.print(f"{variant}, {variants.index(variant) + 1} of {len(variants)}")

    with saying_how_to_continue("run the same command again to continue"), TrainingProgress() as progress:
        outcomes = ablation.ablate(chosen, variants, samples, output, on_variant=announce, callbacks=progress.callbacks)
    note = (
        f"{len(samples)} evaluation images, view {chosen.view}, accuracy at the logit 0; {chosen.epochs} epochs of the "
        "same training each. The published means are those of Table 7 of Tan et al. (CVPR 2024), on ForenSynths. In "
        "percent."
    )
    print_table(ablation.table(outcomes, note))
    print_paths(*ablation.write(outcomes, note, output))

"""``npr ablate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npr_model.commands.evaluate import Real, print_table
from npr_model.commands.terminal import EXIT_INTERRUPTED, err, listed, out, printable
from npr_model.commands.train import TrainingProgress, print_epoch
from npr_model.errors import InputError


def ablate(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Training folders with 0_real and 1_fake, at any depth.")
    ],
    evaluation: Annotated[
        list[Path], typer.Option(help="Folders to evaluate every variant on; may be given more than once.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the runs and the table.")],
    real: Real = None,
    grids: Annotated[str, typer.Option(help="Sides of the cells, separated by commas.")] = "2,3",
    anchors: Annotated[
        str, typer.Option(help="Anchors, separated by commas: 0 is the paper's w_1; mean; max.")
    ] = "0,1,2,3,mean,max",
    preset: Annotated[
        str | None, typer.Option(help="Training config: paper (the default) or wild.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A config as npr train --print-config prints it.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any field of the config; may be given more than once."),
    ] = None,
) -> None:
    """The paper's Table 7: train and evaluate a detector for every grid size and anchor.

    Run it again after an interruption, and it goes on; variants that are done are not trained again.
    """
    from npr_model.training import config as configs

    if preset and config:
        raise InputError("give one of --preset and --config, each of which brings a whole config")
    chosen = configs.load(config) if config else configs.preset(preset or "paper")
    chosen = chosen.changed(folders=[str(path) for path in folders]).overridden(settings or [])
    sides, anchor_values = ([_number(text) for text in listed(option)] for option in (grids, anchors))

    from npr_model.evaluation.evaluate import collect
    from npr_model.files import atomic_write
    from npr_model.studies import ablation

    variants = ablation.variants(sides, anchor_values)
    if not variants:
        raise InputError("no grid size or no anchor was given")
    samples = collect(evaluation, real or [])

    def announce(variant: ablation.Variant) -> None:
        out.print(f"{variant}, {variants.index(variant) + 1} of {len(variants)}")

    try:
        with TrainingProgress() as progress:
            outcomes = ablation.ablate(
                chosen,
                variants,
                samples,
                output,
                on_variant=announce,
                on_read=progress.read,
                on_start=progress.start,
                on_step=progress.step,
                on_epoch=print_epoch,
            )
    except KeyboardInterrupt:
        err.print("npr: interrupted; the same command goes on from the last saved step")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    note = (
        f"{len(samples)} evaluation images, view {chosen.view}, accuracy at the logit 0; {chosen.epochs} epochs of the "
        "same training each. The published means are of Table 7 of Tan et al. (CVPR 2024), on ForenSynths. In percent."
    )
    table = ablation.table(outcomes, note)
    print_table(table)
    for name, text in (("ablation.md", table.markdown()), ("ablation.json", ablation.as_json(outcomes))):
        with atomic_write(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        out.print(printable(str(output / name)), soft_wrap=True)


def _number(text: str) -> int | str:
    return int(text) if text.isdecimal() else text

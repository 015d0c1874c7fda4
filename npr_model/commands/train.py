"""``npr train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from npr_model.commands.shared.options import LABELLED, Config, Preset, Settings
from npr_model.commands.shared.terminal import out
from npr_model.commands.shared.training_progress import TrainingProgress, saying_how_to_continue
from npr_model.errors import InputError

if TYPE_CHECKING:
    from npr_model.training.config import TrainConfig


def train(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER", help=LABELLED, show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Write the checkpoints to this new folder.", show_default=False
        ),
    ] = None,
    validation: Annotated[
        list[Path] | None,
        typer.Option(help="Labelled folder to evaluate on after every epoch. Repeatable.", show_default=False),
    ] = None,
    preset: Preset = None,
    config: Config = None,
    settings: Settings = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the config as JSON and exit.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Continue the run in this folder, with its config.", show_default=False),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Number of passes over the larger class.", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Number of crops per optimizer step, in all processes together.", show_default=False),
    ] = None,
    crop_size: Annotated[
        int | None, typer.Option(help="Side of the random crops, in pixels.", show_default=False)
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Precision of the convolutions; float16 needs a GPU.", show_default=False),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="Device to train on.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name that the checkpoint stores.", show_default=False)] = None,
) -> None:
    """Train NPR or, with --set detector=NAME, another detector of the paper (npr info lists them).

    Every epoch writes last.safetensors. With --validation, best.safetensors is the checkpoint of the epoch with the
    highest mean average precision so far.

    The config comes from --preset (default: wild), --config or --resume. Options such as --epochs override it, and
    --set overrides those options. --print-config shows all fields.

    To train in several processes: torchrun --nproc-per-node 2 -m npr_model.cli train ...
    """
    if resume is not None and output is not None:
        raise InputError("--resume continues in its own folder: leave out --output")
    own_options = {
        "folders": [str(path) for path in folders or []] or None,
        "validation": [str(path) for path in validation or []] or None,
        "epochs": epochs,
        "batch_size": batch_size,
        "crop_size": crop_size,
        "dtype": dtype,
        "device": device,
        "name": name,
    }
    chosen = _config(preset, config, resume, own_options, settings or [])
    if print_config:
        print(chosen.to_json(), end="")
        return
    run_folder = resume or output
    if run_folder is None:
        raise InputError("Missing option '--output' / '-o': a new folder for the checkpoints")

    from npr_model.training.loop import train as run

    with saying_how_to_continue(f"npr train --resume {run_folder} continues"), TrainingProgress() as progress:
        checkpoint = run(chosen, run_folder, resume=resume is not None, callbacks=progress.callbacks)
    if progress.started:
        out.print(f"checkpoint: {escape(str(checkpoint))}", soft_wrap=True)


def _config(
    preset: str | None, config: Path | None, resume: Path | None, own_options: dict[str, Any], settings: list[str]
) -> TrainConfig:
    """The config of --preset, --config or --resume, overridden by the command's own options, and they by --set."""
    from npr_model.training import config as configs

    if sum(source is not None for source in (preset, config, resume)) > 1:
        raise InputError("use only one of --preset, --config and --resume: each is a whole config")
    chosen = configs.one_of(preset, config, default="wild") if resume is None else configs.load_run(resume)
    return chosen.changed(**{n: value for n, value in own_options.items() if value is not None}).overridden(settings)

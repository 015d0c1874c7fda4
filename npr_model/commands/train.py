"""``npr train``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from npr_model.commands.options import Config, Preset, Settings
from npr_model.commands.terminal import EXIT_INTERRUPTED, err, out, work_begins
from npr_model.errors import InputError

if TYPE_CHECKING:
    from npr_model.training.loop import Epoch, Plan, Step


def train(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER...", help="Folders with 0_real and 1_fake, at any depth.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Write the checkpoints to this new folder.", show_default=False
        ),
    ] = None,
    validation: Annotated[
        list[Path] | None,
        typer.Option(help="Labelled folder to measure on after every epoch. Repeatable.", show_default=False),
    ] = None,
    preset: Preset = None,
    config: Config = None,
    settings: Settings = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the config as JSON and exit.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Continue the run in this folder, with its config.", show_default=False),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the larger class.", show_default=False)] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Crops per optimizer step, over all processes.", show_default=False)
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
    """Train NPR, or another detector of the paper's tables with --set detector=NAME (npr info lists them).

    Writes last.safetensors and, with --validation, best.safetensors after every epoch. The preset is "wild" by default.
    --set overrides the other options, and they override the config of --preset, --config or --resume.

    In several processes: torchrun --nproc-per-node 2 -m npr_model.cli train ...
    """
    from npr_model.training import config as configs

    if sum(source is not None for source in (preset, config, resume)) > 1:
        raise InputError("use only one of --preset, --config and --resume: each is a whole config")
    if resume is not None and output is not None:
        raise InputError("--resume continues in its own folder: leave out --output")
    if resume is not None:
        chosen = configs.load_run(resume)
    else:
        chosen = configs.load(config) if config is not None else configs.preset(preset or "wild")
    given = {
        "folders": [str(path) for path in folders or []] or None,
        "validation": [str(path) for path in validation or []] or None,
        "epochs": epochs,
        "batch_size": batch_size,
        "crop_size": crop_size,
        "dtype": dtype,
        "device": device,
        "name": name,
    }
    chosen = chosen.changed(**{name: value for name, value in given.items() if value is not None})
    chosen = chosen.overridden(settings or [])
    if print_config:
        print(chosen.to_json(), end="")
        return
    if resume is None and output is None:
        raise InputError("Missing option '--output' / '-o': a new folder for the checkpoints")

    from npr_model.training.loop import train as run

    run_folder = resume or output
    try:
        with TrainingProgress() as progress:
            checkpoint = run(
                chosen,
                run_folder,
                resume=resume is not None,
                on_read=progress.read,
                on_start=progress.start,
                on_step=progress.step,
                on_epoch=print_epoch,
            )
    except KeyboardInterrupt:
        err.print(f"npr: interrupted; npr train --resume {escape(str(run_folder))} continues from the last saved step")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if progress.started:
        out.print(f"checkpoint: {escape(str(checkpoint))}", soft_wrap=True)


class TrainingProgress:
    """The callbacks of ``train``, in the main process: a bar on stderr (on a terminal only), the plan on stdout."""

    def __init__(self) -> None:
        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        columns += [TextColumn("{task.fields[note]}"), TimeElapsedColumn()]
        self._bar = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
        self._task = None
        self.started = False

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def _begin(self, what: str, total: int, done: int = 0) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=total, completed=done, note="")

    def read(self, count: int, total: int) -> None:
        if self._task is None:
            self._begin("reading all images once", total)
        self._bar.advance(self._task, count)

    def start(self, plan: Plan) -> None:
        work_begins()
        self.started = True
        config, steps = plan.config, plan.steps * plan.config.epochs
        shared = f" in {plan.processes} processes" if plan.processes > 1 else ""
        out.print(
            f"{len(plan.samples)} training images, {len(plan.validation)} for validation; {config.epochs} epochs of "
            f"{plan.steps} steps of {config.batch_size} crops{shared}",
            soft_wrap=True,
        )
        if plan.first_step:
            out.print(f"continued after {plan.first_step} of {steps} steps")
        if plan.inspection:
            out.print(str(plan.inspection), soft_wrap=True, highlight=False)
            if plan.inspection.classes_differ and not config.match_classes:
                out.print(
                    "[yellow]warning: the classes differ in file format, so the network may learn the codec; try --set "
                    "match_classes=true[/]",
                    soft_wrap=True,
                )
        self._began = time.perf_counter(), plan.first_step
        self._begin("training", steps, plan.first_step)

    def step(self, step: Step) -> None:
        began, first_step = self._began
        rate = (step.number - first_step) * step.images / (time.perf_counter() - began)
        note = f"steps  loss {step.loss:.4f}  {rate:.1f} images/s  {step.waiting:.0%} waiting for data"
        self._bar.update(self._task, completed=step.number, note=note)


def print_epoch(epoch: Epoch) -> None:
    """A line on stdout."""
    text = (
        f"epoch {epoch.number}: loss {epoch.loss:.4f}, accuracy {100 * epoch.accuracy:.1f}, {epoch.rate:.1f} images/s, "
        f"{epoch.waiting:.0%} of the time waiting for data"
    )
    if epoch.score is not None:
        mean = epoch.validation.mean
        text += f"; validation accuracy {100 * mean.accuracy:.1f}, average precision {100 * epoch.score:.1f}"
    out.print(text, soft_wrap=True, highlight=False)

"""What a training prints: plan and epochs on stdout; a progress bar, warnings and how to continue on stderr."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from npr_model.commands.shared.terminal import EXIT_INTERRUPTED, err, out, warn, warn_of_data, work_begins

if TYPE_CHECKING:
    from npr_model.training.loop import Callbacks, Epoch, Plan, Step


class TrainingProgress:
    """Prints the progress of trainings, one after another; a context manager. The bar is shown on a terminal only.

    Attributes:
        started: Whether a training has begun.
    """

    def __init__(self) -> None:
        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        columns += [TextColumn("{task.fields[note]}"), TimeElapsedColumn()]
        self._bar = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
        self._task: TaskID | None = None
        self._began = 0.0
        self._first_step = 0
        self.started = False

    @property
    def callbacks(self) -> Callbacks:
        """For :func:`npr_model.training.loop.train`."""
        from npr_model.training.loop import Callbacks

        return Callbacks(on_read=self._read, on_start=self._start, on_step=self._step, on_epoch=_print_epoch)

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def _show(self, what: str, total: int, done: int = 0) -> TaskID:
        """Show a new bar instead of the last one."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=total, completed=done, note="")
        return self._task

    def _read(self, count: int, total: int) -> None:
        task = self._show("reading all images once", total) if self._task is None else self._task
        self._bar.advance(task, count)

    def _start(self, plan: Plan) -> None:
        work_begins()
        self.started = True
        self._began, self._first_step = time.perf_counter(), plan.first_step
        _print_plan(plan)
        self._show("training", plan.steps * plan.config.epochs, plan.first_step)

    def _step(self, step: Step) -> None:
        rate = (step.number - self._first_step) * step.images / (time.perf_counter() - self._began)
        note = f"steps  loss {step.loss:.4f}  {rate:.1f} images/s  {step.waiting:.0%} waiting for data"
        if self._task is not None:
            self._bar.update(self._task, completed=step.number, note=note)


@contextlib.contextmanager
def saying_how_to_continue(hint: str) -> Iterator[None]:
    """Turn Ctrl-C during a training into a line that says how to go on, and the exit code of an interruption."""
    try:
        yield
    except KeyboardInterrupt:
        err.print(f"npr: interrupted; {escape(hint)} from the last saved step", soft_wrap=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _print_plan(plan: Plan) -> None:
    config, images = plan.config, plan.images
    shared = f" in {plan.processes} processes" if plan.processes > 1 else ""
    out.print(
        f"{len(images.samples)} training images, {len(images.validation)} for validation; {config.epochs} epochs of "
        f"{plan.steps} steps of {config.batch_size} crops{shared}",
        soft_wrap=True,
    )
    warn_of_data(images.left_out)
    if plan.first_step:
        out.print(f"continued after {plan.first_step} of {plan.steps * config.epochs} steps")
    if plan.inspection:
        out.print(str(plan.inspection), soft_wrap=True, highlight=False)
        if plan.inspection.classes_differ and not config.match_classes:
            warn("the classes differ in file format, so the network may learn the codec; try --set match_classes=true")


def _print_epoch(epoch: Epoch) -> None:
    text = (
        f"epoch {epoch.number}: loss {epoch.loss:.4f}, accuracy {100 * epoch.accuracy:.1f}, {epoch.rate:.1f} images/s, "
        f"{epoch.waiting:.0%} of the time waiting for data"
    )
    mean = epoch.validation.mean if epoch.validation else None
    if mean is not None and mean.accuracy is not None and epoch.score is not None:
        text += f"; validation accuracy {100 * mean.accuracy:.1f}, average precision {100 * epoch.score:.1f}"
    out.print(text, soft_wrap=True, highlight=False)

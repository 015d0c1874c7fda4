"""What the subcommands share: exit codes, common options, bars, and printing what came from outside."""

from __future__ import annotations

import contextlib
import functools
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from npr_model.errors import InputError

if TYPE_CHECKING:
    import torch

    from npr_model.screening.runner import Scorer

EXIT_FAILED_INPUTS = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

out = Console()
err = Console(stderr=True)

Checkpoint = Annotated[
    str, typer.Option(help="A bundled checkpoint's name, or the path of a .safetensors or .pth file.")
]
ViewOption = Annotated[
    str | None,
    typer.Option(
        "--view",
        help="Pixels the network sees: native, crop:S, resize:S or tile:S. Default: the checkpoint's.",
        show_default=False,
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images of one size scored together.")]
Workers = Annotated[int, typer.Option(min=0, help="Decoding threads; 0 is one a core.")]
Backend = Annotated[
    str | None, typer.Option(help="Kernels to use, see `npr info`. Default: the best there is.", show_default=False)
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="float32, bfloat16 or int8. Default: bfloat16 where the hardware has it.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda; auto takes CUDA where there is a GPU.")]


def make_scorer(
    checkpoint: str,
    view: str | None,
    batch_size: int,
    workers: int,
    backend: str | None,
    dtype: str | None,
    device: str,
    max_pixels: int | None = None,
) -> Scorer:
    """What `evaluate` and `calibrate` score with; usage errors before the slow parts."""
    make = scorer_maker(checkpoint, view, batch_size, workers, backend, dtype, max_pixels)
    return make(device=chosen_device(device))


def scorer_maker(
    checkpoint: str,
    view: str | None,
    batch_size: int,
    workers: int,
    backend: str | None,
    dtype: str | None,
    max_pixels: int | None = None,
    false_positive_rate: float | None = None,
    cache: Path | None = None,
) -> functools.partial[Scorer]:
    """The scorer but for its device; it can be pickled. Usage errors before the slow parts."""
    from npr_model.imaging.limits import MAX_PIXELS
    from npr_model.imaging.views import View

    parsed = View.parse(view) if view else None

    from npr_kernels.backends import registry
    from npr_model import checkpoints
    from npr_model.screening.runner import Scorer
    from npr_model.verdicts import Calibration

    if backend is not None:
        registry.get(backend)
    loaded = checkpoints.load(checkpoint, backend=backend)
    calibration = loaded.metadata.calibration
    if false_positive_rate is not None:
        calibration = (calibration or Calibration()).at(false_positive_rate)
    return functools.partial(
        Scorer,
        loaded,
        view=parsed,
        calibration=calibration,
        batch_size=batch_size,
        workers=workers,
        dtype=scoring_dtype(dtype),
        max_pixels=max_pixels or MAX_PIXELS,
        cache=cache,
    )


def scoring_dtype(name: str | None) -> torch.dtype | None:
    import torch

    if name not in (None, "float32", "bfloat16", "int8"):
        raise InputError(f"no dtype {name!r} to score in; give float32, bfloat16 or int8")
    return getattr(torch, name) if name else None


def chosen_device(name: str) -> str:
    from npr_model.devices import choose_device

    return choose_device(name)


@contextlib.contextmanager
def progress_bar(what: str, total: int | None, unit: str = "images") -> Iterator[Any]:
    """A bar on stderr with ``unit``/s; gives ``advance(count, note="")``. Shown on a terminal only."""
    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    columns += [
        TextColumn(f"{{task.fields[rate]:.1f}} {unit}/s"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    ]
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(what, total=total, rate=0.0, note="")
        began = time.perf_counter()

        def advance(count: int, note: str = "") -> None:
            done = progress.tasks[0].completed + count
            progress.update(task, advance=count, rate=done / (time.perf_counter() - began), note=note)

        yield advance


@contextlib.contextmanager
def termination_interrupts() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that a scheduler's stop keeps the rows, too."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread, which alone gets signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def listed(text: str | None) -> list[str]:
    """The parts of an option that takes several, separated by commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def printable(text: str) -> str:
    """Without control characters, which a file name may hold, and without markup."""
    return escape("".join(character if character.isprintable() else repr(character)[1:-1] for character in text))

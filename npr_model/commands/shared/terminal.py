"""Exit codes, progress bars, tables, and printing text that came from outside."""

from __future__ import annotations

import contextlib
import errno
import signal
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from npr_model.commands.shared.streams import StreamConsole

if TYPE_CHECKING:
    from npr_model.datasets.checks import Contradictions
    from npr_model.datasets.folders import LeftOut
    from npr_model.reporting.tables import Table

EXIT_FAILED_INPUTS = 1
EXIT_USAGE = 2
EXIT_FAILED = 3
EXIT_INTERRUPTED = 130
EXIT_CODES = """Exit codes:
  0    Done.
  1    Done, but some images could not be read or scored.
  2    Usage error: nothing was done.
  3    Failed after work had begun, for example on a full disk. What was written is kept.
  130  Interrupted. What was written is kept, and npr screen also writes its last rows."""

out = StreamConsole()
err = StreamConsole(stderr=True)
_state = {"work began": False}
_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


def start_command() -> None:
    """Call it before each command: errors are usage errors until :func:`work_begins` is called."""
    _state["work began"] = False


def work_begins() -> None:
    """From now on an error means that the command failed, not that it was used wrongly."""
    _state["work began"] = True


def error_code(error: BaseException | None = None) -> int:
    """The exit code of an expected error that is raised now.

    Before work begins that is EXIT_USAGE, unless this machine is at fault: a full disk, or no memory.
    """
    causes = []
    while error is not None:
        causes.append(error)
        error = error.__cause__
    machine = any(isinstance(one, MemoryError) or getattr(one, "errno", None) in _OF_THE_MACHINE for one in causes)
    return EXIT_FAILED if machine or _state["work began"] else EXIT_USAGE


@contextlib.contextmanager
def progress_bar(what: str, total: int | None, unit: str = "images") -> Iterator[Any]:
    """A bar on stderr with ``unit``/s; gives ``advance(count, note="")``. Shown on a terminal only.

    The first advance is where work begins, see :func:`work_begins`.
    """
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
            work_begins()
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


def print_table(table: Table) -> None:
    """Print a table with its notes below."""
    shown = RichTable(title=printable(table.title), title_justify="left")
    for number, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if number else "left", overflow="fold")
    for number, row in enumerate(table.rows):
        if number in table.emphasised:
            shown.add_section()
        shown.add_row(*map(printable, row), end_section=number in table.emphasised)
    out.print(shown)
    for note in table.notes:
        style = "yellow" if note.startswith("Warning") else ""
        out.print(printable(note), soft_wrap=True, highlight=False, style=style)


def warn(text: str) -> None:
    """Print a warning to stderr, in one line."""
    err.print(f"[yellow]npr: warning: {printable(text)}[/]", soft_wrap=True, highlight=False)


def warn_of_data(*problems: LeftOut | Contradictions) -> None:
    """Print a warning for each of the problems of a data set that is there."""
    for problem in problems:
        if text := str(problem):
            warn(text)


def print_errors(errors: Mapping[str, str]) -> None:
    """Print the images that could not be scored, each with the reason."""
    for source, error in errors.items():
        out.print(f"  {printable(source)}: {printable(error)}", soft_wrap=True)


def print_paths(*paths: object) -> None:
    """Print the files that were written, one per line."""
    for path in paths:
        out.print(printable(str(path)), soft_wrap=True)


def printable(text: str) -> str:
    """Without control characters, which a file name may hold, and without markup."""
    return escape("".join(character if character.isprintable() else repr(character)[1:-1] for character in text))

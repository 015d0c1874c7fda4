"""Standard input, output and error, whatever they are: terminals, pipes, full disks, or closed."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleDimensions

OUTPUT = "standard output"
_PIPE_COLUMNS = 2**15  # wide enough that no line is broken where no terminal shows it


class StreamConsole(Console):
    """rich's Console, except that lines are broken on terminals only, and that standard error may be closed or full."""

    @property
    def size(self) -> ConsoleDimensions:
        if self._is_on_terminal:
            return super().size
        return ConsoleDimensions(_PIPE_COLUMNS, 25)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    @property
    def encoding(self) -> str:
        """The stream's own; rich would take UTF-8 for granted and draw lines that the stream cannot show."""
        return (getattr(self.file, "encoding", None) or "utf-8").lower()

    @property
    def _is_on_terminal(self) -> bool:
        isatty = getattr(self.file, "isatty", lambda: False)
        return isatty()

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's, except that standard error is given up if it cannot be written."""
        try:
            super().print(*objects, **options)
        except OSError:
            if not self.stderr:
                raise
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Print no more. The command goes on: what it does is more than what it prints."""
        self.quiet = True
        _discard(cast(TextIO, self.file))


class _Output(io.TextIOWrapper):
    """Standard output. Its errors name it, and nothing is said if nobody reads it to the end."""

    def write(self, text: str) -> int:
        with self._watched():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._watched():
            super().flush()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _discard(self)
            if not isinstance(error, BrokenPipeError):
                error.filename = OUTPUT
                raise


def open_streams() -> None:
    """Open the null device for closed streams, and let standard output replace what its encoding lacks by "?"."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open as long as the program runs
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _Output(
            sys.stdout.buffer,
            sys.stdout.encoding,
            "replace",
            line_buffering=sys.stdout.line_buffering,
            write_through=sys.stdout.write_through,
        )


def print_error(line: str) -> None:
    """Print a line to standard error, if it can be written."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Let what is still written to a stream go to the null device, also at the end of the program."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)

"""``npr audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npr_model.commands.evaluate import Folders, Real, print_table
from npr_model.commands.terminal import EXIT_FAILED_INPUTS, out, printable, progress_bar
from npr_model.errors import InputError


def audit(
    folders: Folders,
    real: Real = None,
    output: Annotated[
        list[Path] | None, typer.Option("-o", "--output", help="A report: .json or .md; may be given more than once.")
    ] = None,
) -> None:
    """What tells the classes apart without a look at the pixels: formats, JPEG qualities, sizes, headers.

    Exit code 0: all headers were read; 1: some could not be, they are listed; 2: wrong usage.
    """
    from npr_model.evaluation.evaluate import collect
    from npr_model.studies.audit import SUFFIXES
    from npr_model.studies.audit import audit as run

    for path in output or []:
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path} has no suffix of an audit; give one of {', '.join(SUFFIXES)}")
    samples = collect(folders, real or [])
    with progress_bar("reading headers", total=len(samples), unit="files") as advance:
        result = run(samples, on_read=advance)
    for table in result.tables():
        print_table(table)
    for source, error in result.errors.items():
        out.print(f"  {printable(source)}: {printable(error)}", soft_wrap=True)
    for path in output or []:
        result.write(path)
    if result.errors:
        raise typer.Exit(EXIT_FAILED_INPUTS)

"""``npr audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npr_model.commands.options import Folders, Real
from npr_model.commands.terminal import EXIT_FAILED_INPUTS, print_errors, print_table, progress_bar
from npr_model.errors import InputError


def audit(
    folders: Folders,
    real: Real = None,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write the tables to a .json or .md file. Repeatable.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Check whether file headers alone tell the classes apart: formats, JPEG qualities and sizes.

    If they do, a detector's numbers on these files may measure the codec. No pixel is read. Files whose header cannot
    be read are listed and excluded.
    """
    from npr_model.evaluation.evaluate import collect
    from npr_model.studies.audit import SUFFIXES
    from npr_model.studies.audit import audit as run

    for path in output or []:
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"output {path} must end in {' or '.join(SUFFIXES)}")
    samples = collect(folders, real or [])
    with progress_bar("reading headers", total=len(samples), unit="files") as advance:
        result = run(samples, on_read=advance)
    for table in result.tables():
        print_table(table)
    print_errors(result.errors)
    for path in output or []:
        result.write(path)
    if result.errors:
        raise typer.Exit(EXIT_FAILED_INPUTS)

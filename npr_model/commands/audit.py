"""``npr audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npr_model.commands.shared.options import Folders, Real, report_option, require_suffix
from npr_model.commands.shared.samples import labelled_samples
from npr_model.commands.shared.terminal import EXIT_FAILED_INPUTS, print_errors, print_table, progress_bar


def audit(
    folders: Folders,
    real: Real = None,
    output: Annotated[list[Path] | None, report_option(".json", ".md")] = None,
) -> None:
    """Check whether file headers (format, JPEG quality, size) alone separate real from generated images.

    If they do, a detector's results on these files may only show that it recognises the file format. No pixel is
    decoded. Files whose header cannot be read are listed and excluded. Files that are in both classes are reported.
    """
    from npr_model.studies.audit import SUFFIXES
    from npr_model.studies.audit import audit as run

    require_suffix(output, SUFFIXES)
    samples = labelled_samples(folders, real)
    with progress_bar("reading headers", total=len(samples), unit="files") as advance:
        result = run(samples, on_read=advance)
    for table in result.tables():
        print_table(table)
    print_errors(result.errors)
    for path in output or []:
        result.write(path)
    if result.errors:
        raise typer.Exit(EXIT_FAILED_INPUTS)

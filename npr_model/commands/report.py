"""``npr report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npr_model.commands.terminal import out, printable, progress_bar
from npr_model.errors import InputError


def report(
    scores: Annotated[
        Path, typer.Argument(metavar="SCORES", help="What npr screen wrote: .parquet, .csv, .jsonl, or its folder.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The page, an .html file.")],
    title: Annotated[str | None, typer.Option(help="Its heading. Default: the name of SCORES.")] = None,
    images: Annotated[int, typer.Option(min=0, help="How many images to show.")] = 120,
) -> None:
    """A screening as one HTML page: totals, histograms with a threshold to move, errors, and a gallery with NPR maps.

    The page needs no other file and no network. Images are read once more for their thumbnails; those that are not at
    hand are shown as such.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"output {output} must end in .html")
    if not scores.exists():
        raise InputError(f"{scores} does not exist")

    from npr_model.screening.page import write_page
    from npr_model.screening.summary import summarise

    found = summarise(scores, images)
    if not found.total:
        raise InputError(f"{scores} has no rows")
    with progress_bar("reading images", total=len(found.gallery)) as advance:
        write_page(output, title or scores.name, found, advance)
    out.print(printable(str(output)), soft_wrap=True)

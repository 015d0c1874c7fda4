"""``npr report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npr_model.commands.shared.terminal import print_paths, progress_bar
from npr_model.errors import InputError


def report(
    scores: Annotated[
        Path,
        typer.Argument(metavar="SCORES", help="Output of npr screen: a .parquet, .csv or .jsonl file, or a folder."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Write the page to this .html file.")],
    title: Annotated[str | None, typer.Option(help="Heading of the page (default: the name of SCORES).")] = None,
    images: Annotated[int, typer.Option(min=0, help="Number of images in the gallery.")] = 120,
) -> None:
    """Make an HTML page about a screening: totals, histograms, errors, and a gallery with NPR maps.

    The page is one file and needs no network. Images are read again to make thumbnails; an image that is
    no longer there is shown without a thumbnail.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"output {output} must end in .html")
    if not scores.exists():
        raise InputError(f"{scores} does not exist")

    from npr_model.screening.page import write_page
    from npr_model.screening.summary import summarise

    summary = summarise(scores, images)
    if not summary.total:
        raise InputError(f"{scores} has no rows")
    with progress_bar("reading images", total=len(summary.gallery)) as advance:
        write_page(output, title or scores.name, summary, advance)
    print_paths(output)

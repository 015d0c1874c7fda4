"""``npr audit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from npr_model.commands.evaluate import Folders, Real
from npr_model.commands.terminal import EXIT_FAILED_INPUTS, out, printable, progress_bar

if TYPE_CHECKING:
    from npr_model.audit import Audit


def audit(
    folders: Folders,
    real: Real = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the result as JSON.", show_default=False)
    ] = None,
) -> None:
    """What tells the classes apart without a look at the pixels: formats, JPEG qualities, sizes, headers.

    Exit code 0: all headers were read; 1: some could not be, they are listed; 2: wrong usage.
    """
    import json
    from dataclasses import asdict

    from npr_model.audit import audit as run
    from npr_model.evaluate import collect
    from npr_model.files import replacing

    samples = collect(folders, real or [])
    with progress_bar("reading headers", total=len(samples), unit="files") as advance:
        result = run(samples, on_read=advance)
    _print(result)
    if output is not None:
        with replacing(output) as temporary:
            values = asdict(result) | {"findings": result.findings}
            temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if result.errors:
        raise typer.Exit(EXIT_FAILED_INPUTS)


def _print(result: Audit) -> None:
    table = Table("", *result.sides, title="Files", title_justify="left")
    for name, text in {
        "files": lambda side: str(side.files),
        "formats": lambda side: _counts(side.formats),
        "width: least, quartiles, most": lambda side: " ".join(map(str, side.widths)),
        "height": lambda side: " ".join(map(str, side.heights)),
        "JPEG quality": lambda side: _counts(side.qualities),
        "chroma subsampling": lambda side: _counts(side.subsampling),
        "different JPEG tables": lambda side: str(side.tables),
        "bits per pixel": lambda side: f"{side.bits_per_pixel:.2f}",
    }.items():
        table.add_row(name, *map(text, result.sides.values()))
    out.print(table)
    table = Table("generator", "ROC AUC of headers alone (%)", title="Baseline without pixels", title_justify="left")
    for name, value in result.baseline.items():
        table.add_row(printable(name) or "all", "too few files" if value is None else f"{100 * value:.1f}")
    out.print(table)
    for finding in result.findings:
        out.print(f"[yellow]warning: {finding}[/]", soft_wrap=True, highlight=False)
    if result.findings:
        out.print("A detector's numbers on these files may measure that; npr evaluate --equalise jpeg:90 evens it out.")
    for source, error in result.errors.items():
        out.print(f"  {printable(source)}: {printable(error)}", soft_wrap=True)


def _counts(counts: dict[str, int]) -> str:
    return "\n".join(f"{count} {name}" for name, count in counts.items()) or "-"

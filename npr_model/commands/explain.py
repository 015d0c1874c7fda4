"""``npr explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npr_model.commands.shared.options import folder_option, scoring_options
from npr_model.commands.shared.terminal import out, print_paths, work_begins
from npr_model.scoring.options import ScoringOptions


@scoring_options("checkpoint", "view", "device", "backend")
def explain(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")],
    output: Annotated[Path, folder_option("Write the figures and explanation.json to this folder.")],
    other: Annotated[
        Path | None,
        typer.Option(
            metavar="IMAGE",
            help="Also show how the NPR map differs from the map of this image, which must have the same size.",
            show_default=False,
        ),
    ] = None,
    *,
    options: ScoringOptions,
) -> None:
    """Show what the network reacts to: NPR map, class activation map, saliency and spectrum, as PNG files.

    npr screen scores tiles if the view is sample:KxS. npr explain uses the central 1024x1024 pixels instead, so the
    logit of a larger image can differ much from that of npr screen. Of a checkpoint that joins others, the logit is
    that of npr screen, and the figures show what its NPR network sees. The network runs in float32, so the third digit
    may differ.
    """
    from npr_model.reporting.figures import require_matplotlib

    require_matplotlib()

    from npr_model.explanation.explain_files import explain_files, write_explanation

    explained = explain_files([image, other] if other else [image], options)
    work_begins()
    written = write_explanation(output, *explained)
    row = explained[0].row
    out.print(f"logit {row.logit:.3f}, probability {row.probability:.3f}: {row.verdict}")
    if row.scored_by is not None:
        out.print(f"scored by {row.scored_by}")
    if row.logit_npr is not None:
        out.print(f"logit of NPR {row.logit_npr:.3f}, of the image encoder {row.logit_clip:.3f}")
    print_paths(*written)

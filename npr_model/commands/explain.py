"""``npr explain``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from npr_model.commands.options import folder_option, scoring_options
from npr_model.commands.terminal import out, print_paths, work_begins
from npr_model.errors import InputError
from npr_model.files import readable_name
from npr_model.scoring.options import ScoringOptions

if TYPE_CHECKING:
    import numpy as np

    from npr_model.checkpoints import LoadedCheckpoint
    from npr_model.explanation.explain import Explanation
    from npr_model.imaging.decode import DecodedImage
    from npr_model.imaging.views import View
    from npr_model.provenance.declaration import Declaration

SHOWN = 1024  # side of the central part that is shown where the network sees several parts


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
    """Show why an image got its verdict: NPR map, class activation map, saliency and spectrum, as PNG files.

    For a checkpoint whose view is sample:KxS, figures and logit are those of the central 1024x1024 pixels.
    The network runs in float32, so the logit may differ from that of npr screen in the third digit.
    """
    from npr_model.devices import choose_device
    from npr_model.figures import require_matplotlib
    from npr_model.imaging.views import View

    given_view = View.parse(options.view) if options.view else None
    require_matplotlib()

    from npr_model import checkpoints
    from npr_model.detectors.npr import NPRDetector
    from npr_model.explanation import heat_maps
    from npr_model.explanation.explain import explain
    from npr_model.files import write_text

    loaded = checkpoints.load(options.checkpoint, backend=options.backend)
    if not isinstance(loaded.model, NPRDetector):
        raise InputError(
            f"checkpoint {options.checkpoint} is a {loaded.metadata.detector} detector; only npr has NPR maps to show"
        )
    view = given_view or loaded.metadata.view
    if view.kind == "sample" and given_view is None:  # maps show one part
        view = View("crop", SHOWN)
    paths = [image, other] if other else [image]
    pictures = [_read(path, view, loaded.model.grid_size) for path in paths]
    _require_equal_sizes([picture.pixels for picture in pictures])
    model = loaded.model.to(choose_device(options.device))
    explanations = [explain(model, picture.pixels) for picture in pictures]

    work_begins()
    written = heat_maps.plot_explanation(pictures[0].pixels, explanations[0], output)
    if other:
        written.append(heat_maps.plot_difference(explanations[0], explanations[1], output))
    values = [
        {"source": readable_name(path)} | _describe(picture, explanation, loaded, view)
        for path, picture, explanation in zip(paths, pictures, explanations, strict=True)
    ]
    result = values[0] | ({"other": values[1]} if other else {})
    written.append(output / "explanation.json")
    write_text(written[-1], json.dumps(result, indent=1) + "\n")
    out.print(f"logit {explanations[0].logit:.3f}, probability {result['probability']:.3f}: {result['verdict']}")
    print_paths(*written)


def _require_equal_sizes(pictures: list[np.ndarray]) -> None:
    if len({pixels.shape for pixels in pictures}) > 1:
        sizes = " and ".join(f"{pixels.shape[1]}x{pixels.shape[0]}" for pixels in pictures)
        raise InputError(f"the images are {sizes} pixels; --other needs equal sizes: try --view crop:S")


class _Picture(NamedTuple):
    """A file's image, the pixels of it that the network sees, its condition, and what it declares."""

    decoded: DecodedImage
    pixels: np.ndarray
    condition: str | None
    declaration: Declaration | None


def _read(path: Path, view: View, grid_size: int) -> _Picture:
    from npr_model import datasets
    from npr_model.imaging.condition import file_facts
    from npr_model.imaging.errors import ImageError
    from npr_model.imaging.headers import read_encoding
    from npr_model.provenance.declaration import read_declaration

    try:
        decoded = datasets.read(path)
        pixels = view.apply(decoded.pixels, grid_size)
    except ImageError as error:
        raise InputError(f"{readable_name(path)}: {error}") from error
    condition = None
    with contextlib.suppress(ImageError):  # a header that only the decoder understands
        condition = file_facts(read_encoding(path), decoded.pixels).condition
    return _Picture(decoded, pixels, condition, read_declaration(path.read_bytes(), str(decoded.format)))


def _describe(picture: _Picture, explanation: Explanation, loaded: LoadedCheckpoint, view: View) -> dict:
    """The columns of npr screen, and numbers that summarise the maps."""
    import numpy as np

    from npr_model.provenance.declaration import GENERATED
    from npr_model.verdicts import DECLARED, Calibration

    calibration = loaded.metadata.calibration or Calibration()
    decoded, declaration = picture.decoded, picture.declaration
    verdict = calibration.of(picture.condition).verdict(explanation.logit)
    magnitudes = np.abs(explanation.npr)
    return {
        "logit": explanation.logit,
        "probability": calibration.probability(explanation.logit),
        "verdict": DECLARED if declaration and declaration.kind == GENERATED else verdict,
        "condition": picture.condition,
        "declared": declaration.kind or None if declaration else None,
        "declared_by": declaration.evidence if declaration else None,
        "width": decoded.width,
        "height": decoded.height,
        "format": decoded.format,
        "decoder": decoded.decoder,
        "view": str(view),
        "model": loaded.model_id,
        "calibration": dataclasses.asdict(calibration),
        "npr": {
            "mean_magnitude": dict(zip(("red", "green", "blue"), magnitudes.mean((1, 2)).tolist(), strict=True)),
            "share_of_zeros": float((explanation.npr == 0).mean()),
        },
        "activation": explanation.activation.tolist(),
    }

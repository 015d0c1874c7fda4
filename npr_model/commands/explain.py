"""``npr explain``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from npr_model.commands.options import folder_option, scoring_options
from npr_model.commands.terminal import out, print_paths, work_begins
from npr_model.errors import InputError
from npr_model.files import readable_name
from npr_model.scoring.options import ScoringOptions

if TYPE_CHECKING:
    import numpy as np

    from npr_model.explanation.explain import Explanation
    from npr_model.scoring.decoding import Decoder
    from npr_model.scoring.rows import Row
    from npr_model.verdicts import Calibration

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
    if given_view and given_view.kind == "sample":
        raise InputError(f"view {given_view} has several parts: use native, crop:S, resize:S or tile:S here")
    require_matplotlib()

    from npr_model import checkpoints
    from npr_model.detectors.npr import NPRDetector
    from npr_model.explanation import heat_maps
    from npr_model.explanation.explain import explain
    from npr_model.files import write_text
    from npr_model.scoring.decoding import Decoder
    from npr_model.verdicts import Calibration

    loaded = checkpoints.load(options.checkpoint, backend=options.backend)
    if not isinstance(loaded.model, NPRDetector):
        parts = getattr(loaded.model, "parts", ())
        advice = "; name the checkpoint of one of its parts instead" if parts else ""
        raise InputError(
            f"checkpoint {options.checkpoint} is of the detector {loaded.metadata.detector}; only npr has NPR maps to "
            f"show{advice}"
        )
    view = given_view or loaded.metadata.view
    if view.kind == "sample" and given_view is None:  # maps show one part
        view = View("crop", SHOWN)
    paths = [image, other] if other else [image]
    decoder = Decoder(view, loaded.model_id, loaded.model.grid_size)
    rows, pictures = zip(*(_read(path, decoder) for path in paths), strict=True)
    _require_equal_sizes(pictures)
    model = loaded.model.to(choose_device(options.device))
    explanations = [explain(model, pixels) for pixels in pictures]

    work_begins()
    written = heat_maps.plot_explanation(pictures[0], explanations[0], output)
    if other:
        written.append(heat_maps.plot_difference(explanations[0], explanations[1], output))
    calibration = loaded.metadata.calibration or Calibration()
    values = [_describe(row, explanation, calibration) for row, explanation in zip(rows, explanations, strict=True)]
    result = values[0] | ({"other": values[1]} if other else {})
    written.append(output / "explanation.json")
    write_text(written[-1], json.dumps(result, indent=1) + "\n")
    out.print(f"logit {explanations[0].logit:.3f}, probability {result['probability']:.3f}: {result['verdict']}")
    print_paths(*written)


def _require_equal_sizes(pictures: Sequence[np.ndarray]) -> None:
    if len({pixels.shape for pixels in pictures}) > 1:
        sizes = " and ".join(f"{pixels.shape[1]}x{pixels.shape[0]}" for pixels in pictures)
        raise InputError(f"the images are {sizes} pixels; --other needs equal sizes: try --view crop:S")


def _read(path: Path, decoder: Decoder) -> tuple[Row, np.ndarray]:
    """What is known of a file, and the pixels of it that the network sees."""
    from npr_model.scoring.items import file_item

    decoded = decoder.decode(file_item(path))
    if decoded.parts is None:
        raise InputError(f"{readable_name(path)}: {decoded.row.error}")
    return decoded.row, decoded.parts[0]


def _describe(row: Row, explanation: Explanation, calibration: Calibration) -> dict:
    """The columns of npr screen, and numbers that summarise the maps."""
    import numpy as np

    from npr_model.scoring.rows import judged

    magnitudes = np.abs(explanation.npr)
    columns = judged(row, explanation.logit, calibration).as_dict()
    return {name: columns[name] for name in columns if name not in ("error", "error_code", "milliseconds")} | {
        "calibration": dataclasses.asdict(calibration),
        "npr": {
            "mean_magnitude": dict(zip(("red", "green", "blue"), magnitudes.mean((1, 2)).tolist(), strict=True)),
            "share_of_zeros": float((explanation.npr == 0).mean()),
        },
        "activation": explanation.activation.tolist(),
    }

"""``npr explain``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from npr_model.commands.terminal import Backend, Checkpoint, Device, ViewOption, chosen_device, out, printable
from npr_model.errors import InputError, reason

if TYPE_CHECKING:
    import numpy as np

    from npr_model.checkpoints import LoadedCheckpoint
    from npr_model.explanation.explain import Explanation
    from npr_model.imaging.decode import DecodedImage
    from npr_model.imaging.views import View


def explain(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the figures and explanation.json.")],
    other: Annotated[
        Path | None,
        typer.Option(help="Another image of the same size, whose NPR map is subtracted.", show_default=False),
    ] = None,
    checkpoint: Checkpoint = "preview",
    view: ViewOption = None,
    backend: Backend = None,
    device: Device = "auto",
) -> None:
    """Why an image got its verdict: NPR map, class activation map, saliency and spectrum, as PNG files.

    The network runs in float32, so that the logit may differ from npr screen's in the third digit.
    Exit code 0: done; 2: wrong usage, or an image that cannot be explained.
    """
    from npr_model.figures import require_matplotlib
    from npr_model.imaging.views import View

    chosen_view = View.parse(view) if view else None
    require_matplotlib()

    from npr_kernels.backends import registry
    from npr_model import checkpoints
    from npr_model.explanation import heat_maps
    from npr_model.explanation.explain import explain
    from npr_model.files import atomic_write

    if backend is not None:
        registry.get(backend)
    loaded = checkpoints.load(checkpoint, backend=backend)
    if loaded.model.detector != "npr":
        raise InputError(f"checkpoint {checkpoint} is of the detector {loaded.model.detector}: only npr has NPR maps")
    chosen_view = chosen_view or loaded.metadata.view
    pictures = [_read(path, chosen_view, loaded.model.grid_size) for path in (image, *([other] if other else []))]
    if len({pixels.shape for _, pixels in pictures}) > 1:
        sizes = " and ".join(f"{pixels.shape[1]}x{pixels.shape[0]}" for _, pixels in pictures)
        raise InputError(f"the images are {sizes} pixels: a difference needs one size, as --view crop:S may give")
    model = loaded.model.to(chosen_device(device))
    found = [explain(model, pixels) for _, pixels in pictures]

    written = heat_maps.plot_explanation(pictures[0][1], found[0], output)
    if other:
        written.append(heat_maps.plot_difference(found[0], found[1], output))
    values = [
        _describe(path, decoded, one, loaded, chosen_view)
        for path, (decoded, _), one in zip((image, other), pictures, found, strict=False)
    ]
    result = values[0] | ({"other": values[1]} if other else {})
    written.append(output / "explanation.json")
    with atomic_write(written[-1]) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    out.print(f"logit {found[0].logit:.3f}, probability {result['probability']:.3f}: {result['verdict']}")
    for path in written:
        out.print(printable(str(path)), soft_wrap=True)


def _read(path: Path, view: View, grid_size: int) -> tuple[DecodedImage, np.ndarray]:
    """A file's image, and the pixels of it that the network sees."""
    from npr_model.imaging.decode import ImageError, decode

    try:
        decoded = decode(path.read_bytes())
        return decoded, view.apply(decoded.pixels, grid_size)
    except ImageError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from error


def _describe(path: Path, decoded: DecodedImage, found: Explanation, loaded: LoadedCheckpoint, view: View) -> dict:
    """What was explained, by the names of npr screen's columns, and numbers of the maps that can be compared."""
    import numpy as np

    from npr_model.files import readable_name
    from npr_model.verdicts import Calibration

    calibration = loaded.metadata.calibration or Calibration()
    magnitudes = np.abs(found.npr)
    return {
        "source": readable_name(path),
        "logit": found.logit,
        "probability": calibration.probability(found.logit),
        "verdict": calibration.verdict(found.logit),
        "width": decoded.width,
        "height": decoded.height,
        "format": decoded.format,
        "decoder": decoded.decoder,
        "view": str(view),
        "model": loaded.model_id,
        "calibration": dataclasses.asdict(calibration),
        "npr": {
            "mean_magnitude": dict(zip(("red", "green", "blue"), magnitudes.mean((1, 2)).tolist(), strict=True)),
            "share_of_zeros": float((found.npr == 0).mean()),
        },
        "activation": found.activation.tolist(),
    }

"""Explanations of image files, with their verdicts: what ``npr explain`` does."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from npr_model import checkpoints
from npr_model.detectors.base import JoinedNetwork
from npr_model.detectors.npr import NPRDetector
from npr_model.devices import choose_device
from npr_model.errors import InputError
from npr_model.explanation import heat_maps
from npr_model.explanation.explain import Explanation, explain, npr_network
from npr_model.files import readable_name, write_text
from npr_model.imaging.views import View
from npr_model.scoring.decoding import Decoder
from npr_model.scoring.items import file_item
from npr_model.scoring.options import ScoringOptions
from npr_model.scoring.rows import Row, judged
from npr_model.scoring.scorer import Scorer
from npr_model.verdicts import Calibration

SHOWN = 1024  # side of the central part that is shown where the network sees several parts
RESULT = "explanation.json"


@dataclass(frozen=True)
class ExplainedFile:
    """An image file with its verdict and the maps that explain it.

    Attributes:
        row: What ``npr screen`` would say of the part that is shown. Of a checkpoint that joins others: what it would
            say of the whole file.
        pixels: The part that is shown, (H, W, 3) uint8.
        explanation: Its maps, by the NPR network that had a part in the logit.
        calibration: What the verdict was judged by.
    """

    row: Row
    pixels: np.ndarray
    explanation: Explanation
    calibration: Calibration

    def as_dict(self) -> dict[str, Any]:
        """Return the columns of ``npr screen``, and numbers that summarise the maps."""
        columns, magnitudes = self.row.as_dict(), np.abs(self.explanation.npr)
        return {name: columns[name] for name in columns if name not in ("error", "error_code", "milliseconds")} | {
            "calibration": dataclasses.asdict(self.calibration),
            "npr": {
                "mean_magnitude": dict(zip(heat_maps.CHANNELS, magnitudes.mean((1, 2)).tolist(), strict=True)),
                "share_of_zeros": float((self.explanation.npr == 0).mean()),
            },
            "activation": self.explanation.activation.tolist(),
        }


def explain_files(images: Sequence[str | os.PathLike], options: ScoringOptions) -> list[ExplainedFile]:
    """Explain the verdicts on files that have one size after the view, so that their maps can be compared.

    Args:
        images: The files.
        options: Its checkpoint, view, device and backend count; the network runs in float32. With the view ``sample``,
            the maps show the central SHOWN x SHOWN pixels.

    Raises:
        InputError: The checkpoint has no NPR maps, the view has several parts, a file cannot be read or scored, or
            sizes differ.
    """
    given_view = View.parse(options.view) if options.view else None
    if given_view and given_view.kind == "sample":
        raise InputError(f"view {given_view} has several parts: use native, crop:S, resize:S or tile:S here")
    loaded = checkpoints.load(options.checkpoint, backend=options.backend)
    joined = isinstance(loaded.model, JoinedNetwork)
    if not joined and not isinstance(loaded.model, NPRDetector):
        name, detector = options.checkpoint, loaded.metadata.detector
        raise InputError(f"checkpoint {name} is of the detector {detector}; only npr has NPR maps to show")
    view = given_view or loaded.metadata.view
    if view.kind == "sample":  # maps show one part
        view = View("crop", SHOWN)
    decoder, device = Decoder(view, loaded.model_id, loaded.model.grid_size), choose_device(options.device)
    scorer = Scorer(loaded, view=given_view, dtype=torch.float32, device=device) if joined else None
    decoded = [_read(image, decoder) for image in images]
    _require_equal_sizes([pixels for _, pixels in decoded])
    calibration = loaded.metadata.calibration or Calibration()
    explained = []
    for image, (row, pixels) in zip(images, decoded, strict=True):
        if scorer is not None:
            (row,) = scorer.score([file_item(image)])
            if row.error is not None:
                raise InputError(f"{readable_name(image)}: {row.error}")
        network = npr_network(loaded.model, row)
        assert network is not None  # as every checkpoint that joins others has one
        explanation = explain(network.to(device), pixels)
        if scorer is None:
            row = judged(row, explanation.logit, calibration)
        explained.append(ExplainedFile(row, pixels, explanation, calibration))
    return explained


def write_explanation(folder: Path, explained: ExplainedFile, other: ExplainedFile | None = None) -> list[Path]:
    """Write the figures and RESULT to a folder, also the difference to ``other`` if given; return the paths."""
    written = heat_maps.plot_explanation(explained.pixels, explained.explanation, folder)
    values = explained.as_dict()
    if other is not None:
        written.append(heat_maps.plot_difference(explained.explanation, other.explanation, folder))
        values["other"] = other.as_dict()
    written.append(folder / RESULT)
    write_text(written[-1], json.dumps(values, indent=1) + "\n")
    return written


def _require_equal_sizes(pictures: Sequence[np.ndarray]) -> None:
    if len({pixels.shape for pixels in pictures}) > 1:
        sizes = " and ".join(f"{pixels.shape[1]}x{pixels.shape[0]}" for pixels in pictures)
        raise InputError(f"the images are {sizes} pixels; --other needs equal sizes: try --view crop:S")


def _read(path: str | os.PathLike, decoder: Decoder) -> tuple[Row, np.ndarray]:
    """What is known of a file, and the pixels of it that the network sees."""
    decoded = decoder.decode(file_item(path))
    if decoded.parts is None:
        raise InputError(f"{readable_name(path)}: {decoded.row.error}")
    return decoded.row, decoded.parts[0]

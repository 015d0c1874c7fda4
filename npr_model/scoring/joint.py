"""Which networks of a detector see an image, and how their logits become one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from npr_model.detectors.base import DetectorNetwork
from npr_model.detectors.cascade import Cascade
from npr_model.detectors.ojha import Ojha
from npr_model.detectors.pair import Pair
from npr_model.errors import reason
from npr_model.imaging.errors import ImageError
from npr_model.imaging.views import View
from npr_model.scoring.rows import NOT_SCORED, Row

LARGE = 2  # an image with a side of more than so many of the encoder's input is large
Judged = tuple[list[Row], list[float]]


class Networks:
    """Those of a detector with one network; others are subclasses. The scorer sends parts through ``first``.

    Attributes:
        first: The network that sees the parts of every image.
        second: One that sees the parts of the images in doubt; None if there is none.
        whole: Returns columns of the row from all pixels of an image, (H, W, 3) uint8, while it is decoded. None if no
            network sees whole images. Raises ImageError.
    """

    def __init__(self, detector: DetectorNetwork) -> None:
        self.first: DetectorNetwork = detector
        self.second: DetectorNetwork | None = None
        self.whole: Callable[[np.ndarray], dict[str, Any]] | None = None

    def judge(self, rows: list[Row], logits: list[float], ask_second: Callable[[Sequence[int]], list[float]]) -> Judged:
        """Return the rows of a batch with their columns, and the logits that count.

        Args:
            rows: Without score.
            logits: Of the first network.
            ask_second: Returns the second network's logits of the images with these numbers in the batch.
        """
        return rows, logits


class PairNetworks(Networks):
    """NPR sees the parts, and the encoder the whole image, and the middle of a large one."""

    def __init__(self, pair: Pair) -> None:
        first, encoder = pair.parts
        super().__init__(first)
        assert isinstance(encoder, Ojha)  # as a checkpoint's parts are checked
        encoder.check_ready()
        self._pair, self.whole = pair, partial(_encoder_logit, encoder, pair.detail)

    def judge(self, rows: list[Row], logits: list[float], ask_second: Callable[[Sequence[int]], list[float]]) -> Judged:
        joined = [replace(row, logit_npr=logit) for row, logit in zip(rows, logits, strict=True)]
        return joined, [self._pair.combined(row.logit_npr, row.logit_clip) for row in joined]  # type: ignore[arg-type]


class CascadeNetworks(Networks):
    """The second network sees the images about which the first is in doubt."""

    def __init__(self, cascade: Cascade) -> None:
        super().__init__(cascade.parts[0])
        self._cascade, self.second = cascade, cascade.parts[1]

    def judge(self, rows: list[Row], logits: list[float], ask_second: Callable[[Sequence[int]], list[float]]) -> Judged:
        rows, logits = [replace(row, scored_by=self._cascade.first_checkpoint) for row in rows], logits.copy()
        doubtful = [number for number, logit in enumerate(logits) if self._cascade.is_in_doubt(logit)]
        if doubtful:
            for number, logit in zip(doubtful, ask_second(doubtful), strict=True):
                rows[number], logits[number] = replace(rows[number], scored_by=self._cascade.second_checkpoint), logit
        return rows, logits


def networks_of(detector: DetectorNetwork) -> Networks:
    """Return the networks of a detector. Raises InputError if something that they need is not installed."""
    if isinstance(detector, Pair):
        return PairNetworks(detector)
    return CascadeNetworks(detector) if isinstance(detector, Cascade) else Networks(detector)


@torch.inference_mode()
def _encoder_logit(encoder: Ojha, detail: int | None, pixels: np.ndarray) -> dict[str, Any]:
    """The column ``logit_clip`` of (H, W, 3) uint8 pixels: the mean over the views that the encoder has of them."""
    whole = View("resize", encoder.side)
    views = [whole.apply(pixels)]
    if detail is not None and max(pixels.shape[:2]) > LARGE * encoder.side:
        views.append(whole.apply(View("crop", detail).apply(pixels)))
    try:  # one after the other, as other images are decoded at the same time
        logits = [encoder(torch.from_numpy(np.array(view)).permute(2, 0, 1)[None]).item() for view in views]
    except (RuntimeError, MemoryError) as error:
        raise ImageError(f"the image cannot be scored ({reason(error)})", NOT_SCORED) from error
    return {"logit_clip": float(np.float32(np.mean(logits)))}

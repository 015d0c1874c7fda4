"""What each network of a detector adds to a row: a detector alone, a pair, or a cascade.

The scorer sends the parts of an image through the first network. The rest of a joint detector's work is here.
"""

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

# An image that is more than LARGE times as long as the encoder's input loses most traces when it is made smaller. So
# the encoder sees its middle unchanged, too.
LARGE, DETAIL = 2, View("crop", 256)
Judged = tuple[list[Row], list[float]]


class Alone:
    """A detector of one network.

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


class OfPair(Alone):
    """NPR sees the parts, and the encoder the whole image, and the middle of a large one."""

    def __init__(self, pair: Pair) -> None:
        first, encoder = pair.parts
        super().__init__(first)
        encoder.check_ready()
        self._pair, self.whole = pair, partial(_encoder_logit, encoder)

    def judge(self, rows: list[Row], logits: list[float], ask_second: Callable[[Sequence[int]], list[float]]) -> Judged:
        joined = [replace(row, logit_npr=logit) for row, logit in zip(rows, logits, strict=True)]
        return joined, [self._pair.combined(row.logit_npr, row.logit_clip) for row in joined]  # type: ignore[arg-type]


class OfCascade(Alone):
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


def networks_of(detector: DetectorNetwork) -> Alone:
    """Return the networks of a detector. Raises InputError if something that they need is not installed."""
    if isinstance(detector, Pair):
        return OfPair(detector)
    return OfCascade(detector) if isinstance(detector, Cascade) else Alone(detector)


@torch.inference_mode()
def _encoder_logit(encoder: Ojha, pixels: np.ndarray) -> dict[str, Any]:
    """The column ``logit_clip`` of (H, W, 3) uint8 pixels: the mean over what the encoder sees of them."""
    whole = View("resize", encoder.side)
    seen = [whole.apply(pixels)]
    if max(pixels.shape[:2]) > LARGE * encoder.side:
        seen.append(whole.apply(DETAIL.apply(pixels)))
    try:
        return {"logit_clip": encoder(torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2)).mean().item()}
    except (RuntimeError, MemoryError) as error:
        raise ImageError(f"the image cannot be scored ({reason(error)})", NOT_SCORED) from error

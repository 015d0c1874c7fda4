"""Which networks of a detector see an image, and how their logits become one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from npr_model.detectors.base import DetectorNetwork
from npr_model.detectors.cascade import Cascade
from npr_model.detectors.ojha import Ojha
from npr_model.detectors.pair import Pair
from npr_model.imaging.views import View
from npr_model.scoring.decoding import Decoded
from npr_model.scoring.rows import Row

LARGE = 2  # an image with a side of more than so many of the encoder's input is large
Judged = tuple[list[Row], list[float]]
AskSecond = Callable[[Sequence[int]], list[float]]


class Networks:
    """Those of a detector with one network; others are subclasses. The scorer sends parts through ``first``.

    Attributes:
        first: The network that sees the parts of every image.
        second: One that sees the parts of the images in doubt; None if there is none.
        views: Returns what an image encoder sees of all pixels of an image: (H, W, 3) -> (V, S, S, 3) uint8. None if
            there is no encoder.
        columns: Returns columns of the row from these views, while other images are decoded. None if the encoder is
            asked later, by ``judge``. Raises RuntimeError or MemoryError.
    """

    def __init__(self, detector: DetectorNetwork) -> None:
        self.first: DetectorNetwork = detector
        self.second: DetectorNetwork | None = None
        self.views: Callable[[np.ndarray], np.ndarray] | None = None
        self.columns: Callable[[np.ndarray], dict[str, Any]] | None = None

    def judge(self, batch: Sequence[Decoded], logits: list[float], ask_second: AskSecond) -> Judged:
        """Return the rows of a batch with their columns, and the logits that count.

        Args:
            batch: The images, with rows without score.
            logits: Of the first network.
            ask_second: Returns the second network's logits of the images with these numbers in the batch.
        """
        return [decoded.row for decoded in batch], logits


class PairNetworks(Networks):
    """NPR sees the parts, and the encoder the whole image, and the middle of a large one."""

    def __init__(self, pair: Pair) -> None:
        first, encoder = pair.parts
        super().__init__(first)
        assert isinstance(encoder, Ojha)  # as a checkpoint's parts are checked
        encoder.check_ready()
        self._pair = pair
        self.views = partial(_encoder_views, encoder.side, pair.detail)
        self.columns = partial(_encoder_columns, encoder)

    def judge(self, batch: Sequence[Decoded], logits: list[float], ask_second: AskSecond) -> Judged:
        rows = [replace(decoded.row, logit_npr=logit) for decoded, logit in zip(batch, logits, strict=True)]
        return rows, [self._pair.combined(row.logit_npr, row.logit_clip) for row in rows]  # type: ignore[arg-type]


class CascadeNetworks(Networks):
    """The second detector sees the images about which the first network is in doubt."""

    def __init__(self, cascade: Cascade, workers: int) -> None:
        first, second = cascade.parts
        super().__init__(first)
        self._cascade, self._asked, self._workers = cascade, networks_of(second, workers), workers
        self.second, self.views = self._asked.first, self._asked.views

    def judge(self, batch: Sequence[Decoded], logits: list[float], ask_second: AskSecond) -> Judged:
        cascade = self._cascade
        rows = [replace(decoded.row, scored_by=cascade.first_checkpoint) for decoded in batch]
        counted = logits.copy()
        doubtful = [number for number, logit in enumerate(logits) if cascade.is_in_doubt(logit)]
        if doubtful:
            asked = [
                replace(decoded, row=replace(decoded.row, scored_by=cascade.second_checkpoint, **columns))
                for decoded, columns in self._with_columns([batch[number] for number in doubtful])
            ]
            found = self._asked.judge(asked, ask_second(doubtful), ask_second)
            for number, row, logit in zip(doubtful, *found, strict=True):
                rows[number], counted[number] = row, logit
        return rows, counted

    def _with_columns(self, batch: list[Decoded]) -> list[tuple[Decoded, dict[str, Any]]]:
        """Return the images with what the second detector's encoder says of them, if it has one."""
        columns = self._asked.columns
        if columns is None:
            return [(decoded, {}) for decoded in batch]
        views = [decoded.views for decoded in batch if decoded.views is not None]
        with ThreadPoolExecutor(self._workers) as pool:  # the encoder uses one core for an image
            return list(zip(batch, pool.map(columns, views), strict=True))


def networks_of(detector: DetectorNetwork, workers: int) -> Networks:
    """Return the networks of a detector. Raises InputError if something that they need is not installed.

    ``workers``: threads for an encoder that sees the images in doubt only.
    """
    if isinstance(detector, Pair):
        return PairNetworks(detector)
    return CascadeNetworks(detector, workers) if isinstance(detector, Cascade) else Networks(detector)


def _encoder_views(side: int, detail: int | None, pixels: np.ndarray) -> np.ndarray:
    """The whole image, and the middle of a large one, each resized to the encoder's side."""
    whole = View("resize", side)
    views = [whole.apply(pixels)]
    if detail is not None and max(pixels.shape[:2]) > LARGE * side:
        views.append(whole.apply(View("crop", detail).apply(pixels)))
    return np.stack(views)


@torch.inference_mode()
def _encoder_columns(encoder: Ojha, views: np.ndarray) -> dict[str, Any]:
    """The column ``logit_clip``: the mean over the views, one after the other, as other threads have others."""
    images = torch.from_numpy(np.array(views)).permute(0, 3, 1, 2)
    return {"logit_clip": float(np.float32(np.mean([encoder(image[None]).item() for image in images])))}

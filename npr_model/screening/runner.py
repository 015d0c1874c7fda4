"""One machine's run: items are decoded in threads, gathered into batches of one size, scored, and come out as rows."""

from __future__ import annotations

import copy
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch

from npr_kernels import BackendError
from npr_model import images
from npr_model.checkpoints import VERDICTS, Calibration, LoadedCheckpoint
from npr_model.errors import reason
from npr_model.images import DecodedImage, ImageError, View
from npr_model.screening.sources import Item

PENDING_PIXELS = 2**26  # decoded pixels that may wait for a batch of their size: 192 MiB
BATCH_PIXELS = 2**24  # pixels in one batch, so that large images are scored a few at a time


@dataclass(frozen=True)
class Row:
    """One scored item, or one that failed: then ``error`` says why, and what is not known is None.

    ``logit`` is float32 as the network gave it, ``probability`` its sigmoid after the calibration's temperature,
    ``width`` and ``height`` are the file's.
    """

    source: str
    logit: float | None = None
    probability: float | None = None
    verdict: str | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    decoder: str | None = None
    view: str | None = None
    error: str | None = None
    model: str | None = None

    as_dict = asdict


@dataclass(frozen=True)
class _Decoded:
    """A row still without score, and the pixels to score; no pixels where the row is an error."""

    row: Row
    pixels: np.ndarray | None


class Scorer:
    """Scores images with a loaded checkpoint.

    ``view`` and ``calibration`` None take the checkpoint's own. ``workers``: decoding threads (simplejpeg and Pillow
    work without the GIL), 0 for one a core, at most 16. At most 2 * workers images are decoded ahead, and
    PENDING_PIXELS wait for a batch, so memory stays bounded however long the listing.
    """

    def __init__(
        self,
        checkpoint: LoadedCheckpoint,
        *,
        view: View | None = None,
        calibration: Calibration | None = None,
        batch_size: int = 16,
        workers: int = 0,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        max_pixels: int = images.MAX_PIXELS,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.view = view or checkpoint.metadata.view
        self.batch_size = batch_size
        self.workers = workers or min(16, os.cpu_count() or 1)
        self.device = torch.device(device)
        self.max_pixels = max_pixels
        calibration = calibration or checkpoint.metadata.calibration
        self.calibrated = calibration is not None
        self.calibration = calibration or Calibration()
        self.model_id = checkpoint.model_id
        self._grid_size = checkpoint.model.grid_size
        self._model = checkpoint.model.to(self.device).for_inference(dtype)

    def with_view(self, view: View) -> Scorer:
        """The same network, not copied, that sees other pixels."""
        other = copy.copy(self)
        other.view = view
        return other

    def score(self, items: Iterable[Item]) -> Iterator[Row]:
        """One row an item, as soon as it is known: in batches of equal size, so not in the order of the items.

        The order depends on the items alone, not on the timing of threads. A bad item is a row with an error.
        """
        waiting: dict[tuple[int, int], list[_Decoded]] = {}
        pixels_waiting = 0
        for decoded in self._decode_all(items):
            if decoded.pixels is None:
                yield decoded.row
                continue
            size = decoded.pixels.shape[:2]
            batch = waiting.setdefault(size, [])
            batch.append(decoded)
            pixels_waiting += math.prod(size)
            if len(batch) == self.batch_size or len(batch) * math.prod(size) >= BATCH_PIXELS:
                pixels_waiting -= len(batch) * math.prod(size)
                yield from self._score_batch(waiting.pop(size))
            while pixels_waiting > PENDING_PIXELS:
                largest = max(waiting, key=lambda size: len(waiting[size]) * math.prod(size))
                pixels_waiting -= len(waiting[largest]) * math.prod(largest)
                yield from self._score_batch(waiting.pop(largest))
        for batch in waiting.values():
            yield from self._score_batch(batch)

    def _decode_all(self, items: Iterable[Item]) -> Iterator[_Decoded]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="npr-decode")
        ahead: deque[Future[_Decoded]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(self._decode, item))
                if len(ahead) >= 2 * self.workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _decode(self, item: Item) -> _Decoded:
        row = Row(item.source, view=str(self.view), model=self.model_id)
        try:
            decoded = images.decode(item.load(), max_pixels=self.max_pixels)
            row = _describe(row, decoded)
            return _Decoded(row, self.view.apply(decoded.pixels, self._grid_size))
        except ImageError as error:
            return _Decoded(replace(row, error=str(error)), None)
        except (OSError, MemoryError) as error:
            return _Decoded(replace(row, error=f"the file cannot be read ({reason(error)})"), None)

    def _score_batch(self, batch: list[_Decoded]) -> Iterator[Row]:
        try:
            logits = self._logits(np.stack([decoded.pixels for decoded in batch]))
        except BackendError:
            raise  # wrong for every batch, not for this one
        except (RuntimeError, MemoryError) as error:  # of memory, most likely: what fails alone, too, is an error row
            if len(batch) > 1:
                for decoded in batch:
                    yield from self._score_batch([decoded])
            else:
                yield replace(batch[0].row, error=f"the image cannot be scored ({reason(error)})")
            return
        for decoded, logit in zip(batch, logits, strict=True):
            yield self._finish(decoded.row, logit)

    def _logits(self, pixels: np.ndarray) -> list[float]:
        """(N, H, W, 3) uint8 to N logits. The permuted view has channels_last strides, which the kernels like best."""
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device)
        return self._model(x).squeeze(1).tolist()

    def _finish(self, row: Row, logit: float) -> Row:
        if not math.isfinite(logit):
            return replace(row, error=f"the network gave a logit of {logit}")
        probability = self.calibration.probability(logit)
        return replace(row, logit=logit, probability=probability, verdict=self.calibration.verdict(logit))


def _describe(row: Row, decoded: DecodedImage) -> Row:
    return replace(row, width=decoded.width, height=decoded.height, format=decoded.format, decoder=decoded.decoder)


@dataclass
class Summary:
    """Running totals over rows."""

    failed: int = 0
    verdicts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VERDICTS, 0))

    @property
    def scored(self) -> int:
        return sum(self.verdicts.values())

    def add(self, row: Row) -> None:
        if row.error is None:
            self.verdicts[row.verdict] += 1
        else:
            self.failed += 1

"""One machine's run: items are decoded in threads, gathered into batches of one size, scored, and come out as rows."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from npr_kernels import BackendError
from npr_model import images
from npr_model.checkpoints import VERDICTS, Calibration, LoadedCheckpoint
from npr_model.errors import reason
from npr_model.images import DecodedImage, ImageError, View
from npr_model.jpeg_quality import estimate_quality
from npr_model.screening.items import Item

TINY = 64  # pixels of the shorter side, below which a verdict rests on a few cells
KNOWN_ROWS = 2**14  # of identical files, so that each is scored once: about 10 MiB
PENDING_PIXELS = 2**26  # decoded pixels that may wait for a batch of their size: 192 MiB
BATCH_PIXELS = 2**24  # pixels in one batch, so that large images are scored a few at a time


@dataclass(frozen=True, slots=True)
class Row:
    """One scored item, or one that failed: then ``error`` says why, and what is not known is None.

    ``sha256``, in hex, is that of the encoded bytes. ``logit`` is float32 as the network gave it, ``probability`` its
    sigmoid after the calibration's temperature. ``width`` and ``height`` are the file's; ``jpeg_quality`` (the nearest
    of libjpeg's) and ``subsampling`` of the chroma are of JPEGs alone. ``flags``, separated by spaces: "tiny" (a side
    below TINY pixels), "odd" (not of whole cells), "resized" (made smaller by the view). ``error_code``: "unreadable",
    that of an :class:`npr_model.images.ImageError`, or "not_scored". ``milliseconds``: of reading and decoding, and its
    share of its batch's scoring.
    """

    source: str
    sha256: str | None = None
    logit: float | None = None
    probability: float | None = None
    verdict: str | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    jpeg_quality: int | None = None
    subsampling: str | None = None
    flags: str | None = None
    decoder: str | None = None
    view: str | None = None
    error: str | None = None
    error_code: str | None = None
    milliseconds: float | None = None
    model: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """By the names of the columns."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True)
class _Decoded:
    """A row still without score, and the pixels to score; no pixels where the row is finished already."""

    row: Row
    pixels: np.ndarray | None


class _Known:
    """The rows of the last KNOWN_ROWS different files, by the sha256 of their bytes; threads may look them up."""

    def __init__(self) -> None:
        self._rows: OrderedDict[str, Row] = OrderedDict()

    def add(self, row: Row) -> None:
        self._rows[row.sha256] = row
        if len(self._rows) > KNOWN_ROWS:
            self._rows.popitem(last=False)

    def find(self, row: Row) -> Row | None:
        """What is known of the same bytes, for the source of ``row``."""
        found = self._rows.get(row.sha256)
        return found and replace(found, source=row.source, milliseconds=row.milliseconds)


@dataclass
class Rates:
    """What a run has spent so far, to see whether decoding or the network holds it up."""

    workers: int
    decoded: int = 0
    decoding_seconds: float = 0.0
    scored: int = 0
    scoring_seconds: float = 0.0

    @property
    def decoding(self) -> float:
        """Images a second that all workers together could read and decode."""
        return self.decoded * self.workers / self.decoding_seconds if self.decoding_seconds else 0.0

    @property
    def scoring(self) -> float:
        """Images a second that the network could score."""
        return self.scored / self.scoring_seconds if self.scoring_seconds else 0.0

    @property
    def text(self) -> str:
        """Both, once they are known: the smaller one is what holds the run up."""
        return f"decoding {self.decoding:.0f}/s, network {self.scoring:.0f}/s" if self.scored else ""


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
        self.rates = Rates(self.workers)
        self._grid_size = checkpoint.model.grid_size
        self._model = checkpoint.model.to(self.device).for_inference(dtype)

    @property
    def identity(self) -> dict[str, str]:
        """What rows must have in common to stand in one output."""
        return {"model": self.model_id, "view": str(self.view), "threshold": f"{self.calibration.threshold:g}"}

    def with_view(self, view: View) -> Scorer:
        """The same network, not copied, that sees other pixels."""
        other = copy.copy(self)
        other.view = view
        return other

    def score(self, items: Iterable[Item]) -> Iterator[Row]:
        """One row an item, as soon as it is known: in batches of equal size, so not in the order of the items.

        The order depends on the items alone, not on the timing of threads. A bad item is a row with an error. Files of
        identical bytes are scored once, as long as no more than KNOWN_ROWS different ones lie between them.
        """
        self.rates = Rates(self.workers)
        known = _Known()
        waiting: dict[tuple[int, int], list[_Decoded]] = {}
        unscored: dict[str, tuple[int, int]] = {}  # by sha256 the batch in which its pixels wait
        pixels_waiting = 0

        def score(size: tuple[int, int]) -> Iterator[Row]:
            nonlocal pixels_waiting
            batch = waiting.pop(size)
            pixels_waiting -= len(batch) * math.prod(size)
            for decoded in batch:
                del unscored[decoded.row.sha256]
            for row in self._score_batch(batch):
                if row.error is None:
                    known.add(row)
                yield row

        for decoded in self._decode_all(items, known):
            if decoded.pixels is not None and decoded.row.sha256 in unscored:
                yield from score(unscored[decoded.row.sha256])
            if decoded.pixels is None or (twin := known.find(decoded.row)):
                yield decoded.row if decoded.pixels is None else twin
                continue
            size = decoded.pixels.shape[:2]
            batch = waiting.setdefault(size, [])
            batch.append(decoded)
            unscored[decoded.row.sha256] = size
            pixels_waiting += math.prod(size)
            if len(batch) == self.batch_size or len(batch) * math.prod(size) >= BATCH_PIXELS:
                yield from score(size)
            while pixels_waiting > PENDING_PIXELS:
                yield from score(max(waiting, key=lambda size: len(waiting[size]) * math.prod(size)))
        for size in list(waiting):
            yield from score(size)

    def _decode_all(self, items: Iterable[Item], known: _Known) -> Iterator[_Decoded]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="npr-decode")
        ahead: deque[Future[_Decoded]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(self._decode, item, known))
                if len(ahead) >= 2 * self.workers:
                    yield self._counted(ahead.popleft().result())
            while ahead:
                yield self._counted(ahead.popleft().result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _counted(self, decoded: _Decoded) -> _Decoded:
        self.rates.decoded += 1
        self.rates.decoding_seconds += decoded.row.milliseconds / 1000
        return decoded

    def _decode(self, item: Item, known: _Known) -> _Decoded:
        began = time.perf_counter()
        row = Row(item.source, view=str(self.view), model=self.model_id)
        pixels = None
        try:
            data = item.load()
            row = replace(row, sha256=hashlib.sha256(data).hexdigest())
            if twin := known.find(row):
                row = twin
            else:
                decoded = images.decode(data, max_pixels=self.max_pixels)
                row = _describe(row, data, decoded, self._grid_size)
                pixels = self.view.apply(decoded.pixels, self._grid_size)
                if self.view.kind == "resize" and self.view.size < min(decoded.width, decoded.height):
                    row = replace(row, flags=" ".join(filter(None, (row.flags, "resized"))))
        except ImageError as error:
            row = replace(row, error=str(error), error_code=error.code)
        except (OSError, MemoryError) as error:
            row = replace(row, error=f"the file cannot be read ({reason(error)})", error_code="unreadable")
        return _Decoded(replace(row, milliseconds=1000 * (time.perf_counter() - began)), pixels)

    def _score_batch(self, batch: list[_Decoded]) -> Iterator[Row]:
        began = time.perf_counter()
        try:
            logits = self._logits(np.stack([decoded.pixels for decoded in batch]))
        except BackendError:
            raise  # wrong for every batch, not for this one
        except (RuntimeError, MemoryError) as error:  # of memory, most likely: what fails alone, too, is an error row
            if len(batch) > 1:
                for decoded in batch:
                    yield from self._score_batch([decoded])
            else:
                yield _unscored(batch[0].row, f"the image cannot be scored ({reason(error)})")
            return
        seconds = time.perf_counter() - began
        self.rates.scored += len(batch)
        self.rates.scoring_seconds += seconds
        for decoded, logit in zip(batch, logits, strict=True):
            row = replace(decoded.row, milliseconds=decoded.row.milliseconds + 1000 * seconds / len(batch))
            yield self._finish(row, logit)

    def _logits(self, pixels: np.ndarray) -> list[float]:
        """(N, H, W, 3) uint8 to N logits. The permuted view has channels_last strides, which the kernels like best."""
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device)
        return self._model(x).squeeze(1).tolist()

    def _finish(self, row: Row, logit: float) -> Row:
        if not math.isfinite(logit):
            return _unscored(row, f"the network gave a logit of {logit}")
        probability = self.calibration.probability(logit)
        return replace(row, logit=logit, probability=probability, verdict=self.calibration.verdict(logit))


def _unscored(row: Row, error: str) -> Row:
    return replace(row, error=error, error_code="not_scored")


def _describe(row: Row, data: bytes, decoded: DecodedImage, grid_size: int) -> Row:
    """``row`` with what its file is."""
    quality = subsampling = None
    if decoded.format in ("JPEG", "MPO"):
        encoding = images.read_encoding(data)
        quality, subsampling = estimate_quality(encoding.quantization[0]), encoding.subsampling
    height, width = decoded.height, decoded.width
    flags = {"tiny": min(height, width) < TINY, "odd": height % grid_size or width % grid_size}
    return replace(
        row,
        width=width,
        height=height,
        format=decoded.format,
        jpeg_quality=quality,
        subsampling=subsampling,
        flags=" ".join(name for name, is_so in flags.items() if is_so),
        decoder=decoded.decoder,
    )


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

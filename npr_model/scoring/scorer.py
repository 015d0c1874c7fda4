"""The scorer: items are decoded in threads, gathered into batches of one size, and scored."""

from __future__ import annotations

import copy
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from npr_kernels import BackendError
from npr_model.checkpoints import LoadedCheckpoint
from npr_model.detectors.base import JoinedNetwork
from npr_model.errors import reason
from npr_model.imaging.limits import MAX_PIXELS
from npr_model.imaging.views import View
from npr_model.inference.freeze import freeze
from npr_model.inference.fused import default_dtype
from npr_model.scoring.batches import Batches
from npr_model.scoring.cache import Cache
from npr_model.scoring.decoding import Decoded, Decoder, decode_ahead
from npr_model.scoring.items import Item
from npr_model.scoring.joint import networks_of
from npr_model.scoring.journal import Journal
from npr_model.scoring.known import Known
from npr_model.scoring.rows import Row, judged, unscored
from npr_model.verdicts import Calibration

IN_ORDER = 64  # images among which batches are gathered when the order is kept
NO_JOURNAL = Journal()
GPU_ROW_BYTES = 16  # rows of images on a GPU begin at multiples of it: its widest loads


@dataclass
class Rates:
    """Time spent so far, to see whether decoding or the network limits the run."""

    workers: int
    decoded: int = 0
    decoding_seconds: float = 0.0
    scored: int = 0
    scoring_seconds: float = 0.0

    @property
    def decoding(self) -> float:
        """Images per second that all workers together can read and decode."""
        return self.decoded * self.workers / self.decoding_seconds if self.decoding_seconds else 0.0

    @property
    def scoring(self) -> float:
        """Images per second that the network can score."""
        return self.scored / self.scoring_seconds if self.scoring_seconds else 0.0

    @property
    def text(self) -> str:
        """Both rates as text, once they are known."""
        return f"decoding {self.decoding:.0f}/s, network {self.scoring:.0f}/s" if self.scored else ""


class Scorer:
    """Scores images with a loaded checkpoint. Memory is bounded, whatever the input.

    Args:
        checkpoint: The network and its metadata.
        view, calibration: Default: the checkpoint's.
        batch_size: Images, or their tiles, of one size that are scored together, up to BATCH_PIXELS.
        workers: Decoding threads (simplejpeg and Pillow release the GIL); 0 for one per core, at most 16.
        dtype: Precision. Default: bfloat16 where the hardware multiplies it natively, else float32.
        device: Where the network runs.
        max_pixels: Larger images are errors.
        raw_previews: Whether the JPEG preview in a camera raw file is scored; else such a file is an error.
        cache: File of a :class:`npr_model.scoring.cache.Cache`. None: no cache.
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
        max_pixels: int = MAX_PIXELS,
        raw_previews: bool = False,
        cache: str | os.PathLike | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        model = checkpoint.model
        if dtype == torch.int8 and isinstance(model, JoinedNetwork):
            model.check_activation_steps()
        self.workers = workers or min(16, os.cpu_count() or 1)
        self._networks = networks_of(model, self.workers)
        self.decoder = Decoder(
            view or checkpoint.metadata.view,
            checkpoint.model_id,
            model.grid_size,
            max_pixels,
            raw_previews,
            self._networks.views,
            self._networks.columns,
        )
        self.checkpoint = checkpoint
        self.batch_size = batch_size
        self.device = torch.device(device)
        calibration = calibration or checkpoint.metadata.calibration
        self.calibrated = calibration is not None
        self.calibration = calibration or Calibration()
        self._calibrated_view = checkpoint.metadata.view
        self.rates = Rates(self.workers)
        self.dtype = str(dtype or default_dtype(self.device)).removeprefix("torch.")
        self._cache = None if cache is None else Cache(cache, self.dtype, self._finish)
        self._first = freeze(self._networks.first.to(self.device), dtype)
        second = self._networks.second
        self._second = None if second is None else freeze(second.to(self.device), dtype)
        # A GPU gets the next batch before the rows of the last are built, so that it never waits, except for the second
        # look of a cascade.
        self._launched_ahead = 1 if self.device.type == "cuda" else 0
        self._row_bytes = GPU_ROW_BYTES if self.device.type == "cuda" else 1

    @property
    def view(self) -> View:
        return self.decoder.view

    @property
    def verdict_caveat(self) -> str | None:
        """Why the verdicts may not mean what the calibration's note says; None if they do."""
        if not self.calibrated:
            return "not calibrated: verdicts use the logit 0 as threshold, use them as a ranking only"
        if self.view != self._calibrated_view:
            return (
                f"verdicts use the threshold of view {self._calibrated_view}, which may not hold for view {self.view}: "
                f"npr calibrate --view {self.view} finds one"
            )
        return None

    @property
    def model_id(self) -> str:
        return self.decoder.model

    @property
    def identity(self) -> dict[str, str]:
        """What all rows of one output must have in common."""
        own = {name: own.threshold for name, own in self.calibration.conditions.items()}
        thresholds = [f"{self.calibration.threshold:g}", *(f"{name}:{value:g}" for name, value in sorted(own.items()))]
        return {"model": self.model_id, "view": str(self.view), "dtype": self.dtype, "threshold": " ".join(thresholds)}

    def with_view(self, view: View) -> Scorer:
        """Return a scorer with the same network (not copied) and another view."""
        other = copy.copy(self)
        other.decoder = replace(self.decoder, view=view)
        return other

    def score(self, items: Iterable[Item], journal: Journal = NO_JOURNAL) -> Iterator[Row]:
        """Yield one row per item as soon as it is known: batch by batch, so not in the order of the items.

        The order depends on the items only, not on the timing of threads. A bad item is a row with an error. Identical
        files are scored once, if at most KNOWN_ROWS different ones lie between them. ``journal`` records what is being
        decoded or scored. Raises InputError if the cache fails.
        """
        self.rates = Rates(self.workers)
        known = Known()
        try:
            yield from self.score_decoded(self._decode_all(items, known, journal), known, journal)
        finally:
            if self._cache is not None:
                self._cache.commit()

    def score_in_order(self, items: Iterable[Item]) -> Iterator[Row]:
        """As :meth:`score`, but in the order of the items, gathering batches among IN_ORDER items at a time."""
        self.rates = Rates(self.workers)
        known = Known()
        numbered = (Item(str(number), item.load) for number, item in enumerate(items))
        decoded, ready, due = self._decode_all(numbered, known), {}, 0
        try:
            while some := list(itertools.islice(decoded, 1)):
                window = itertools.chain(some, itertools.islice(decoded, IN_ORDER - 1))
                for row in self.score_decoded(window, known):
                    ready[int(row.source)] = row
                    while due in ready:
                        yield ready.pop(due)
                        due += 1
        finally:
            if self._cache is not None:
                self._cache.commit()

    def score_decoded(self, decoded: Iterable[Decoded], known: Known, journal: Journal = NO_JOURNAL) -> Iterator[Row]:
        """As :meth:`score`, for items that are already decoded; ``known`` is added to."""

        def on_scored(row: Row) -> None:
            known.add(row)
            if self._cache is not None:
                self._cache.add(row)

        batches = Batches(
            self._launch,
            batch_size=self.batch_size,
            launched_ahead=self._launched_ahead,
            known=known,
            on_scored=on_scored,
            journal=journal,
        )
        return batches.rows(decoded)

    def _decode_all(self, items: Iterable[Item], known: Known, journal: Journal = NO_JOURNAL) -> Iterator[Decoded]:
        def find(row: Row) -> Row | None:
            twin = known.find(row) or (self._cache and self._cache.find(row))
            return twin if twin and (twin.width or 0) * (twin.height or 0) <= self.decoder.max_pixels else None

        def decode(item: Item) -> Decoded:
            journal.start([item.source])
            try:
                return self.decoder.decode(item, find=find)
            finally:
                journal.end([item.source])

        most = 2 * max(self.workers, self.batch_size)
        for decoded in decode_ahead(decode, items, self.workers, most):
            self.rates.decoded += 1
            self.rates.decoding_seconds += (decoded.row.milliseconds or 0) / 1000
            yield decoded

    def _launch(self, batch: list[Decoded]) -> Callable[[], Iterator[Row]]:
        """Send a batch through the network; the result waits for it and yields its rows."""
        try:
            logits = self._logits(_parts(batch))
        except BackendError:
            raise  # would fail for every batch
        except (RuntimeError, MemoryError) as error:
            why = reason(error)  # not the error itself, which would keep the batch in memory
        else:
            return partial(self._rows, batch, logits)
        return partial(self._halves, batch, why)

    def _rows(self, batch: list[Decoded], logits: Callable[[], tuple[list[float], float]]) -> Iterator[Row]:
        seconds = waited = 0.0

        def ask_second(numbers: Sequence[int]) -> list[float]:
            nonlocal seconds, waited
            began = time.perf_counter()
            some = [batch[number] for number in numbers]
            of_parts, more = self._logits(_parts(some), self._second)()
            seconds += more
            waited += time.perf_counter() - began
            return _means(some, of_parts)

        try:
            of_parts, seconds = logits()
            began = time.perf_counter()
            rows, means = self._networks.judge(batch, _means(batch, of_parts), ask_second)
            seconds += time.perf_counter() - began - waited  # of an encoder; a GPU may do other work meanwhile
        except BackendError:
            raise
        except (RuntimeError, MemoryError) as error:
            why = reason(error)
        else:
            self.rates.scored += len(batch)
            self.rates.scoring_seconds += seconds
            for row, logit in zip(rows, means, strict=True):
                milliseconds = (row.milliseconds or 0) + 1000 * seconds / len(batch)
                yield self._finish(row, logit, milliseconds=milliseconds)
            return
        yield from self._halves(batch, why)

    def _halves(self, batch: list[Decoded], why: str) -> Iterator[Row]:
        """Score a failed batch in halves, as memory was probably short. An image that fails alone is an error row."""
        if len(batch) == 1:
            yield unscored(batch[0].row, f"the image cannot be scored ({why})")
            return
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            yield from self._launch(half)()

    def _logits(
        self, parts: list[np.ndarray], network: nn.Module | None = None
    ) -> Callable[[], tuple[list[float], float]]:
        """Send arrays (P, H, W, 3) uint8 through ``network``, or else through the first.

        The result waits for it, and returns the logits of all parts and the seconds it took.

        Permuted, the arrays have channels_last strides, which the kernels prefer.
        """
        network = network or self._first
        began = time.perf_counter()
        on_gpu = self.device.type == "cuda"
        _, height, width, _ = parts[0].shape
        pitch = -(-3 * width // self._row_bytes) * self._row_bytes
        rows = torch.empty((sum(map(len, parts)), height, pitch), dtype=torch.uint8, pin_memory=on_gpu)
        np.concatenate(parts, out=_images(rows, width).numpy())
        if not on_gpu:
            logits = network(_images(rows, width).permute(0, 3, 1, 2)).squeeze(1).tolist()
            seconds = time.perf_counter() - began
            return lambda: (logits, seconds)
        stream = torch.cuda.current_stream(self.device)
        start, end = (torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(2))
        start.record(stream)
        rows = rows.to(self.device, non_blocking=True)  # with the bytes between them, or it would be copied row by row
        logits = network(_images(rows, width).permute(0, 3, 1, 2)).squeeze(1)
        copied = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
        copied.copy_(logits, non_blocking=True)
        end.record(stream)

        def wait() -> tuple[list[float], float]:
            end.synchronize()  # blocking wait: the core can decode meanwhile
            return copied.tolist(), start.elapsed_time(end) / 1000

        return wait

    def _finish(self, row: Row, logit: float, **others: Any) -> Row:
        if not math.isfinite(logit):
            return unscored(replace(row, **others), f"the network gave a logit of {logit}")
        return judged(row, logit, self.calibration, **others)


def _parts(batch: list[Decoded]) -> list[np.ndarray]:
    return [decoded.parts for decoded in batch if decoded.parts is not None]


def _means(batch: list[Decoded], logits: list[float]) -> list[float]:
    """Return a logit for each image, the float32 mean over its parts."""
    if len(logits) == len(batch):  # a part each
        return logits
    ends = np.cumsum([len(parts) for parts in _parts(batch)])
    return [float(np.float32(np.mean(values))) for values in np.split(np.array(logits), ends[:-1])]


def _images(rows: torch.Tensor, width: int) -> torch.Tensor:
    """The pixels (N, H, width, 3) at the beginning of ``rows`` (N, H, bytes); the same memory."""
    return rows[:, :, : 3 * width].unflatten(2, (width, 3))

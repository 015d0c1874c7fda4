"""Decoded images are gathered into batches whose parts have one size, and identical images are scored once."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator

from npr_model.scoring.decoding import Decoded
from npr_model.scoring.journal import Journal
from npr_model.scoring.known import Known
from npr_model.scoring.rows import Row

PENDING_PIXELS = 2**26  # decoded pixels that may wait for a batch of their size: 192 MiB
BATCH_PIXELS = 2**24  # pixels per batch, so that large images are scored a few at a time

Size = tuple[int, ...]
Rows = Callable[[], Iterator[Row]]


class Batches:
    """Sends decoded images through the network in batches.

    Args:
        launch: Sends a batch of images, whose parts have one size, to the network; the result waits for it and yields
            the rows.
        batch_size: Parts per batch, up to BATCH_PIXELS. The parts of an image stay together, so there may be more.
        launched_ahead: Batches that are launched before the rows of an earlier one are built.
        known: Rows that identical images get.
        on_scored: Called with each row that the network gave.
        journal: Records what the network works on.
    """

    def __init__(
        self,
        launch: Callable[[list[Decoded]], Rows],
        *,
        batch_size: int,
        launched_ahead: int,
        known: Known,
        on_scored: Callable[[Row], None],
        journal: Journal,
    ) -> None:
        self._launch_batch, self._batch_size, self._launched_ahead = launch, batch_size, launched_ahead
        self._known, self._on_scored, self._journal = known, on_scored, journal
        self._waiting: dict[Size, list[Decoded]] = {}
        self._pixels: Counter[Size] = Counter()  # of the parts that wait for a batch of this size
        self._held_pixels: Counter[Size] = Counter()  # that the images of this size keep in memory
        self._launched: deque[tuple[list[Decoded], Rows]] = deque()
        # By sha256: size of the batch that an image waits in; None once the batch is launched.
        self._unscored: dict[str | None, Size | None] = {}

    def rows(self, decoded: Iterable[Decoded]) -> Iterator[Row]:
        """Yield one row per image as soon as it is known, so not in the order of the images.

        If ``decoded`` raises an exception, the rows of what is launched come first.
        """
        try:
            for one in decoded:
                yield from self._add(one)
            for size in list(self._waiting):
                yield from self._launch(size)
        except Exception:
            yield from self._finish_all()
            raise
        yield from self._finish_all()

    def _add(self, one: Decoded) -> Iterator[Row]:
        """Let an image wait for a batch; yield the rows that are known by then."""
        if one.parts is None:
            yield one.row
            return
        if one.row.sha256 in self._unscored:  # a copy waits for the row of what it is a copy of
            if size := self._unscored[one.row.sha256]:
                yield from self._launch(size)
            while one.row.sha256 in self._unscored:
                yield from self._finish()
        if twin := self._known.find(one.row):
            yield twin
            return
        size = one.parts.shape[1:3]
        self._waiting.setdefault(size, []).append(one)
        self._unscored[one.row.sha256] = size
        self._pixels[size] += one.pixels
        self._held_pixels[size] += one.held_pixels
        if self._pixels[size] >= min(self._batch_size * math.prod(size), BATCH_PIXELS):
            yield from self._launch(size)
        while self._held_pixels.total() > PENDING_PIXELS:
            yield from self._launch(max(self._waiting, key=self._held_pixels.__getitem__))

    def _launch(self, size: Size) -> Iterator[Row]:
        """Send the images of this size to the network; yield the rows of earlier batches."""
        del self._pixels[size], self._held_pixels[size]
        batch = self._waiting.pop(size)
        self._unscored.update((one.row.sha256, None) for one in batch)
        self._journal.start(one.row.source for one in batch)
        self._launched.append((batch, self._launch_batch(batch)))
        while len(self._launched) > self._launched_ahead:
            yield from self._finish()

    def _finish(self) -> Iterator[Row]:
        """Yield the rows of the batch that was launched first."""
        batch, rows = self._launched.popleft()
        for one in batch:
            del self._unscored[one.row.sha256]
        for row in rows():
            if row.error is None:
                self._on_scored(row)
            yield row
        self._journal.end(one.row.source for one in batch)

    def _finish_all(self) -> Iterator[Row]:
        while self._launched:
            yield from self._finish()

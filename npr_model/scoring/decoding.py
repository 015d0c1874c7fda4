"""From an item's bytes to the pixels that are scored, in threads (simplejpeg and Pillow release the GIL)."""

from __future__ import annotations

import contextlib
import hashlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from npr_model.errors import InputError, reason
from npr_model.imaging.condition import file_facts
from npr_model.imaging.decode import DecodedImage, decode
from npr_model.imaging.errors import ImageError, check_size
from npr_model.imaging.formats.raw import camera_raw_name, largest_jpeg
from npr_model.imaging.formats.signatures import CameraRawError
from npr_model.imaging.headers import Encoding, read_encoding
from npr_model.imaging.limits import MAX_PIXELS
from npr_model.imaging.views import View
from npr_model.provenance.declaration import read_declaration
from npr_model.scoring.items import Item
from npr_model.scoring.rows import FLAT, RESIZED, Row

AHEAD_PIXELS = 2**26  # decoded pixels that may wait: 192 MiB
DECODING_PIXELS = 2**26  # that all threads may decode at once; a larger image is decoded alone
TINY = 64  # pixels; with a shorter side below it, a verdict depends on few cells
LEAST_DETAIL = 0.1  # share of cells that are not of one colour; with less, there is nothing to judge


@dataclass(frozen=True)
class Decoded:
    """A row without score, and the parts of the image to score, (P, H, W, 3) uint8; None if the row is finished."""

    row: Row
    parts: np.ndarray | None

    @property
    def pixels(self) -> int:
        """Number of pixels to score."""
        return 0 if self.parts is None else math.prod(self.parts.shape[:3])


@dataclass(frozen=True)
class Decoder:
    """Reads and decodes items for one network. Whatever fails becomes a row with an error.

    ``raw_previews``: whether the preview in a camera raw file is scored; else such a file is an error.
    """

    view: View
    model: str
    grid_size: int
    max_pixels: int = MAX_PIXELS
    raw_previews: bool = False

    def decode(self, item: Item, find: Callable[[Row], Row | None] = lambda row: None) -> Decoded:
        """Read and decode an item. ``find`` returns the finished row of identical bytes, if there is one."""
        began = time.perf_counter()
        row = Row(item.source, view=str(self.view), model=self.model)
        parts = None
        try:
            data = item.load()
            row = replace(row, sha256=_digest(data))
            raw_name = camera_raw_name(data) if isinstance(data, bytes) else None
            if raw_name and not self.raw_previews:  # also if a cache knows the score of its preview
                raise CameraRawError(raw_name)
            if twin := find(row):
                row = twin
            else:
                image = largest_jpeg(data) if raw_name and isinstance(data, bytes) else data
                encoding = _encoding(image)
                with _room.taken(0 if encoding is None else min(encoding.width * encoding.height, self.max_pixels)):
                    decoded = self._decoded(image)
                    if decoded.file is not None:  # a JPEG that was inside tells more
                        image, encoding = decoded, _encoding(decoded)
                    row = _describe(row, encoding, decoded, self.grid_size)
                    if raw_name:
                        row = replace(row, format=raw_name, decoder=f"{row.decoder} (preview in {raw_name})")
                        row = _declare(row, data, "TIFF")
                    row = _declare(row, image, encoding.format if encoding else str(decoded.format))
                    parts = self.view.parts(decoded.pixels, self.grid_size)
                row = self._flagged(row, parts)
        except ImageError as error:
            row = replace(row, error=str(error), error_code=error.code)
        except InputError:
            raise
        except Exception as error:  # file systems can raise anything; the run must go on
            row = replace(row, error=f"the file cannot be read ({reason(error)})", error_code="unreadable")
        return Decoded(replace(row, milliseconds=1000 * (time.perf_counter() - began)), parts)

    def _flagged(self, row: Row, parts: np.ndarray) -> Row:
        """Return ``row`` with the flags that depend on the view."""
        is_smaller = self.view.kind == "resize" and (self.view.size or 0) < min(row.width or 0, row.height or 0)
        flags = {RESIZED: is_smaller, FLAT: _is_flat(parts, self.grid_size)}
        return replace(row, flags=" ".join(filter(None, (row.flags, *(name for name in flags if flags[name])))))

    def _decoded(self, data: bytes | DecodedImage) -> DecodedImage:
        if isinstance(data, bytes):
            return decode(data, max_pixels=self.max_pixels)
        check_size(data.width, data.height, self.max_pixels)
        return data


class _Room:
    """Bounds the pixels that are decoded at once. An image that is larger than the bound gets all the room."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = 0

    @contextlib.contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for ``pixels``, and hold it."""
        pixels = min(pixels, DECODING_PIXELS)
        with self._changed:
            self._changed.wait_for(lambda: self._taken + pixels <= DECODING_PIXELS)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


_room = _Room()


def _encoding(image: bytes | DecodedImage) -> Encoding | None:
    """The header of a file. None for pixels without a file, and for a header that only the decoder understands."""
    file = image if isinstance(image, bytes) else image.file
    try:
        return None if file is None else read_encoding(file)
    except ImageError:
        return None


def _is_flat(parts: np.ndarray, grid_size: int) -> bool:
    """Return whether the parts, (P, H, W, 3), hold too few cells in which the first and the last pixel differ."""
    height, width = (side // grid_size * grid_size for side in parts.shape[1:3])
    first, last = (parts[:, start:height:grid_size, start:width:grid_size] for start in (0, grid_size - 1))
    return bool((first != last).any(3).mean() < LEAST_DETAIL)


def _digest(data: bytes | DecodedImage) -> str:
    """sha256 of the encoded bytes; for pixels without a file, of their size and values."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    if data.file is not None:
        return hashlib.sha256(data.file).hexdigest()
    digest = hashlib.sha256(f"{data.width}x{data.height} pixels\n".encode())
    digest.update(data.pixels.data)
    return digest.hexdigest()


def decode_ahead(
    decode: Callable[[Item], Decoded], items: Iterable[Item], workers: int, most: int
) -> Iterator[Decoded]:
    """Decode ``items`` in threads and yield them in order.

    At most ``most`` items, and AHEAD_PIXELS pixels (but at least one image per worker), are decoded ahead.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="npr-decode")
    ahead: deque[Future[Decoded]] = deque()
    gate, waiting_pixels, taken, closed = threading.Condition(), 0, 0, False

    def work(item: Item, number: int) -> Decoded:
        nonlocal waiting_pixels
        with gate:  # the next item in order must pass, or nothing would make room
            gate.wait_for(lambda: waiting_pixels < AHEAD_PIXELS or number == taken or closed)
        decoded = decode(item)
        with gate:
            waiting_pixels += decoded.pixels
        return decoded

    def take() -> Decoded:
        nonlocal waiting_pixels, taken
        decoded = ahead.popleft().result()
        with gate:
            waiting_pixels -= decoded.pixels
            taken += 1
            gate.notify_all()
        return decoded

    try:
        for number, item in enumerate(items):
            ahead.append(pool.submit(work, item, number))
            if len(ahead) >= most:
                yield take()
        while ahead:
            yield take()
    finally:
        with gate:
            closed = True
            gate.notify_all()
        pool.shutdown(wait=False, cancel_futures=True)


def _declare(row: Row, image: bytes | DecodedImage, format: str) -> Row:
    """Return ``row`` with what a file declares, unless an earlier one did."""
    file = image if isinstance(image, bytes) else image.file
    declaration = read_declaration(file, format) if file is not None and row.declared is None else None
    if declaration is None:
        return row
    return replace(row, declared=declaration.kind or None, declared_by=declaration.evidence)


def _describe(row: Row, encoding: Encoding | None, decoded: DecodedImage, grid_size: int) -> Row:
    """Return ``row`` with the facts about its file."""
    facts = None if encoding is None else file_facts(encoding, decoded.pixels)
    height, width = decoded.height, decoded.width
    flags = {
        "tiny": min(height, width) < TINY,
        "odd": height % grid_size or width % grid_size,
        "recompressed": facts is not None and facts.recompressed,
    }
    return replace(
        row,
        width=width,
        height=height,
        format=decoded.format,
        jpeg_quality=None if facts is None else facts.quality,
        subsampling=None if encoding is None else encoding.subsampling,
        condition=None if facts is None else facts.condition,
        flags=" ".join(name for name, is_so in flags.items() if is_so),
        decoder=decoded.decoder,
    )

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
from typing import Any

import numpy as np

from npr_model.errors import InputError, reason
from npr_model.imaging.condition import RECOMPRESSED_JPEG, file_facts
from npr_model.imaging.decode import DecodedImage, decode
from npr_model.imaging.errors import ImageError, check_size
from npr_model.imaging.flatness import is_flat
from npr_model.imaging.formats.raw import camera_raw_name, largest_jpeg
from npr_model.imaging.formats.signatures import CameraRawError
from npr_model.imaging.headers import Encoding, read_encoding
from npr_model.imaging.limits import MAX_PIXELS
from npr_model.imaging.views import View
from npr_model.provenance.declaration import first_declaration
from npr_model.scoring.items import Item
from npr_model.scoring.rows import FLAT, NOT_SCORED, RESIZED, Row

AHEAD_PIXELS = 2**26  # decoded pixels that may wait: 192 MiB
DECODING_PIXELS = 2**26  # that all threads may decode at once; a larger image is decoded alone
TINY = 64  # pixels; with a shorter side below it, a verdict depends on few cells


@dataclass(frozen=True)
class Decoded:
    """A row without score, and what is scored of the image.

    Attributes:
        row: The row. It is finished if ``parts`` is None.
        parts: What the networks see, (P, H, W, 3) uint8.
        views: What an image encoder sees later, (V, S, S, 3) uint8; None if none does.
    """

    row: Row
    parts: np.ndarray | None
    views: np.ndarray | None = None

    @property
    def pixels(self) -> int:
        """Number of pixels of the parts."""
        return 0 if self.parts is None else math.prod(self.parts.shape[:3])

    @property
    def held_pixels(self) -> int:
        """Number of pixels that are kept in memory until the image is scored."""
        return self.pixels + (0 if self.views is None else math.prod(self.views.shape[:3]))


@dataclass(frozen=True)
class Decoder:
    """Reads and decodes items for one network. Whatever fails becomes a row with an error.

    ``raw_previews``: whether the preview in a camera raw file is scored; else such a file is an error.
    ``views``, ``columns``: what an image encoder sees and says of a whole image
    (:class:`npr_model.scoring.joint.Networks`).
    """

    view: View
    model: str
    grid_size: int
    max_pixels: int = MAX_PIXELS
    raw_previews: bool = False
    views: Callable[[np.ndarray], np.ndarray] | None = None
    columns: Callable[[np.ndarray], dict[str, Any]] | None = None

    def decode(self, item: Item, find: Callable[[Row], Row | None] = lambda row: None) -> Decoded:
        """Read and decode an item. ``find`` returns the finished row of identical bytes, if there is one."""
        began = time.perf_counter()
        facts: dict[str, Any] = {"source": item.source, "view": str(self.view), "model": self.model}
        parts = views = None
        try:
            data = item.load()
            facts["sha256"] = _digest(data)
            raw_name = camera_raw_name(data) if isinstance(data, bytes) else None
            if raw_name and not self.raw_previews:  # also if a cache knows the score of its preview
                raise CameraRawError(raw_name)
            if twin := find(Row(**facts)):
                return Decoded(replace(twin, milliseconds=_milliseconds(began)), None)
            image = largest_jpeg(data) if raw_name and isinstance(data, bytes) else data
            encoding = _encoding(image)
            pixels = 0 if encoding is None else encoding.width * encoding.height
            with _room.taken(min(pixels, self.max_pixels)):
                decoded = self._decoded(image, encoding)
                if decoded.file is not None:  # a JPEG that was inside tells more
                    encoding = _encoding(decoded)
                facts |= _facts(encoding, decoded) | _declared(_files(data, image, decoded))
                if raw_name:
                    facts |= {"format": raw_name, "decoder": f"{decoded.decoder} (preview in {raw_name})"}
                if self.views is not None:
                    views = self.views(decoded.pixels)
                parts = self.view.parts(decoded.pixels, self.grid_size)
            facts["flags"] = self._flags(facts, parts)
            if views is not None and self.columns is not None:
                facts, views = facts | self._columns(views), None
        except ImageError as error:
            facts |= {"error": str(error), "error_code": error.code}
        except InputError:
            raise
        except Exception as error:  # file systems can raise anything; the run must go on
            facts |= {"error": f"the file cannot be read ({reason(error)})", "error_code": "unreadable"}
        if "error" in facts:
            parts = views = None
        return Decoded(Row(**facts, milliseconds=_milliseconds(began)), parts, views)

    def _decoded(self, data: bytes | DecodedImage, encoding: Encoding | None) -> DecodedImage:
        if isinstance(data, bytes):
            return decode(data, max_pixels=self.max_pixels, header=None if encoding is None else encoding.jpeg)
        check_size(data.width, data.height, self.max_pixels)
        return data

    def _columns(self, views: np.ndarray) -> dict[str, Any]:
        assert self.columns is not None
        try:
            return self.columns(views)
        except (RuntimeError, MemoryError) as error:
            raise ImageError(f"the image cannot be scored ({reason(error)})", NOT_SCORED) from error

    def _flags(self, facts: dict[str, Any], parts: np.ndarray) -> str:
        shorter = min(facts["width"], facts["height"])
        flags = {
            "tiny": shorter < TINY,
            "odd": facts["width"] % self.grid_size or facts["height"] % self.grid_size,
            "recompressed": facts["condition"] == RECOMPRESSED_JPEG,
            RESIZED: self.view.kind == "resize" and (self.view.size or 0) < shorter,
            FLAT: is_flat(parts, self.grid_size),
        }
        return " ".join(name for name, is_so in flags.items() if is_so)


def _milliseconds(began: float) -> float:
    """The time since ``began``."""
    return 1000 * (time.perf_counter() - began)


def _facts(encoding: Encoding | None, decoded: DecodedImage) -> dict[str, Any]:
    """The columns of a row that tell about a decoded file. ``encoding``: None if its header is not known."""
    compression = file_facts(encoding, decoded.pixels)
    return {
        "width": decoded.width,
        "height": decoded.height,
        "format": decoded.format,
        "jpeg_quality": compression.quality,
        "subsampling": None if encoding is None else encoding.subsampling,
        "condition": compression.condition,
        "decoder": decoded.decoder,
    }


def _files(
    data: bytes | DecodedImage, image: bytes | DecodedImage, decoded: DecodedImage
) -> Iterator[tuple[bytes, str]]:
    """The file, the preview in a camera raw file, and the JPEG in a JPEG XL file, with their formats."""
    if isinstance(data, bytes):
        yield data, str(decoded.format) if image is data else "TIFF"
    if isinstance(image, bytes) and image is not data:
        yield image, str(decoded.format)
    if decoded.file is not None:
        yield decoded.file, str(decoded.format) if decoded is data else "JPEG"


def _declared(files: Iterable[tuple[bytes, str]]) -> dict[str, Any]:
    """The columns of a row that tell what the files of an image declare."""
    declaration = first_declaration(files)
    if declaration is None:
        return {}
    return {"declared": declaration.kind or None, "declared_by": declaration.evidence}


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
            waiting_pixels += decoded.held_pixels
        return decoded

    def take() -> Decoded:
        nonlocal waiting_pixels, taken
        decoded = ahead.popleft().result()
        with gate:
            waiting_pixels -= decoded.held_pixels
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
        with contextlib.suppress(RuntimeError):  # that it is free now: a signal may have hit just after it was taken
            while True:
                gate.release()
        pool.shutdown(wait=False, cancel_futures=True)

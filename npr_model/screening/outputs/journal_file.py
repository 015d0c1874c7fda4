"""The inputs in work, on disk: after a run was killed, the next one knows which of them it may have died of.

The file holds digests of sources in slots of DIGEST_BYTES. The first slot is for a source that is scored alone, in a
process of its own. The others are for those in work. What a killed run wrote survives it, as the system writes the file
to disk.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from npr_model.scoring.journal import Journal
from npr_model.screening.outputs.finished import DIGEST_BYTES, digest

NAME = ".journal"
_EMPTY = bytes(DIGEST_BYTES)


class JournalFile(Journal):
    """A journal in a file, which is removed when it is closed. It may be used from several threads. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        content = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)
        slots = [content[place : place + DIGEST_BYTES] for place in range(0, len(content), DIGEST_BYTES)]
        self._culprit = slots[0] if slots else _EMPTY
        self._suspects = {slot for slot in slots if len(slot) == DIGEST_BYTES} - {_EMPTY}
        self._slots: dict[bytes, int] = {}
        self._copies: Counter[bytes] = Counter()
        self._free: list[int] = []
        self._closed = False
        os.ftruncate(self._descriptor, DIGEST_BYTES)
        self._write(0, _EMPTY)
        for suspect in self._suspects:  # until they have a row
            self._start(suspect)

    def start(self, sources: Iterable[str]) -> None:
        with self._lock:
            for source in sources:
                self._start(digest(source))

    def end(self, sources: Iterable[str]) -> None:
        with self._lock:
            for source in sources:
                self._end(digest(source))

    @contextlib.contextmanager
    def alone(self, source: str) -> Iterator[None]:
        self._write(0, digest(source))
        yield
        self._write(0, _EMPTY)
        self.end([source])

    def suspect(self, sources: Iterable[str]) -> None:
        for one in map(digest, sources):
            if one not in self._suspects:
                self._suspects.add(one)
                self._start(one)

    def is_suspect(self, source: str) -> bool:
        return bool(self._suspects) and digest(source) in self._suspects

    def is_culprit(self, source: str) -> bool:
        return digest(source) == self._culprit

    def close(self) -> None:
        with self._lock:  # a thread that still decodes may write no more: the descriptor may soon be another file's
            self._closed = True
            os.close(self._descriptor)
        self._path.unlink(missing_ok=True)

    def _start(self, one: bytes) -> None:
        self._copies[one] += 1
        if one not in self._slots:
            slot = self._slots[one] = self._free.pop() if self._free else 1 + len(self._slots)
            self._write(slot, one)

    def _end(self, one: bytes) -> None:
        self._copies[one] -= 1
        if self._copies[one] <= 0:
            del self._copies[one]
            if (slot := self._slots.pop(one, None)) is not None:
                self._free.append(slot)
                self._write(slot, _EMPTY)

    def _write(self, slot: int, one: bytes) -> None:
        if self._closed:
            return
        with contextlib.suppress(OSError):  # a full disk: the rows matter more
            os.pwrite(self._descriptor, one, slot * DIGEST_BYTES)

"""Which inputs have rows already, in little memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np

DIGEST_BYTES = 16


def digest(source: str) -> bytes:
    """Return 128 bits that stand for a source."""
    return hashlib.blake2b(source.encode(), digest_size=DIGEST_BYTES).digest()


class Finished:
    """The sources that have rows: 24 bytes for each, and as many again for each that failed.

    Args:
        rows: The source of each row, and whether it failed.

    Attributes:
        count: Number of rows.
        failed: How many of them have an error.
    """

    def __init__(self, rows: Iterable[tuple[str, bool]] = ()) -> None:
        everything, failed = bytearray(), bytearray()
        for source, has_failed in rows:
            everything += (one := digest(source))
            if has_failed:
                failed += one
        self.count, self.failed = len(everything) // DIGEST_BYTES, len(failed) // DIGEST_BYTES
        self._all, self._failed = _Counts(everything), _Counts(failed)

    def matcher(self, earlier: Mapping[str, int] = MappingProxyType({})) -> RowMatcher:
        """Return a new :class:`RowMatcher`."""
        return RowMatcher(self._all, self._failed, earlier)


class RowMatcher:
    """Tells whether the next occurrence of a source has a row. A source that is listed twice needs two rows.

    ``earlier``: occurrences seen elsewhere.

    Attributes:
        kept: How many occurrences had a row.
        kept_failed: How many of these rows have an error.
    """

    def __init__(self, counts: _Counts, failed: _Counts, earlier: Mapping[str, int]) -> None:
        self._counts, self._failed, self._earlier = counts, failed, earlier
        self._taken = np.zeros(counts.size, np.uint32)  # its pages take memory only once they are written to
        self.kept = self.kept_failed = 0

    def __call__(self, source: str) -> bool:
        if not self._counts.size:
            return False
        one = digest(source)
        place, copies = self._counts.find(one)
        if place is None:
            return False
        number = self._earlier.get(source, 0) + int(self._taken[place])
        if number >= copies:
            return False
        self._taken[place] += 1
        self.kept += 1
        self.kept_failed += number >= copies - self._failed.find(one)[1]
        return True


class _Counts:
    """How often each digest occurs among those that are strung together in ``digests``."""

    def __init__(self, digests: bytearray) -> None:
        unique, copies = np.unique(np.frombuffer(digests, np.uint64).reshape(-1, 2), axis=0, return_counts=True)
        self._first, self._second = unique.T
        self._copies = copies
        self.size = len(copies)

    def find(self, one: bytes) -> tuple[int | None, int]:
        """Return the place of a digest and how often it occurs; (None, 0) if it does not."""
        first, second = np.frombuffer(one, np.uint64)
        low, high = np.searchsorted(self._first, first, "left"), np.searchsorted(self._first, first, "right")
        for place in range(low, high):
            if self._second[place] == second:
                return place, int(self._copies[place])
        return None, 0

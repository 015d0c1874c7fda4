"""Identical files are scored once within a run."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from npr_model.scoring.rows import Row

KNOWN_ROWS = 2**14  # kept in memory, about 10 MiB


class Known:
    """The rows of the last KNOWN_ROWS different files, by sha256. Lookups are thread-safe."""

    def __init__(self) -> None:
        self._rows: OrderedDict[str | None, Row] = OrderedDict()

    def add(self, row: Row) -> None:
        """Remember a scored row."""
        self._rows[row.sha256] = row
        if len(self._rows) > KNOWN_ROWS:
            self._rows.popitem(last=False)

    def find(self, row: Row) -> Row | None:
        """Return the row of identical bytes with the source of ``row``; None if unknown."""
        twin = self._rows.get(row.sha256)
        return twin and replace(twin, source=row.source, milliseconds=row.milliseconds)

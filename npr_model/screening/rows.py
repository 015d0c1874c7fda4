"""The result: one row for each input, scored or failed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from npr_model.verdicts import VERDICTS

SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("sha256", pa.string()),
        ("logit", pa.float32()),
        ("probability", pa.float32()),
        ("verdict", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("jpeg_quality", pa.int32()),
        ("subsampling", pa.string()),
        ("flags", pa.string()),
        ("decoder", pa.string()),
        ("view", pa.string()),
        ("error", pa.string()),
        ("error_code", pa.string()),
        ("milliseconds", pa.float32()),
        ("model", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Row:
    """One item, scored or failed. If it failed, ``error`` says why; unknown values are None.

    ``sha256``: of the encoded bytes, in hex. ``logit``: float32, as the network gave it. ``probability``: its sigmoid
    after the calibration's temperature. ``width``, ``height``: the file's. ``jpeg_quality`` (nearest libjpeg quality)
    and ``subsampling``: JPEG only. ``flags``, separated by spaces: "tiny" (a side below TINY pixels), "odd" (a side
    that is not a multiple of the cell size), "recompressed" (a JPEG saved from a more coarsely quantised JPEG, see
    :mod:`npr_model.imaging.recompression`), "resized" (made smaller by the view). ``error_code``: "unreadable", the
    code of an :class:`npr_model.imaging.decode.ImageError`, or "not_scored". ``milliseconds``: reading and decoding,
    plus the image's share of its batch's scoring time.
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
        """Return the values by column name."""
        return {name: getattr(self, name) for name in self.__slots__}


def unscored(row: Row, error: str) -> Row:
    """Return ``row`` with an error instead of a score."""
    return replace(row, error=error, error_code="not_scored")


def as_table(rows: Iterable[Row]) -> pa.Table:
    """Return rows as an Arrow table with SCHEMA."""
    return pa.Table.from_pylist([row.as_dict() for row in rows], SCHEMA)


@dataclass
class Totals:
    """Running counts of rows: ``failed``, ``scored``, and ``verdicts`` by name."""

    failed: int = 0
    verdicts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VERDICTS, 0))

    @property
    def count(self) -> int:
        return self.scored + self.failed

    @property
    def scored(self) -> int:
        return sum(self.verdicts.values())

    def add(self, row: Row) -> None:
        if row.error is None:
            self.verdicts[row.verdict] += 1
        else:
            self.failed += 1

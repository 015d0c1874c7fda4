"""The result: one row for each input, scored or failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from npr_model.provenance.declaration import GENERATED
from npr_model.verdicts import DECLARED, UNCERTAIN, VERDICTS, Calibration

FLAT, RESIZED = "flat", "resized"  # flags
NOT_SCORED = "not_scored"  # error code of an image that was decoded
KILLED = "killed"  # error code of a file at which a process died
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
        ("condition", pa.string()),
        ("flags", pa.string()),
        ("declared", pa.string()),
        ("declared_by", pa.string()),
        ("decoder", pa.string()),
        ("view", pa.string()),
        ("error", pa.string()),
        ("error_code", pa.string()),
        ("milliseconds", pa.float32()),
        ("model", pa.string()),
        ("logit_npr", pa.float32()),
        ("logit_clip", pa.float32()),
        ("scored_by", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Row:
    """One input, scored or failed. Unknown values are None.

    Attributes:
        source: Name of the input.
        sha256: Of the encoded bytes, in hex.
        logit: float32, as the network gave it; the mean over the tiles of a view ``sample``.
        probability: That the image was generated: sigmoid of the logit over the calibration's temperature.
        verdict: "real", "generated" or "uncertain" by the logit; "generated (declared)" where the file says so itself.
        width, height: Size in pixels, as in the file.
        format: File format as Pillow names it.
        jpeg_quality: Nearest quality of libjpeg; JPEG only.
        subsampling: Chroma subsampling; JPEG only.
        condition: How the pixels were compressed (:mod:`npr_model.imaging.condition`), which chooses the threshold.
        flags: Separated by spaces: "tiny" (a side below TINY pixels), "odd" (a side that is not a multiple of the cell
            size), "recompressed" (a JPEG saved from a more coarsely quantised JPEG, see
            :mod:`npr_model.imaging.recompression`), "resized" (made smaller by the view), "flat" (nearly all cells
            are of one colour; the verdict is "uncertain").
        declared: What the file says of its origin: "generated", "edited" or "camera"
            (:mod:`npr_model.provenance.declaration`).
        declared_by: Where in the file, and in which words. Without ``declared``: why Content Credentials do not count.
        decoder: What decoded it, with version.
        view: The pixels that the network saw.
        error: What is wrong, in one line; None if the image was scored.
        error_code: "unreadable", the code of an ImageError, "not_scored", or "killed"
            (:mod:`npr_model.screening.engines.isolated`).
        milliseconds: Reading and decoding, plus the image's share of the time to score its batch.
        model: Name and digest of the checkpoint.
        logit_npr, logit_clip: Of a checkpoint that combines two logits, both.
        scored_by: Of a cascade, the name and digest of the part whose logit counts.
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
    condition: str | None = None
    flags: str | None = None
    declared: str | None = None
    declared_by: str | None = None
    decoder: str | None = None
    view: str | None = None
    error: str | None = None
    error_code: str | None = None
    milliseconds: float | None = None
    model: str | None = None
    logit_npr: float | None = None
    logit_clip: float | None = None
    scored_by: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the values by column name."""
        return {name: getattr(self, name) for name in self.__slots__}


def unscored(row: Row, error: str) -> Row:
    """Return ``row`` with an error instead of a score."""
    return replace(row, logit_npr=None, logit_clip=None, scored_by=None, error=error, error_code=NOT_SCORED)


def judged(row: Row, logit: float, calibration: Calibration, **others: Any) -> Row:
    """Return ``row`` with its logit, probability and verdict, and with ``others``, such as the time it took.

    What the file declares counts before the logit, and an image with nothing to judge is uncertain.
    """
    verdict = calibration.of(row.condition).verdict(logit)
    if row.declared == GENERATED:
        verdict = DECLARED
    elif FLAT in (row.flags or "").split():
        verdict = UNCERTAIN
    return replace(row, logit=logit, probability=calibration.probability(logit), verdict=verdict, **others)


def as_table(rows: Iterable[Row]) -> pa.Table:
    """Return rows as an Arrow table with SCHEMA."""
    return pa.Table.from_pylist([row.as_dict() for row in rows], SCHEMA)


@dataclass
class Totals:
    """Running counts of one run.

    Attributes:
        failed: Rows with an error.
        verdicts: Scored rows by verdict.
        scored_by: Scored rows of a cascade by the part whose logit counts.
        skipped: Files that are not screened, by reason.
        kept: Inputs that had a row in the same folder already, from an earlier run.
        kept_failed: How many of these rows have an error.
    """

    failed: int = 0
    verdicts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VERDICTS, 0))
    scored_by: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    kept_failed: int = 0

    @property
    def count(self) -> int:
        """Number of rows that this run has written."""
        return self.scored + self.failed

    @property
    def scored(self) -> int:
        """Number of rows with a score."""
        return sum(self.verdicts.values())

    def add(self, row: Row) -> None:
        """Count a row."""
        if row.error is None and row.verdict is not None:
            self.verdicts[row.verdict] += 1
            if row.scored_by is not None:
                self.scored_by[row.scored_by] += 1
        else:
            self.failed += 1

    def include(self, other: Totals) -> None:
        """Add the counts of another part of the run."""
        self.failed += other.failed
        for verdict, count in other.verdicts.items():
            self.verdicts[verdict] += count
        self.scored_by += other.scored_by
        self.skipped += other.skipped
        self.kept += other.kept
        self.kept_failed += other.kept_failed

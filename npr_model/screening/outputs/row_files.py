"""Rows in one file, CSV, JSON Lines or Parquet, that stays readable when the disk is full."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from npr_model.scoring.rows import SCHEMA, Row, as_table

ROWS_A_GROUP = 5_000  # per Parquet row group; with 50,000 the encoders would use 25 MiB more
_BUFFER_BYTES = 2**16
_COMPRESSION = "zstd"
_MAGIC_BYTES = 16  # at both ends of a Parquet file, with the size of the footer
_OFFSET_BYTES = 20 * len(SCHEMA)  # by which offsets in the footer are longer far behind the start of a file


class RowFile(Protocol):
    """A file that rows are added to.

    Attributes:
        kept: Rows that are in the file and can be read, once it is closed.
    """

    kept: int

    def add(self, row: Row) -> None:
        """Add a row. Raises OSError if the rows so far cannot be written; then nothing more is written."""

    def close(self) -> None:
        """Write what is missing and close the file. Raises OSError; then the file holds ``kept`` rows all the same."""


class _LineFile:
    """Lines in a file that never ends in a part of one."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by close()
        self._pending: list[bytes] = []
        self._bytes_pending = self._written = 0
        self._failed = False
        self.kept = 0

    def add(self, row: Row) -> None:
        self._put(self._line(row))

    def _line(self, row: Row) -> bytes:
        raise NotImplementedError

    def _put(self, line: bytes) -> None:
        self._pending.append(line)
        self._bytes_pending += len(line)
        if self._bytes_pending >= _BUFFER_BYTES:
            self._flush()

    def close(self) -> None:
        with self._file:
            self._flush()
            os.fsync(self._file.fileno())

    def _flush(self) -> None:
        if self._failed:
            return
        left = memoryview(b"".join(self._pending))
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._failed = True
            self._cut(os.fstat(self._file.fileno()).st_size)
            raise
        self.kept += len(self._pending)
        self._written += self._bytes_pending
        self._pending.clear()
        self._bytes_pending = 0

    def _cut(self, size: int) -> None:
        """Cut the file, of which ``size`` bytes are written, behind its last whole line."""
        for line in self._pending:
            if self._written + len(line) > size:
                break
            self._written += len(line)
            self.kept += 1
        self._file.truncate(self._written)


class JsonLinesFile(_LineFile):
    """One JSON object a line."""

    def _line(self, row: Row) -> bytes:
        return f"{json.dumps(_rounded(row), ensure_ascii=False)}\n".encode()


class CsvFile(_LineFile):
    """Comma-separated values, with the names of the columns in the first line."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._text = io.StringIO(newline="")
        self._writer = csv.DictWriter(self._text, SCHEMA.names)
        self._writer.writeheader()  # written with the first row

    def close(self) -> None:
        try:
            if header := self._taken():
                self._file.write(header)
        finally:
            super().close()

    def _line(self, row: Row) -> bytes:
        self._writer.writerow(_rounded(row))
        return self._taken()

    def _taken(self) -> bytes:
        text = self._text.getvalue()
        self._text.seek(0)
        self._text.truncate()
        return text.encode()


class ParquetFile:
    """A Parquet file (zstd), in row groups. Without its footer, which describes them all, it could not be read.

    So room for a row group and the footer is reserved on the disk before the row group is written.
    """

    def __init__(self, path: Path) -> None:
        self.kept = 0
        self._rows: list[Row] = []
        self._failed = False
        self._footer_bytes = _sizes(None)[1]
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close()
        try:
            self._reserve(0)
            self._writer = pq.ParquetWriter(self._file, SCHEMA, compression=_COMPRESSION)
        except BaseException:
            self._file.close()
            raise

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) >= ROWS_A_GROUP:
            self._flush()

    def close(self) -> None:
        with self._file:
            try:
                self._flush()
            finally:
                self._writer.close()
                self._file.truncate()  # what was reserved and not needed
                os.fsync(self._file.fileno())

    def _flush(self) -> None:
        """Write the rows as one group. If the disk has no room for it, write as many as fit, and raise the OSError."""
        rows, self._rows = self._rows, []
        failure = None
        while rows and not self._failed:
            table = as_table(rows)
            try:
                self._add_group(table)
            except OSError as error:
                failure, rows = error, rows[: len(rows) // 2]
            else:
                self.kept += len(rows)
                break
        if failure is not None:
            self._failed = True
            raise failure

    def _add_group(self, table: pa.Table) -> None:
        group_bytes, footer_bytes = _sizes(table)
        before = self._footer_bytes
        self._footer_bytes += footer_bytes
        try:
            self._reserve(group_bytes)
        except OSError:
            self._footer_bytes = before
            raise
        self._writer.write_table(table)

    def _reserve(self, group_bytes: int) -> None:
        if hasattr(os, "posix_fallocate"):
            size = group_bytes + self._footer_bytes + _MAGIC_BYTES
            os.posix_fallocate(self._file.fileno(), self._file.tell(), size)


def _sizes(table: pa.Table | None) -> tuple[int, int]:
    """Return the bytes of a table as a row group, and the most that it adds to the footer; None for no row group."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, SCHEMA, compression=_COMPRESSION) as writer:
        if table is not None:
            writer.write_table(table)
    buffer = sink.getvalue()
    footer = pq.read_metadata(pa.BufferReader(buffer)).serialized_size
    if table is None:
        return 0, footer
    return buffer.size - footer, footer - _sizes(None)[1] + _OFFSET_BYTES


def _rounded(row: Row) -> dict:
    """Return the row with the fewest digits that give the same float32."""
    values = row.as_dict()
    for name in ("logit", "logit_npr", "logit_clip", "probability", "milliseconds"):
        if values[name] is not None:
            values[name] = float(str(np.float32(values[name])))
    return values

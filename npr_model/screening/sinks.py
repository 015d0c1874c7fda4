"""Where rows go: Parquet (one file or a folder of parts), CSV or JSON Lines, by the name of the output.

A file with its final name is complete and readable, also after an interruption: files are written under a temporary
name and renamed in one step.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from npr_model.errors import reason
from npr_model.files import atomic_write
from npr_model.screening import parts
from npr_model.screening.parts import ROWS_A_GROUP, Finished, SinkError
from npr_model.screening.remote import is_url
from npr_model.screening.rows import SCHEMA, Row, as_table

ROWS_A_PART = 50_000
SECONDS_A_PART = 300
_ROWS_A_TABLE = 1000  # as columns, rows take a fifth of the memory

Put = Callable[[Row], None]


@dataclass
class Sink:
    """``write`` takes one row. ``finished``: the sources that have rows from earlier runs into the same folder."""

    write: Put
    finished: Finished = field(default_factory=Finished)
    interrupted: bool = False  # rows will be missing


def check(output: str | os.PathLike) -> None:
    """Raise SinkError for an output that cannot work, before anything is computed."""
    path = Path(output)
    if is_url(os.fspath(output)):
        raise SinkError(f"output {output} is a URL: write to this machine and copy the result")
    if is_folder(output):
        parts.check(path)
    elif path.suffix.lower() not in _FORMATS:
        raise SinkError(f"output {path} must end in {', '.join(_FORMATS)}, or in / for a folder of Parquet parts")
    elif path.is_dir():
        raise SinkError(f"output {path} is a folder: end the name in / to write Parquet parts")
    elif not path.parent.is_dir():
        raise SinkError(f"output {path} is in a folder that does not exist")
    elif not os.access(path.parent, os.W_OK):
        raise SinkError(f"output {path} is in a folder that cannot be written to")


@contextlib.contextmanager
def open_sink(output: str | os.PathLike, identity: Mapping[str, str] = MappingProxyType({})) -> Iterator[Sink]:
    """Yield a :class:`Sink`; at the end of the block the output is complete.

    Args:
        output: Name that ends in .parquet (zstd), .csv or .jsonl, or in "/" for a folder of Parquet parts. A part is
            complete after ROWS_A_PART rows or SECONDS_A_PART seconds.
        identity: A run with the same identity continues in the folder (:class:`npr_model.screening.parts.Parts`).

    If the block raises (also on Ctrl-C), the rows so far are kept; without rows nothing is changed. Raises SinkError.
    """
    check(output)
    path, written = Path(output), 0
    failure: BaseException | None = None
    try:
        with _parquet_parts(path, identity) if is_folder(output) else _FORMATS[path.suffix.lower()](path) as sink:
            put = sink.write

            def write(row: Row) -> None:
                nonlocal written
                try:
                    put(row)
                except OSError as error:
                    raise SinkError(f"output {path} cannot be written: {reason(error)}") from error
                written += 1

            sink.write = write
            try:
                yield sink
            except BaseException as error:
                failure, sink.interrupted = error, True
                if not written:
                    raise
    except OSError as error:
        if error is failure:  # raised by the source of the rows, not by the output
            raise
        raise SinkError(f"output {path} cannot be written: {reason(error)}") from error
    if failure is not None:
        raise failure


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Sink]:
    rows: list[Row] = []

    def flush() -> None:
        if rows:
            writer.write_table(as_table(rows))
            rows.clear()

    def put(row: Row) -> None:
        rows.append(row)
        if len(rows) >= ROWS_A_GROUP:
            flush()

    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        yield Sink(put)
        flush()


@contextlib.contextmanager
def _parquet_parts(folder: Path, identity: Mapping[str, str]) -> Iterator[Sink]:
    rows: list[Row] = []
    tables: list[pa.Table] = []
    began = time.monotonic()

    def flush() -> None:
        nonlocal began
        table, before = pa.concat_tables([*tables, as_table(rows)]), written.count
        rows.clear()  # cleared first: after an interruption the part must not be written again
        tables.clear()
        try:
            written.add(table)
        except BaseException:
            if written.count == before:
                tables.append(table)
            raise
        began = time.monotonic()

    def put(row: Row) -> None:
        rows.append(row)
        if len(rows) + sum(map(len, tables)) >= ROWS_A_PART or time.monotonic() - began > SECONDS_A_PART:
            flush()
        elif len(rows) >= _ROWS_A_TABLE:
            tables.append(as_table(rows))
            rows.clear()

    with parts.opened(folder, identity) as written:
        yield (sink := Sink(put, written.finished()))
        if rows or tables or not written.count:
            flush()
        written.finish(complete=not sink.interrupted)


@contextlib.contextmanager
def _csv(path: Path) -> Iterator[Sink]:
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, SCHEMA.names)
        writer.writeheader()
        yield Sink(lambda row: writer.writerow(_rounded(row)))


@contextlib.contextmanager
def _json_lines(path: Path) -> Iterator[Sink]:
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        yield Sink(lambda row: file.write(json.dumps(_rounded(row), ensure_ascii=False) + "\n"))


_FORMATS = {".parquet": _parquet, ".csv": _csv, ".jsonl": _json_lines}


def is_folder(output: str | os.PathLike) -> bool:
    return os.fspath(output).endswith(("/", os.sep))


def _rounded(row: Row) -> dict:
    """Return the row with the fewest digits that give the same float32."""
    values = row.as_dict()
    for name in ("logit", "probability", "milliseconds"):
        if values[name] is not None:
            values[name] = float(str(np.float32(values[name])))
    return values

"""Where rows go: Parquet (one file, or a folder of parts), CSV or JSON Lines, by the name of the output.

What has its final name is complete and readable, also after an interruption: files are written under a temporary name
beside it and renamed in one step.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from npr_model.errors import InputError, reason
from npr_model.files import replacing
from npr_model.screening.runner import Row

SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("logit", pa.float32()),
        ("probability", pa.float32()),
        ("verdict", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("decoder", pa.string()),
        ("view", pa.string()),
        ("error", pa.string()),
        ("model", pa.string()),
    ]
)
ROWS_A_PART = 50_000
SECONDS_A_PART = 300
_ROWS_A_GROUP = 10_000

Write = Callable[[Row], None]


class SinkError(InputError):
    """An output that cannot be written."""


def check(output: str | os.PathLike) -> None:
    """Raise SinkError for an output that will not work, before anything is computed."""
    path = Path(output)
    if _is_folder(output):
        if path.exists() and not path.is_dir():
            raise SinkError(f"output {path} exists and is not a folder")
        if path.is_dir() and any(path.iterdir()):
            raise SinkError(f"output folder {path} is not empty; choose another, or remove what it holds")
    elif path.suffix.lower() not in _FORMATS:
        raise SinkError(f"output {path} must end in {', '.join(_FORMATS)}, or in / for a folder of Parquet parts")
    elif path.is_dir():
        raise SinkError(f"output {path} is a folder; end it in / for a folder of Parquet parts")
    elif not path.parent.is_dir():
        raise SinkError(f"output {path} is in a folder that does not exist")
    elif not os.access(path.parent, os.W_OK):
        raise SinkError(f"output {path} is in a folder that cannot be written to")


@contextlib.contextmanager
def open_sink(output: str | os.PathLike) -> Iterator[Write]:
    """Gives ``write(row)``; at the end of the block the output is complete.

    ``output`` ends in .parquet (zstd), .csv or .jsonl, or in "/" for a folder of Parquet parts, of which each is
    complete after ROWS_A_PART rows or SECONDS_A_PART seconds: what a killed run leaves. If the block raises (Ctrl-C,
    too), the rows written so far are kept; without any, nothing is changed. Raises SinkError.
    """
    check(output)
    path, written = Path(output), 0
    opened = _parquet_parts if _is_folder(output) else _FORMATS[path.suffix.lower()]
    failure: BaseException | None = None
    try:
        with opened(path) as put:

            def write(row: Row) -> None:
                nonlocal written
                put(row)
                written += 1

            try:
                yield write
            except BaseException as error:
                failure = error
                if not written:
                    raise
    except OSError as error:
        raise SinkError(f"output {path} cannot be written: {reason(error)}") from error
    if failure is not None:
        raise failure


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    rows: list[Row] = []

    def flush() -> None:
        if rows:
            writer.write_table(_table(rows))
            rows.clear()

    def put(row: Row) -> None:
        rows.append(row)
        if len(rows) >= _ROWS_A_GROUP:
            flush()

    with replacing(path) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        yield put
        flush()


@contextlib.contextmanager
def _parquet_parts(folder: Path) -> Iterator[Write]:
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    number, began = 0, time.monotonic()

    def flush() -> None:
        nonlocal number, began
        with replacing(folder / f"part-{number:05}.parquet") as temporary:
            pq.write_table(_table(rows), temporary, compression="zstd")
        rows.clear()
        number, began = number + 1, time.monotonic()

    def put(row: Row) -> None:
        rows.append(row)
        if len(rows) >= ROWS_A_PART or time.monotonic() - began > SECONDS_A_PART:
            flush()

    yield put
    if rows or not number:
        flush()


@contextlib.contextmanager
def _csv(path: Path) -> Iterator[Write]:
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, SCHEMA.names)
        writer.writeheader()
        yield lambda row: writer.writerow(_rounded(row))


@contextlib.contextmanager
def _json_lines(path: Path) -> Iterator[Write]:
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        yield lambda row: file.write(json.dumps(_rounded(row), ensure_ascii=False) + "\n")


_FORMATS = {".parquet": _parquet, ".csv": _csv, ".jsonl": _json_lines}


def _is_folder(output: str | os.PathLike) -> bool:
    return os.fspath(output).endswith(("/", os.sep))


def _table(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist([row.as_dict() for row in rows], SCHEMA)


def _rounded(row: Row) -> dict:
    """The row with the fewest digits that still give the same float32."""
    values = row.as_dict()
    for name in ("logit", "probability"):
        if values[name] is not None:
            values[name] = float(str(np.float32(values[name])))
    return values

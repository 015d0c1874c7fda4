"""Where rows go: Parquet (one file or a folder of parts), CSV or JSON Lines, by the name of the output.

A file with its final name is readable, also after an interruption or on a full disk: files are written under a
temporary name and renamed in one step.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa

from npr_model.errors import system_reason
from npr_model.files import partial_path
from npr_model.scoring.rows import KILLED, Row, as_table
from npr_model.screening.outputs import journal_file, parts
from npr_model.screening.outputs.finished import Finished
from npr_model.screening.outputs.journal_file import Journal, JournalFile
from npr_model.screening.outputs.parts import SinkError
from npr_model.screening.outputs.row_files import CsvFile, JsonLinesFile, ParquetFile, RowFile
from npr_model.screening.urls import is_url

ROWS_A_PART = 50_000
SECONDS_A_PART = 300
_ROWS_A_TABLE = 1000  # as columns, rows take a fifth of the memory
_FORMATS: dict[str, Callable[[Path], RowFile]] = {".parquet": ParquetFile, ".csv": CsvFile, ".jsonl": JsonLinesFile}


@dataclass
class Sink:
    """Where the rows of one run go.

    Attributes:
        write: Takes one row.
        finished: The sources that have rows from earlier runs into the same folder.
        journal: Where to record what is in work.
    """

    write: Callable[[Row], None]
    finished: Finished = field(default_factory=Finished)
    journal: Journal = field(default_factory=Journal)


def check(output: str | os.PathLike, *, retry_failed: bool = False) -> None:
    """Raise SinkError for an output that cannot work, before anything is computed."""
    path = Path(output)
    if is_url(os.fspath(output)):
        raise SinkError(f"output {output} is a URL: write to this machine and copy the result")
    if is_folder(output):
        parts.check(path)
        return
    if retry_failed:
        raise SinkError(f"failed rows are retried in an output folder (a name that ends in /), not in {path}")
    if path.suffix.lower() not in _FORMATS:
        raise SinkError(f"output {path} must end in {', '.join(_FORMATS)}, or in / for a folder of Parquet parts")
    if path.is_dir():
        raise SinkError(f"output {path} is a folder: end the name in / to write Parquet parts")
    if not path.parent.is_dir():
        raise SinkError(f"output {path} is in a folder that does not exist")
    if not os.access(path.parent, os.W_OK):
        raise SinkError(f"output {path} is in a folder that cannot be written to")


@contextlib.contextmanager
def open_sink(
    output: str | os.PathLike, identity: Mapping[str, str] = MappingProxyType({}), *, retry_failed: bool = False
) -> Iterator[Sink]:
    """Yield a :class:`Sink`; at the end of the block the output is complete.

    Args:
        output: Name that ends in .parquet (zstd), .csv or .jsonl, or in "/" for a folder of Parquet parts. A part is
            complete after ROWS_A_PART rows or SECONDS_A_PART seconds.
        identity: A run with the same identity continues in the folder, see :class:`.parts.Parts`.
        retry_failed: Failed rows in the folder do not count as finished. The rows of this run replace them.

    If the block raises (also on Ctrl-C), or the disk is full, the rows so far are kept. Without rows nothing is
    changed. Raises SinkError.
    """
    check(output, retry_failed=retry_failed)
    path = Path(output)
    with _folder_sink(path, identity, retry_failed) if is_folder(output) else _file_sink(path) as sink:
        yield sink


@contextlib.contextmanager
def _file_sink(path: Path) -> Iterator[Sink]:
    temporary = partial_path(path)
    failure: BaseException | None = None
    full: OSError | None = None
    kept = 0

    def write(row: Row) -> None:
        nonlocal full
        try:
            file.add(row)
        except OSError as error:
            full = error
            raise SinkError(f"output {path} cannot be written") from error  # ends the block, and is said in full below

    try:
        file = _FORMATS[path.suffix.lower()](temporary)
        try:
            yield Sink(write)
        except BaseException as error:
            failure = error
        try:
            file.close()
        except OSError as error:
            full = full or error
        kept = file.kept
        if kept or not (failure or full):
            os.replace(temporary, path)
    except OSError as error:
        full = full or error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    if full is not None:
        rows = f"the first {kept} rows are in it" if kept else "no row is in it"
        raise SinkError(
            f"output {path} cannot be written: {system_reason(full)}; {rows}. Make room and run the command again, or "
            "write to a folder (-o FOLDER/), where it would continue"
        ) from full
    if failure is not None:
        raise failure


@contextlib.contextmanager
def _folder_sink(folder: Path, identity: Mapping[str, str], retry_failed: bool) -> Iterator[Sink]:
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
            with _named(folder):
                flush()
        elif len(rows) >= _ROWS_A_TABLE:
            tables.append(as_table(rows))
            rows.clear()

    failure: BaseException | None = None
    with _named(folder), parts.opened(folder, identity, retry_failed=retry_failed) as written:
        record = JournalFile(folder / journal_file.NAME) if hasattr(os, "pwrite") else Journal()  # not on Windows
        try:
            if retry_failed:
                record.suspect(written.failed(KILLED))
            try:
                yield Sink(put, written.finished(), record)
            except BaseException as error:
                failure = error
            if rows or tables or not (failure or written.count):
                flush()
            written.finish(complete=failure is None)
        finally:
            record.close()
    if failure is not None:
        raise failure


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Report an OSError in the block as one that concerns the output."""
    try:
        yield
    except OSError as error:
        raise SinkError(
            f"output {folder} cannot be written: {system_reason(error)}; the parts in it are kept. Make room and run "
            "the same command again: it continues"
        ) from error


def is_folder(output: str | os.PathLike) -> bool:
    """Return whether an output is a folder of parts, by its name."""
    return os.fspath(output).endswith(("/", os.sep))

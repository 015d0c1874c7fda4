"""A folder of Parquet parts with a manifest: output that an interrupted run can continue.

A part gets its final name only when it is complete and on disk. A continued run reads from the parts which sources have
rows, and from the manifest whether it is the same run. No row is lost and none is written twice.

A run that tries failed sources again writes parts named "-retry". Their rows replace the failed rows of the same
sources in the other parts: when that run ends, or, if it was killed, when the next one begins.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from npr_model.errors import InputError, reason
from npr_model.files import atomic_write, is_partial, remove_partials
from npr_model.screening.outputs.finished import Finished, digest
from npr_model.screening.outputs.journal_file import NAME as JOURNAL
from npr_model.screening.outputs.row_files import ROWS_A_GROUP

try:
    import fcntl
except ImportError:  # Windows: the user must not start two runs into one folder
    fcntl = None  # type: ignore[assignment]

MANIFEST = "_manifest.json"  # Parquet readers skip names that start with _
_LOCK = ".lock"
_PART = re.compile(r"part-([0-9]+)(-retry)?\.parquet")
_VERSION = 2  # to be raised with the columns of rows


class SinkError(InputError):
    """An output that cannot be written."""


class Parts:
    """The folder, for one run at a time.

    Args:
        folder: The folder.
        identity: What all its rows have in common, as texts by name.
        retry_failed: Whether the run tries failed sources again.

    Raises:
        SinkError: The folder holds something else or rows of another identity, or another run writes to it.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str], *, retry_failed: bool = False) -> None:
        check(folder)
        self.folder, self._identity, self._retry_failed = folder, dict(identity), retry_failed
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder)
        try:
            self._check_identity()
            remove_partials(folder)
            self._rows = {path.name: self._read(path).metadata.num_rows for path in _paths(folder)}
            self._write_manifest(complete=False)
            self._replace_retried()
        except BaseException:
            self.close()
            raise

    @property
    def count(self) -> int:
        return len(self._rows)

    def finished(self) -> Finished:
        """Return the sources that need no new row. Raises SinkError for a part that cannot be read."""
        return Finished(
            (source, code is not None)
            for name in self._rows
            for source, code in self._sources(name)
            if code is None or not self._retry_failed
        )

    def failed(self, code: str) -> Iterator[str]:
        """Yield the sources of the rows with an error code. Raises SinkError for a part that cannot be read."""
        return (source for name in self._rows for source, row_code in self._sources(name) if row_code == code)

    def add(self, table: pa.Table) -> None:
        """Write one more part."""
        number = 1 + max((_number(name) for name in self._rows), default=-1)
        name = f"part-{number:05}{'-retry' if self._retry_failed else ''}.parquet"
        self._write(name, table)
        self._write_manifest(complete=False)

    def finish(self, *, complete: bool) -> None:
        """Record whether the run is complete."""
        self._replace_retried()
        self._write_manifest(complete)

    def close(self) -> None:
        """Release the folder for other runs."""
        if self._lock is not None:
            self._lock.close()

    def _check_identity(self) -> None:
        manifest = _manifest(self.folder)
        if manifest is None or manifest.get("identity") == self._identity:
            return
        theirs, ours = manifest.get("identity") or {}, self._identity
        different = [f"{name} {theirs.get(name)}" for name in ours if theirs.get(name) != ours[name]]
        raise SinkError(
            f"output folder {self.folder} holds rows of another run ({', '.join(different)}): choose another folder"
        )

    def _replace_retried(self) -> None:
        """Remove the failed rows whose sources have new rows in parts named "-retry", and name these as the others.

        If this is interrupted, doing it again completes it.
        """
        retried = [name for name in self._rows if _is_retry(name)]
        if not retried:
            return
        sources = {digest(source) for name in retried for source, _ in self._sources(name)}
        for name in [name for name in self._rows if name not in retried]:
            rows = list(self._sources(name))
            keep = [code is None or digest(source) not in sources for source, code in rows]
            if all(keep):
                continue
            if any(keep):
                self._write(name, self._read(self.folder / name).read().filter(pa.array(keep)))
            else:
                (self.folder / name).unlink()
                del self._rows[name]
        for name in retried:
            final = name.replace("-retry", "")
            (self.folder / name).replace(self.folder / final)
            self._rows[final] = self._rows.pop(name)

    def _sources(self, name: str) -> Iterator[tuple[str, str | None]]:
        """Yield the source of each row of a part, and its error code; None if it was scored."""
        try:
            for batch in self._read(self.folder / name).iter_batches(columns=["source", "error_code"]):
                yield from zip(*(column.to_pylist() for column in batch.select(["source", "error_code"])), strict=True)
        except (OSError, pa.ArrowException, KeyError) as error:
            raise SinkError(f"{self.folder / name} cannot be read: {reason(error)}") from error

    def _read(self, path: Path) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise SinkError(f"{path} cannot be read: {reason(error)}") from error

    def _write(self, name: str, table: pa.Table) -> None:
        with atomic_write(self.folder / name) as temporary:
            pq.write_table(table, temporary, row_group_size=ROWS_A_GROUP, compression="zstd")
        self._rows[name] = table.num_rows

    def _write_manifest(self, complete: bool) -> None:
        values = {
            "version": _VERSION,
            "identity": self._identity,
            "complete": complete,
            "written": time.strftime("%FT%TZ", time.gmtime()),
            "rows": sum(self._rows.values()),
            "parts": self._rows,
        }
        with atomic_write(self.folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def check(folder: Path) -> None:
    """Raise SinkError if a run can neither start nor continue in the folder."""
    if folder.exists() and not folder.is_dir():
        raise SinkError(f"output {folder} is a file, not a folder")
    if folder.is_dir() and not all(map(_is_passing, folder.iterdir())) and _manifest(folder) is None:
        raise SinkError(f"output folder {folder} holds other files than rows: choose another folder or empty it")


def threshold(folder: Path) -> float | None:
    """Return the verdict threshold of the rows in a folder of parts; None if it is not recorded. Raises SinkError."""
    text = ((_manifest(folder) or {}).get("identity") or {}).get("threshold")
    return None if text is None else float(text)


def _manifest(folder: Path) -> dict | None:
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values["version"] != _VERSION:
            raise ValueError("the rows there have other columns than those of this version: use a new folder")
        return values
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SinkError(f"{folder / MANIFEST} cannot be read: {reason(error)}") from error


def _is_passing(path: Path) -> bool:
    """Return whether a file may be left over from a run that was killed before it wrote anything."""
    return path.name in (_LOCK, JOURNAL) or is_partial(path.name)


def _paths(folder: Path) -> list[Path]:
    paths = (path for path in folder.iterdir() if _PART.fullmatch(path.name))
    return sorted(paths, key=lambda path: _number(path.name))


def _number(name: str) -> int:
    return int(_matched(name)[1])


def _is_retry(name: str) -> bool:
    return _matched(name)[2] is not None


def _matched(name: str) -> re.Match[str]:
    match = _PART.fullmatch(name)
    assert match is not None  # as it is the name of a part
    return match


def _locked(folder: Path) -> BinaryIO | None:
    """Return an open file that holds the lock on the folder until it is closed or the process ends."""
    if fcntl is None:
        return None
    file = open(folder / _LOCK, "wb")  # noqa: SIM115 - open as long as the run lasts
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        taken = isinstance(error, BlockingIOError)
        why = "is being written by another run" if taken else f"cannot be locked: {reason(error)}"
        raise SinkError(f"output folder {folder} {why}") from error
    return file


@contextlib.contextmanager
def opened(folder: Path, identity: Mapping[str, str], *, retry_failed: bool = False) -> Iterator[Parts]:
    """Open a folder as :class:`Parts`, and release it at the end."""
    parts = Parts(folder, identity, retry_failed=retry_failed)
    try:
        yield parts
    finally:
        parts.close()

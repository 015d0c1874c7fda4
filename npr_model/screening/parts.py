"""A folder of Parquet parts with a manifest: output that an interrupted run can continue.

A part gets its final name only when it is complete and on disk. A continued run reads from the parts which sources have
rows, and from the manifest whether it is the same run. No row is lost and none is written twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from npr_model.errors import InputError, reason
from npr_model.files import atomic_write
from npr_model.screening.items import Item

try:
    import fcntl
except ImportError:  # Windows: the user must not start two runs into one folder
    fcntl = None

MANIFEST = "_manifest.json"  # Parquet readers skip names that start with _
_LOCK = ".lock"
_VERSION = 1
ROWS_A_GROUP = 5_000  # per row group; with 50,000 the encoders would use 25 MiB more


class SinkError(InputError):
    """An output that cannot be written."""


class Finished:
    """The sources that have rows, as 128-bit digests with counts: 24 bytes each.

    ``count``: number of rows. ``failed``: how many of them have an error.
    """

    def __init__(self, sources: Iterable[str] = ()) -> None:
        self.failed = 0
        gathered = bytearray()
        for source in sources:
            gathered += _digest(source)
        digests = np.frombuffer(gathered, np.uint64).reshape(-1, 2)
        self.count = len(digests)
        unique, self._copies = np.unique(digests, axis=0, return_counts=True)
        self._first, self._second = unique.T

    def remaining(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the ``items`` that have no row. A source that is listed twice needs two rows."""
        has_row = self.row_matcher()
        return (item for item in items if not has_row(item.source)) if self.count else iter(items)

    def row_matcher(self, earlier: Mapping[str, int] = MappingProxyType({})) -> Callable[[str], bool]:
        """Return a function that tells whether the next occurrence of a source has a row.

        Called again for the same source, it is true as often as there are rows. ``earlier``: occurrences seen
        elsewhere.
        """
        if not self.count:
            return lambda source: False
        taken = np.zeros(len(self._first), np.uint32)  # its pages take memory only once they are written to

        def take(source: str) -> bool:
            first, second = np.frombuffer(_digest(source), np.uint64)
            low, high = np.searchsorted(self._first, first, "left"), np.searchsorted(self._first, first, "right")
            for place in range(low, high):
                if self._second[place] == second and earlier.get(source, 0) + taken[place] < self._copies[place]:
                    taken[place] += 1
                    return True
            return False

        return take


def _digest(source: str) -> bytes:
    return hashlib.blake2b(source.encode(), digest_size=16).digest()


class Parts:
    """The folder, for one run at a time.

    Args:
        folder: The folder.
        identity: What all its rows have in common, as texts by name.

    Raises:
        SinkError: The folder holds something else or rows of another identity, or another run writes to it.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        check(folder)
        self.folder, self._identity = folder, dict(identity)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder)
        manifest = _manifest(folder)
        if manifest is not None and manifest.get("identity") != self._identity:
            theirs = manifest.get("identity") or {}
            different = [f"{name} {theirs.get(name)}" for name in identity if theirs.get(name) != identity[name]]
            self.close()
            raise SinkError(
                f"output folder {folder} holds rows of another run ({', '.join(different)}): choose another folder"
            )
        for left in folder.glob(".*.partial"):  # left by a run that was killed while writing
            left.unlink(missing_ok=True)
        self._rows = {path.name: self._read(path).metadata.num_rows for path in _paths(folder)}
        self._write_manifest(complete=False)

    @property
    def count(self) -> int:
        return len(self._rows)

    def finished(self) -> Finished:
        """Return the sources that have rows. Raises SinkError for a part that cannot be read."""
        failed = 0

        def sources() -> Iterator[str]:
            nonlocal failed
            for name in self._rows:
                try:
                    for batch in self._read(self.folder / name).iter_batches(columns=["source", "error"]):
                        failed += len(batch) - batch.column("error").null_count
                        yield from batch.column("source").to_pylist()
                except (OSError, pa.ArrowException, KeyError) as error:
                    raise SinkError(f"{self.folder / name} cannot be read: {reason(error)}") from error

        finished = Finished(sources())
        finished.failed = failed
        return finished

    def add(self, table: pa.Table) -> None:
        """Write one more part."""
        number = 1 + max((int(name[5:-8]) for name in self._rows), default=-1)
        name = f"part-{number:05}.parquet"
        with atomic_write(self.folder / name) as temporary:
            pq.write_table(table, temporary, row_group_size=ROWS_A_GROUP, compression="zstd")
        self._rows[name] = table.num_rows
        self._write_manifest(complete=False)

    def finish(self, *, complete: bool) -> None:
        """Record whether the run is complete."""
        self._write_manifest(complete)

    def close(self) -> None:
        """Release the folder for other runs."""
        if self._lock is not None:
            self._lock.close()

    def _read(self, path: Path) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            self.close()
            raise SinkError(f"{path} cannot be read: {reason(error)}") from error

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
        if not isinstance(values, dict) or values["version"] > _VERSION:
            raise ValueError("not a manifest that this version can read")
        return values
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SinkError(f"{folder / MANIFEST} cannot be read: {reason(error)}") from error


def _is_passing(path: Path) -> bool:
    """Return whether a file may be left over from a run that was killed before it wrote anything."""
    return path.name == _LOCK or (path.name.startswith(".") and path.name.endswith(".partial"))


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def _locked(folder: Path):
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
def opened(folder: Path, identity: Mapping[str, str]) -> Iterator[Parts]:
    parts = Parts(folder, identity)
    try:
        yield parts
    finally:
        parts.close()

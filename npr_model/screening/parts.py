"""A folder of Parquet parts with a manifest: the output that a run which was killed goes on with.

A part has its final name only when it is complete and on disk, so the parts are the truth: a run that goes on asks them
which sources have rows, and the manifest whether it is the same run. No row is lost, none is doubled.
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
except ImportError:  # not on Windows: two runs into one folder are then up to the user
    fcntl = None

MANIFEST = "_manifest.json"  # readers of a folder of Parquet leave out names that begin so
_LOCK = ".lock"
_VERSION = 1
ROWS_A_GROUP = 5_000  # written at once: of 50,000 the encoders would take 25 MiB more


class SinkError(InputError):
    """An output that cannot be written."""


class Finished:
    """The sources that have rows, as counts of 128-bit digests: 24 bytes each, however long the names.

    ``count`` rows, of which ``failed`` say an error.
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
        """``items`` without those that have rows: of a source that is listed twice, as many as have none."""
        has_row = self.row_matcher()
        return (item for item in items if not has_row(item.source)) if self.count else iter(items)

    def row_matcher(self, earlier: Mapping[str, int] = MappingProxyType({})) -> Callable[[str], bool]:
        """Says of one source after another whether it has a row, of each as often as there are rows of it.

        ``earlier``: how often sources have been asked for elsewhere.
        """
        if not self.count:
            return lambda source: False
        taken = np.zeros(len(self._first), np.uint32)  # pages of it come to be when they are written to

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
    """The folder, for one run at a time. ``identity``: what all its rows have in common, by name, as texts.

    Raises SinkError for a folder that holds something else, rows of another identity, or that another run writes to.
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
            raise SinkError(f"output folder {folder} holds rows of {', '.join(different)}: choose another")
        for left in folder.glob(".*.partial"):  # by a run that was killed while writing
            left.unlink(missing_ok=True)
        self._rows = {path.name: self._read(path).metadata.num_rows for path in _paths(folder)}
        self._write_manifest(complete=False)

    @property
    def count(self) -> int:
        return len(self._rows)

    def finished(self) -> Finished:
        """The sources that have rows. Raises SinkError for a part that cannot be read."""
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
        """Say whether the run came to its end."""
        self._write_manifest(complete)

    def close(self) -> None:
        """Let other runs have the folder."""
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
    """Raise SinkError where a run can neither begin nor go on."""
    if folder.exists() and not folder.is_dir():
        raise SinkError(f"output {folder} exists and is not a folder")
    if folder.is_dir() and not all(map(_is_passing, folder.iterdir())) and _manifest(folder) is None:
        raise SinkError(f"output folder {folder} holds something else than rows; choose another, or empty it")


def threshold(folder: Path) -> float | None:
    """The threshold of the verdicts in a folder of parts; None where it does not say. Raises SinkError."""
    text = ((_manifest(folder) or {}).get("identity") or {}).get("threshold")
    return None if text is None else float(text)


def _manifest(folder: Path) -> dict | None:
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values["version"] > _VERSION:
            raise ValueError("not a manifest that this version reads")
        return values
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SinkError(f"{folder / MANIFEST} cannot be read: {reason(error)}") from error


def _is_passing(path: Path) -> bool:
    """Whether it may be left by a run that was killed before it wrote anything."""
    return path.name == _LOCK or (path.name.startswith(".") and path.name.endswith(".partial"))


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def _locked(folder: Path):
    """An open file that holds the folder's lock, until it is closed or the process dies."""
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

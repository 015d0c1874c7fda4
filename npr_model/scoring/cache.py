"""Scores of earlier runs, kept in a file by the bytes of the images."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import replace

from npr_model.errors import InputError, reason
from npr_model.scoring.rows import Row

_VERSION = 3  # to be raised when the same checkpoint gives other logits
ROWS_A_COMMIT = 1000
_SECONDS_OF_PATIENCE = 60  # while another run writes to the same cache
_OF_THE_RUN = ("source", "sha256", "view", "model", "probability", "verdict", "milliseconds", "error", "error_code")


class Cache:
    """Logits of earlier runs in a SQLite file, by sha256, model, view and dtype. Several runs may use it at once.

    Args:
        path: The file; created if it does not exist.
        dtype: Precision of the logits.
        finish: finish(row, logit) adds probability and verdict, which depend on the run and are not stored.

    Raises:
        InputError: The file is not such a cache.
    """

    def __init__(self, path: str | os.PathLike, dtype: str, finish: Callable[[Row, float], Row]) -> None:
        self._path, self._dtype, self._finish, self._lock = path, dtype, finish, threading.Lock()
        self._pending: list[tuple] = []  # written together, as an open transaction would block other runs
        try:
            self._database = sqlite3.connect(path, timeout=_SECONDS_OF_PATIENCE, check_same_thread=False)
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")  # another run may be creating the same file
                version, tables = self._one("PRAGMA user_version"), self._one("SELECT count(*) FROM sqlite_master")
                if (version, tables) == (0, 0):
                    self._database.execute(
                        "CREATE TABLE rows (sha256 BLOB, model TEXT, view TEXT, dtype TEXT, row TEXT, "
                        "PRIMARY KEY (sha256, model, view, dtype)) WITHOUT ROWID"
                    )
                    self._database.execute(f"PRAGMA user_version = {_VERSION}")
                elif version != _VERSION:
                    raise InputError(f"cache {path} is another kind of database, or of another version")
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def add(self, row: Row) -> None:
        """Store a scored row. :meth:`find` finds it after at most ROWS_A_COMMIT rows. Raises InputError."""
        values = {name: value for name, value in row.as_dict().items() if name not in _OF_THE_RUN}
        self._pending.append((*self._key(row), json.dumps(values, separators=(",", ":"))))
        if len(self._pending) >= ROWS_A_COMMIT:
            self.commit()

    def find(self, row: Row) -> Row | None:
        """Return the cached row of identical bytes with the source of ``row``; None if unknown. Raises InputError."""
        query = "SELECT row FROM rows WHERE sha256 = ? AND model = ? AND view = ? AND dtype = ?"
        try:
            with self._lock:
                match = self._database.execute(query, self._key(row)).fetchone()
        except sqlite3.Error as error:
            raise self._failure(error) from error
        if match is None:
            return None
        values = json.loads(match[0])
        return self._finish(replace(row, **values), values["logit"])

    def commit(self) -> None:
        """Write the pending rows. Raises InputError."""
        try:
            with self._lock, self._database:
                self._database.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?)", self._pending)
        except sqlite3.Error as error:
            raise self._failure(error) from error
        self._pending.clear()

    def _key(self, row: Row) -> tuple[bytes, str | None, str | None, str]:
        return bytes.fromhex(row.sha256 or ""), row.model, row.view, self._dtype

    def _one(self, query: str) -> int:
        return self._database.execute(query).fetchone()[0]

    def _failure(self, error: sqlite3.Error) -> InputError:
        return InputError(f"cache {os.fspath(self._path)} cannot be used: {reason(error)}")

"""Images inside tar, zip and Parquet files, which are never unpacked to disk.

A member is named "ARCHIVE::MEMBER". A bad member is one failed item. A damaged archive yields everything before the
damage, then one failed item.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from npr_model.errors import InputError, reason
from npr_model.scoring.items import Item, failing
from npr_model.screening.inputs.content import HEAD_BYTES, archive_kind
from npr_model.screening.inputs.decompression import CHUNK
from npr_model.screening.inputs.parquet import parquet_items
from npr_model.screening.inputs.skipped import EMPTY_ARCHIVE, Skip
from npr_model.screening.inputs.tars import tar_items
from npr_model.screening.inputs.zips import zip_items

_TAR_SUFFIXES = (".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


def is_archive_name(name: str) -> bool:
    """Return whether a file is an archive by its suffix, in any case."""
    return _path(name).endswith((*_TAR_SUFFIXES, ".zip", ".parquet"))


def _path(name: str) -> str:
    """Return the name in lower case, for http URLs without the query."""
    lower = name.lower()
    return lower.partition("?")[0] if lower.startswith(("http://", "https://")) else lower


@dataclass(frozen=True)
class Archive:
    """An archive, which is read from its start each time. Its content tells its kind, else its suffix.

    Attributes:
        name: What members are named after.
        opened: Opens it for reading.
        column: Parquet column that holds the encoded images. None: the only binary column.
    """

    name: str
    opened: Callable[[], BinaryIO]
    column: str | None = None

    def items(self, skip: Skip) -> Iterator[Item]:
        """Yield its images. ``skip`` is called with each member that is skipped."""
        try:
            file = self.opened()
        except OSError as error:
            yield failing(self.name, f"the archive cannot be opened: {reason(error)}")
            return
        is_empty = True
        try:
            with file:
                for item in self._read(file, skip):
                    is_empty = False
                    yield item
            if is_empty:
                skip(self.name, EMPTY_ARCHIVE)
        except InputError as error:
            yield failing(self.name, str(error))
        except Exception as error:  # a damaged archive can make its readers raise anything
            yield failing(self.name, f"the archive is truncated or damaged ({reason(error)})")

    def _read(self, file: BinaryIO, skip: Skip) -> Iterator[Item]:
        head = file.read(HEAD_BYTES)
        kind = archive_kind(head) or _path(self.name).rpartition(".")[2]
        if kind == "zip":
            _rewind(file)
            yield from zip_items(file, self.name, skip)
        elif kind == "parquet":
            _rewind(file)
            yield from parquet_items(file, self.name, self.column, skip)
        else:
            pieces = iter(functools.partial(file.read, CHUNK), b"")
            yield from tar_items(itertools.chain([head], pieces), self.name, skip)


def _rewind(file: BinaryIO) -> None:
    try:
        file.seek(0)
    except (OSError, ValueError) as error:
        raise InputError(
            "zip and Parquet files are not read from start to end, and this server sends no parts of files: "
            "download the file first"
        ) from error

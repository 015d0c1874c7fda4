"""Images inside tar, zip and Parquet files, read as streams and never unpacked to disk.

A member is named "ARCHIVE::MEMBER". A bad member is one failed item. A damaged archive yields everything before the
damage, then one failed item.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from npr_model.errors import InputError, reason
from npr_model.files import is_image_name
from npr_model.screening.items import MAX_BYTES, Item, failing, in_memory, too_large

_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_ROWS_AT_ONCE = 16

Skip = Callable[[str], None]


def is_archive(name: str) -> bool:
    """Return whether :class:`Archive` reads a file, by its suffix in any case."""
    return _path(name).endswith((*_TAR_SUFFIXES, ".zip", ".parquet"))


def _path(name: str) -> str:
    """Return the name in lower case, for http URLs without the query."""
    lower = name.lower()
    return lower.partition("?")[0] if lower.startswith(("http://", "https://")) else lower


@dataclass(frozen=True)
class Archive:
    """An archive, which is read from its start each time.

    Attributes:
        name: What members are named after.
        opened: Opens it for reading.
        column: Parquet column that holds the encoded images. None: the only binary column.
    """

    name: str
    opened: Callable[[], BinaryIO]
    column: str | None = None

    def items(self, skip: Skip) -> Iterator[Item]:
        """Yield its images. ``skip`` is called with each member that has no image suffix."""
        path = _path(self.name)
        read = _zip if path.endswith(".zip") else _tar
        try:
            with self.opened() as file:
                if path.endswith(".parquet"):
                    yield from _parquet(file, self.name, self.column)
                else:
                    yield from read(file, self.name, skip)
        except (InputError, FileNotFoundError) as error:
            yield failing(self.name, reason(error))
        except Exception as error:  # a damaged archive can make its readers raise anything
            yield failing(self.name, f"the archive is truncated or damaged ({reason(error)})")


def _tar(file: BinaryIO, name: str, skip: Skip) -> Iterator[Item]:
    with _unpacked(file) as unpacked, _Tar.open(fileobj=unpacked, mode="r|", tarinfo=_Member) as archive:  # no seeking
        for member in archive:
            archive.members.clear()  # tarfile would keep them all
            source = f"{name}::{_readable(member.name)}"
            if member.isdir():
                continue
            if not is_image_name(member.name):
                skip(source)
            elif member.issym() or member.islnk():
                yield failing(source, f"it is a link to {_readable(member.linkname)}; links in a tar are not followed")
            elif not member.isfile():
                yield failing(source, "it is not a regular file")
            elif member.size > MAX_BYTES:
                yield failing(source, too_large(member.size))
            else:
                data = archive.extractfile(member).read()
                if len(data) < member.size:
                    raise EOFError(f"{_readable(member.name)} has {len(data)} of {member.size} bytes")
                yield in_memory(source, data)
        if not archive.has_end:
            raise EOFError("the end mark is missing")


def _unpacked(file: BinaryIO) -> BinaryIO:
    """Return the decompressed content of ``file``, by its first bytes, also of several concatenated streams."""
    buffered = file if hasattr(file, "peek") else io.BufferedReader(file)
    first = buffered.peek(6)
    for magic, opened in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open)):
        if first.startswith(magic):
            return opened(buffered)
    return buffered


class _Tar(tarfile.TarFile):
    has_end = False


class _Member(tarfile.TarInfo):
    """Notices the end mark: without it, a tar truncated between two members would look complete."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            archive.has_end = True
            raise


def _zip(file: BinaryIO, name: str, skip: Skip) -> Iterator[Item]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            source = f"{name}::{_readable(member.filename)}"
            if member.is_dir():
                continue
            if not is_image_name(member.filename):
                skip(source)
                continue
            try:
                with archive.open(member) as opened:
                    data = opened.read(MAX_BYTES + 1)  # the size in the header may be wrong
            except Exception as error:  # checksum, password, unknown method: later members may be fine
                yield failing(source, f"the file in the archive cannot be read ({reason(error)})")
                continue
            if len(data) > MAX_BYTES:
                yield failing(source, f"it unpacks to more than the limit of {MAX_BYTES} bytes")
            else:
                yield in_memory(source, data)


def _parquet(file: BinaryIO, name: str, column: str | None) -> Iterator[Item]:
    table = pq.ParquetFile(file)
    chosen = column or _column_of_bytes(table.schema_arrow, name)
    if chosen not in table.schema_arrow.names:
        raise InputError(f"{name} has no column {chosen!r}; it has: {', '.join(table.schema_arrow.names)}")
    row = 0
    for batch in table.iter_batches(_ROWS_AT_ONCE, columns=[chosen]):
        for value in batch.column(0):
            data = value.as_py()
            data = data.get("bytes") if isinstance(data, dict) else data
            source, row = f"{name}::{row}", row + 1
            if isinstance(data, bytes):
                yield in_memory(source, data)
            else:
                yield failing(source, f"the column {chosen} has no image bytes in this row")


def _column_of_bytes(schema: pa.Schema, name: str) -> str:
    """Return the only binary column, or struct column with a binary field "bytes" (as in data sets on hubs)."""

    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found = [field.name for field in schema if holds_bytes(field.type)]
    if len(found) != 1:
        several = f"several binary columns ({', '.join(found)}): choose one with --column"
        raise InputError(f"{name} has {several if found else 'no binary column'}")
    return found[0]


def _readable(name: str) -> str:
    """Return a member's name as valid UTF-8 text; tar keeps other bytes as surrogates."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

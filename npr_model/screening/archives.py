"""Images inside other files, read one after the other and never unpacked to disk: tar, zip and Parquet.

A member's name is that of its archive, "::" and its own. What is wrong with one member is its own error; a damaged
archive gives what comes before the damage, then one item that fails.
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
    """Whether :class:`Archive` reads it, by its suffix in any case."""
    return _path(name).endswith((*_TAR_SUFFIXES, ".zip", ".parquet"))


def _path(name: str) -> str:
    """In lower case and, of an http URL, without the query."""
    lower = name.lower()
    return lower.partition("?")[0] if lower.startswith(("http://", "https://")) else lower


@dataclass(frozen=True)
class Archive:
    """An archive that ``opened`` opens, read from its beginning each time.

    ``column``: of a Parquet file the one with the encoded images, where there are several of bytes.
    """

    name: str
    opened: Callable[[], BinaryIO]
    column: str | None = None

    def items(self, skip: Skip) -> Iterator[Item]:
        """Its images; ``skip`` is given every member that is none by name."""
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
        except Exception as error:  # a damaged archive leads its readers to whatever exception they run into
            yield failing(self.name, f"the archive is cut off or damaged ({reason(error)})")


def _tar(file: BinaryIO, name: str, skip: Skip) -> Iterator[Item]:
    with _unpacked(file) as unpacked, _Tar.open(fileobj=unpacked, mode="r|", tarinfo=_Member) as archive:  # no seeking
        for member in archive:
            archive.members.clear()  # it would keep them all
            source = f"{name}::{_readable(member.name)}"
            if member.isdir():
                continue
            if not is_image_name(member.name):
                skip(source)
            elif member.issym() or member.islnk():
                yield failing(source, f"links in a tar are not followed, and it is one to {_readable(member.linkname)}")
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
            raise EOFError("it has no end mark")


def _unpacked(file: BinaryIO) -> BinaryIO:
    """What ``file`` holds, by its first bytes; all of it, where several compressed streams follow one another."""
    buffered = file if hasattr(file, "peek") else io.BufferedReader(file)
    first = buffered.peek(6)
    for magic, opened in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open)):
        if first.startswith(magic):
            return opened(buffered)
    return buffered


class _Tar(tarfile.TarFile):
    has_end = False


class _Member(tarfile.TarInfo):
    """A tar that is cut off between two members would else look like a whole one."""

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
                    data = opened.read(MAX_BYTES + 1)  # what the header claims may be a lie
            except Exception as error:  # a wrong checksum, a password, a method unknown: the next ones may be good
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
                yield failing(source, f"the column {chosen} has no bytes in this row")


def _column_of_bytes(schema: pa.Schema, name: str) -> str:
    """The only column that can hold images: of bytes, or of structs with a field "bytes" (as datasets on hubs have)."""

    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found = [field.name for field in schema if holds_bytes(field.type)]
    if len(found) != 1:
        several = f"several columns of bytes ({', '.join(found)}): choose with --column"
        raise InputError(f"{name} has {several if found else 'no column of bytes'}")
    return found[0]


def _readable(name: str) -> str:
    """A member's name as text that UTF-8 can hold: tar keeps odd bytes as surrogates."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

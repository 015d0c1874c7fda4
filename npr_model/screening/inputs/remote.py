"""Remote files: every URL that fsspec knows (s3://, gs://, https://, hf://, zip://...::...)."""

from __future__ import annotations

import functools
import io
import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import fsspec

from npr_model.errors import InputError, reason
from npr_model.files import HIDDEN, is_hidden, natural_key
from npr_model.imaging.formats.suffixes import is_image_name
from npr_model.scoring.items import MAX_BYTES, Item, failing, too_large
from npr_model.screening.inputs.archives import Archive, is_archive_name
from npr_model.screening.inputs.retries import request
from npr_model.screening.inputs.skipped import INNER_ARCHIVE, NO_IMAGE_NAME, Skip

_SCHEME = re.compile(r"(?:^|(?<=::))[A-Za-z][A-Za-z0-9+.-]*(?=://)")


class Remote:
    """A file, a folder or a glob pattern at ``url``.

    An existing name is never a pattern, whatever characters it has; "?" starts the query of an http URL. ``listed``:
    the URL is a line of a list. Then it is never a pattern, and if it looks like a file it is not looked up. Raises
    InputError if it cannot be reached.
    """

    def __init__(self, url: str, *, listed: bool = False) -> None:
        self._pattern: re.Pattern | None = None
        self._depth: int | None = None  # folders below the path; None for all
        self._is_folder, self._size = True, None
        url = _SCHEME.sub(lambda scheme: scheme[0].lower(), url)
        try:
            # Without the listing cache, which would hold every name.
            self._files, self._path = fsspec.core.url_to_fs(url, use_listings_cache=False)
            inner, chained, outer = url.partition("::")
            self._chain = chained + outer if "://" in inner else ""
            if listed and _is_file_name(self._path.partition("?")[0]):
                self._is_folder = False
                return
            try:
                # Not isdir() and exists(), which report every failure as "no".
                info = request(lambda: self._files.info(self._path))
                self._is_folder, self._size = info["type"] == "directory", info.get("size")
            except FileNotFoundError:
                magic = re.search("[*[]" if url.startswith("http") else "[*?[]", self._path)
                if listed or magic is None:
                    raise
                self._pattern = re.compile(fsspec.utils.glob_translate(self._path))
                self._depth = None if "**" in self._path else self._path.count("/", magic.start())
                self._path = "".join(self._path[: magic.start()].rpartition("/")[:2])
                request(lambda: self._files.ls(self._path, detail=False))  # report errors at once
        except FileNotFoundError as error:
            raise InputError(f"{url} does not exist") from error
        except ImportError as error:
            extra = "s3" if url.startswith("s3") else "http" if url.startswith("http") else None
            hint = f"pip install 'npr-kernels[{extra}]'" if extra else reason(error)
            raise InputError(f"{url} needs a package that is not installed: {hint}") from error
        except Exception as error:  # libraries behind the protocols can raise anything
            raise InputError(f"{url} cannot be reached: {reason(error)}") from error

    def entries(self, column: str | None, skip: Skip) -> Iterator[Item | Archive]:
        """Yield the file, the matches of the pattern, or the images of the folder; archives in folders are skipped.

        All depths in natural order, with one folder in memory at a time. A folder that cannot be listed is a failed
        item. ``skip`` is called with each file in a folder that is skipped. ``column``: as in Archive.
        """
        if not self._is_folder:
            yield self._entry(self._path, self._size, column)
            return
        is_match = self._pattern.match if self._pattern is not None else None
        for entry in self._below(self._path, skip if is_match is None else lambda name, reason: None):
            if isinstance(entry, Item):
                yield entry
                continue
            path, size = entry
            if is_match is not None:
                if is_match(path):
                    yield self._entry(path, size, column)
            elif is_image_name(path):
                yield self._item(path, size)
            else:
                skip(path, INNER_ARCHIVE if is_archive_name(path) else NO_IMAGE_NAME)

    def _below(self, root: str, skip: Skip) -> Iterator[tuple[str, int | None] | Item]:
        """Yield the visible files, each with its size if known. ``skip`` is called with each hidden file or folder."""
        pending = [(root, self._depth)]
        while pending:
            folder, depth = pending.pop()
            try:
                entries = request(functools.partial(self._files.ls, folder, detail=True))
            except Exception as error:
                yield failing(self._name(folder), f"the folder cannot be listed: {reason(error)}")
                continue
            below = []
            for entry in sorted(entries, key=lambda entry: natural_key(entry["name"])):
                name = entry["name"].rstrip("/")
                if name == folder.rstrip("/"):
                    continue
                if is_hidden(name.rpartition("/")[2]):
                    skip(name, HIDDEN)
                elif entry["type"] == "directory":
                    below.append((name, None if depth is None else depth - 1))
                else:
                    yield name, entry.get("size")
            if depth != 0:
                pending += reversed(below)

    def _entry(self, path: str, size: int | None, column: str | None) -> Item | Archive:
        if is_archive_name(path):
            return Archive(self._name(path), functools.partial(_open, self._files, path), column)
        return self._item(path, size)

    def _item(self, path: str, size: int | None) -> Item:
        if size is not None and size > MAX_BYTES:
            return failing(self._name(path), too_large(size))
        return Item(self._name(path), functools.partial(_load, self._files, path, size is not None))

    def _name(self, path: str) -> str:
        """Return the URL of a path on the same file system."""
        return self._files.unstrip_protocol(path) + self._chain


def _is_file_name(path: str) -> bool:
    return is_image_name(path) or is_archive_name(path)


def _open(files: fsspec.AbstractFileSystem, path: str) -> BinaryIO:
    """Open a file. Raises OSError."""
    return cast(BinaryIO, _Persistent(request(lambda: files.open(path, "rb"))))


class _Persistent(io.RawIOBase):
    """An open remote file whose reads are repeated after failures that may be temporary."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        place = self._file.tell()

        def again() -> bytes:
            if self._file.tell() != place:
                self._file.seek(place)
            return self._file.read(size)

        return request(again)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _load(files: fsspec.AbstractFileSystem, path: str, size_is_known: bool) -> bytes:
    def beginning() -> bytes:
        with files.open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)

    data = request((lambda: files.cat_file(path)) if size_is_known else beginning)
    if len(data) > MAX_BYTES:
        raise OSError(f"it is more than the limit of {MAX_BYTES} bytes")
    return data

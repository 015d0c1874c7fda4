"""Remote files: every URL that fsspec knows (s3://, gs://, https://, hf://, zip://...::...)."""

from __future__ import annotations

import errno
import functools
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import fsspec

from npr_model.errors import InputError, reason
from npr_model.files import is_image_name, natural_key
from npr_model.screening.archives import Archive, is_archive
from npr_model.screening.items import MAX_BYTES, Item, failing, too_large

_WAITS = (0.2, 1.0, 3.0)  # seconds before the next attempts


def is_url(path: str) -> bool:
    return "://" in path


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
        try:
            # Without the listing cache, which would hold every name.
            self._files, self._path = fsspec.core.url_to_fs(url, use_listings_cache=False)
            inner, chained, rest = url.partition("::")
            self._chain = chained + rest if "://" in inner else ""
            if listed and _is_file_name(self._path.partition("?")[0]):
                self._is_folder = False
                return
            try:
                # Not isdir() and exists(), which report every failure as "no".
                found = _again(lambda: self._files.info(self._path))
                self._is_folder, self._size = found["type"] == "directory", found.get("size")
            except FileNotFoundError:
                magic = re.search("[*[]" if url.startswith("http") else "[*?[]", self._path)
                if listed or magic is None:
                    raise
                self._pattern = re.compile(fsspec.utils.glob_translate(self._path))
                self._depth = None if "**" in self._path else self._path.count("/", magic.start())
                self._path = "".join(self._path[: magic.start()].rpartition("/")[:2])
                _again(lambda: self._files.ls(self._path, detail=False))  # report errors at once
        except FileNotFoundError as error:
            raise InputError(f"{url} does not exist") from error
        except ImportError as error:
            extra = "s3" if url.startswith("s3") else "http" if url.startswith("http") else None
            hint = f"pip install 'npr-kernels[{extra}]'" if extra else reason(error)
            raise InputError(f"{url} needs a package that is not installed: {hint}") from error
        except Exception as error:  # libraries behind the protocols can raise anything
            raise InputError(f"{url} cannot be reached: {reason(error)}") from error

    def entries(self, column: str | None, skip: Callable[[str], None]) -> Iterator[Item | Archive]:
        """Yield the file, the matches of the pattern, or the images of the folder; archives in folders are skipped.

        All depths in natural order, with one folder in memory at a time. A folder that cannot be listed is a failed
        item. ``skip`` is called with each file in a folder that has no image suffix. ``column``: as in Archive.
        """
        if not self._is_folder:
            yield self._entry(self._path, self._size, column)
            return
        for found in self._below(self._path, self._depth):
            if isinstance(found, Item):
                yield found
                continue
            path, size = found
            if self._pattern is not None:
                if self._pattern.match(path):
                    yield self._entry(path, size, column)
            elif is_image_name(path):
                yield self._item(path, size)
            else:
                skip(path)

    def _below(self, folder: str, depth: int | None) -> Iterator[tuple[str, int | None] | Item]:
        """Yield the visible files, each with its size if known."""
        try:
            entries = _again(lambda: self._files.ls(folder, detail=True))
        except Exception as error:
            yield failing(self._name(folder), f"the folder cannot be listed: {reason(error)}")
            return
        folders = []
        for entry in sorted(entries, key=lambda entry: natural_key(entry["name"])):
            name = entry["name"].rstrip("/")
            if name == folder.rstrip("/") or name.rpartition("/")[2].startswith("."):
                continue
            if entry["type"] == "directory":
                folders.append(name)
            else:
                yield name, entry.get("size")
        if depth == 0:
            return
        for name in folders:
            yield from self._below(name, None if depth is None else depth - 1)

    def _entry(self, path: str, size: int | None, column: str | None) -> Item | Archive:
        if is_archive(path):
            return Archive(self._name(path), functools.partial(_open, self._files, path), column)
        return self._item(path, size)

    def _item(self, path: str, size: int | None) -> Item:
        if (size or 0) > MAX_BYTES:
            return failing(self._name(path), too_large(size))
        return Item(self._name(path), functools.partial(_load, self._files, path, size is not None))

    def _name(self, path: str) -> str:
        """Return the URL of a path on the same file system."""
        return self._files.unstrip_protocol(path) + self._chain


def _is_file_name(path: str) -> bool:
    return is_image_name(path) or is_archive(path)


def _open(files: fsspec.AbstractFileSystem, path: str) -> BinaryIO:
    """Open a file. Raises OSError."""
    try:
        return _again(lambda: files.open(path, "rb"))
    except Exception as error:
        raise OSError(reason(error)) from error


def _load(files: fsspec.AbstractFileSystem, path: str, size_is_known: bool) -> bytes:
    def beginning() -> bytes:
        with files.open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)

    try:
        data = _again((lambda: files.cat_file(path)) if size_is_known else beginning)
    except FileNotFoundError as error:  # most file systems give only the name
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
    except OSError:
        raise
    except Exception as error:
        raise OSError(reason(error)) from error
    if len(data) > MAX_BYTES:
        raise OSError(f"it is more than the limit of {MAX_BYTES} bytes")
    return data


def _again(call: Callable[[], Any]) -> Any:
    """Call, and repeat after failures that may be temporary."""
    for wait in _WAITS:
        try:
            return call()
        except (FileNotFoundError, PermissionError, IsADirectoryError, ImportError, ValueError):
            raise
        except Exception:
            time.sleep(wait)
    return call()

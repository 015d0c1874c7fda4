"""Files that are elsewhere: every URL that fsspec knows (s3://, gs://, https://, hf://, zip://...::...)."""

from __future__ import annotations

import functools
import glob
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import fsspec

from npr_model.errors import InputError, reason
from npr_model.files import is_image_name, natural_key
from npr_model.screening.items import MAX_BYTES, Item, failing, too_large

_WAITS = (0.2, 1.0, 3.0)  # seconds before another attempt


def is_url(path: str) -> bool:
    return "://" in path


class Remote:
    """A file, a folder or a glob pattern at ``url``. Raises InputError for one that cannot be reached."""

    def __init__(self, url: str) -> None:
        try:
            # Without the cache of listings, which would hold every name.
            self._files, self._path = fsspec.core.url_to_fs(url, use_listings_cache=False)
            self.is_pattern = glob.has_magic(self._path)
            # Not isdir() and exists(), which take every failure for "no".
            self.is_folder = not self.is_pattern and _again(lambda: self._files.info(self._path))["type"] == "directory"
        except FileNotFoundError as error:
            raise InputError(f"{url} does not exist") from error
        except Exception as error:  # whatever the library behind the protocol raises
            raise InputError(f"{url} cannot be reached: {reason(error)}") from error

    def paths(self) -> list[str]:
        """The files of a pattern, or the one file."""
        if self.is_pattern:
            return sorted(_again(lambda: self._files.glob(self._path)), key=natural_key)
        return [self._path]

    def walk(self, skip: Callable[[str], None]) -> Iterator[Item]:
        """The images of a folder, at all depths in natural order; only one folder is held at a time.

        A folder that cannot be listed is an item that fails; ``skip`` is given every file that is no image by name.
        """
        return self._walk(self._path, skip)

    def _walk(self, folder: str, skip: Callable[[str], None]) -> Iterator[Item]:
        try:
            entries = _again(lambda: self._files.ls(folder, detail=True))
        except Exception as error:
            yield failing(self.name(folder), f"the folder cannot be listed: {reason(error)}")
            return
        folders = []
        for entry in sorted(entries, key=lambda entry: natural_key(entry["name"])):
            name = entry["name"].rstrip("/")
            if name == folder.rstrip("/") or name.rpartition("/")[2].startswith("."):
                continue
            if entry["type"] == "directory":
                folders.append(name)
            elif not is_image_name(name):
                skip(name)
            elif (entry.get("size") or 0) > MAX_BYTES:
                yield failing(self.name(name), too_large(entry["size"]))
            else:
                yield self.item(name)
        for name in folders:
            yield from self._walk(name, skip)

    def name(self, path: str) -> str:
        """The URL of a path on the same file system."""
        return self._files.unstrip_protocol(path)

    def item(self, path: str) -> Item:
        return Item(self.name(path), functools.partial(_load, self._files, path))

    def open(self, path: str) -> BinaryIO:
        """Raises OSError."""
        try:
            return _again(lambda: self._files.open(path, "rb"))
        except Exception as error:
            raise OSError(reason(error)) from error


def _load(files: fsspec.AbstractFileSystem, path: str) -> bytes:
    try:
        return _again(lambda: files.cat_file(path))
    except OSError:
        raise
    except Exception as error:
        raise OSError(reason(error)) from error


def _again(call: Callable[[], Any]) -> Any:
    """The call's result, tried again after failures that may pass."""
    for wait in _WAITS:
        try:
            return call()
        except (FileNotFoundError, PermissionError, IsADirectoryError, ImportError, ValueError):
            raise
        except Exception:
            time.sleep(wait)
    return call()

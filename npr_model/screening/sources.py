"""Where images come from. Sources are listed while the run goes on."""

from __future__ import annotations

import copy
import functools
import glob
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from npr_model.errors import InputError, reason
from npr_model.files import in_natural_order, readable_name, walk_images
from npr_model.screening.archives import Archive, is_archive
from npr_model.screening.items import MAX_BYTES, Item, failing, too_large
from npr_model.screening.remote import Remote, is_url

STANDARD_INPUT = "-"


class SourceError(InputError):
    """A path that cannot be screened at all."""


class Sources:
    """Files, folders, glob patterns, archives (tar, zip, Parquet) and URLs, in the order given.

    Folders yield their files with image suffixes (any case), at all depths in natural order. Archives inside folders
    are skipped, but archives that are named or match a pattern are read. A file that is named is always an item.
    Whatever cannot be listed or read is an item whose load fails. ``skipped``: number of files skipped so far, for lack
    of an image suffix.

    Args:
        paths: The sources.
        files_from: File with more files, archives or URLs, one per line, or "-" for standard input. What does not exist
            is an item that fails.
        column: As in :class:`npr_model.screening.archives.Archive`.

    Raises:
        SourceError: A path does not exist, a pattern matches nothing, or a folder has no images.
        InputError: A URL cannot be reached.
    """

    def __init__(
        self, paths: Sequence[str | os.PathLike], *, files_from: str | None = None, column: str | None = None
    ) -> None:
        self.skipped = 0
        self._column = column
        self.files_from = files_from
        if files_from not in (None, STANDARD_INPUT) and not os.path.isfile(files_from):
            raise SourceError(f"the list {readable_name(files_from)} does not exist or is not a file")
        self._parts = [self._checked(os.fspath(path)) for path in paths]
        self.skipped = 0

    def __iter__(self) -> Iterator[Item]:
        for entry in self.entries():
            yield from entry.items(self._skip) if isinstance(entry, Archive) else (entry,)

    def listed_in(self, files_from: str) -> Sources:
        """Return the same sources with another list."""
        other = copy.copy(self)
        other.files_from = files_from
        return other

    def entries(self) -> Iterator[Item | Archive]:
        """Yield the items with archives unopened, so that other processes can open them. Everything is picklable."""
        self.skipped = 0
        for part in self._parts:
            yield from part.entries(self._column, self._skip) if isinstance(part, Remote) else self._of_argument(part)
        for name in _lines(self.files_from) if self.files_from is not None else ():
            yield from self._of_name(name)

    def _checked(self, path: str) -> str | Remote:
        if is_url(path):
            remote = Remote(path)
            if next(remote.entries(None, self._skip), None) is None:
                raise SourceError(f"there is nothing to screen at {path}")
            return remote
        if os.path.isdir(path):
            if next(self._walk(path), None) is None:
                inside = "; name its archives, e.g. 'FOLDER/*.tar'" if _has_archive(path) else ""
                raise SourceError(f"no images in folder {readable_name(path)}{inside}")
        elif not os.path.lexists(path):
            if not glob.has_magic(path):
                raise SourceError(f"{readable_name(path)} does not exist")
            if next(_matches(path), None) is None:
                raise SourceError(f"no file matches {readable_name(path)}")
        return path

    def _of_argument(self, path: str) -> Iterator[Item | Archive]:
        if os.path.lexists(path) or not glob.has_magic(path):
            yield from self._of_path(path)
            return
        for match in in_natural_order(_matches(path), str):
            yield from self._of_path(match)

    def _of_path(self, path: str) -> Iterator[Item | Archive]:
        if os.path.isdir(path):
            yield from self._walk(path)
        elif is_archive(path):
            yield Archive(readable_name(path), functools.partial(open, os.path.abspath(path), "rb"), self._column)
        else:
            yield file_item(path)

    def _of_name(self, name: str) -> Iterator[Item | Archive]:
        """Yield the entries of a line of ``files_from``. Bad lines must not stop the run."""
        if not is_url(name):
            yield from self._of_path(name)
            return
        try:
            remote = Remote(name, listed=True)
        except InputError as error:
            yield failing(readable_name(name), readable_name(str(error)))
        else:
            yield from remote.entries(self._column, self._skip)

    def _walk(self, folder: str) -> Iterator[Item]:
        problems: list[OSError] = []
        for path in walk_images(folder, on_error=problems.append, on_other=self._skip):
            while problems:
                yield _unlisted(problems.pop(0))
            yield file_item(path)
        yield from map(_unlisted, problems)

    def _skip(self, name: object) -> None:
        self.skipped += 1


def file_item(path: str | os.PathLike) -> Item:
    """Return the item of a file."""
    return Item(readable_name(path), functools.partial(_read, os.path.abspath(path)))  # may be loaded elsewhere


def _read(path: str | os.PathLike) -> bytes:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # pipes and devices could block
        raise OSError("it is not a regular file")
    if status.st_size > MAX_BYTES:
        raise OSError(too_large(status.st_size))
    return Path(path).read_bytes()


def _unlisted(error: OSError) -> Item:
    return failing(readable_name(error.filename), f"the folder cannot be listed: {reason(error)}")


def _matches(pattern: str) -> Iterator[str]:
    """Yield the files that match a pattern."""
    return (path for path in glob.iglob(pattern, recursive=True) if not os.path.isdir(path))


def _has_archive(folder: str) -> bool:
    return any(is_archive(name) for name in os.listdir(folder))


def _lines(name: str) -> Iterator[str]:
    """Yield the non-empty lines of a file or of standard input."""
    file = sys.stdin.buffer if name == STANDARD_INPUT else open(name, "rb")  # noqa: SIM115 - one of them stays open
    try:
        for line in file:
            if name_in_it := line.rstrip(b"\r\n"):
                yield os.fsdecode(name_in_it)
    finally:
        if file is not sys.stdin.buffer:
            file.close()

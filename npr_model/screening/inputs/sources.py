"""Where images come from. Sources are listed while the run goes on."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from npr_model.errors import InputError, reason
from npr_model.files import in_natural_order, readable_name, walk_files
from npr_model.imaging.formats.suffixes import is_image_name
from npr_model.scoring.items import Item, failing, file_item
from npr_model.screening.inputs.archives import Archive, is_archive_name
from npr_model.screening.inputs.content import HEAD_BYTES, archive_kind, is_image
from npr_model.screening.inputs.names import read_names
from npr_model.screening.inputs.patterns import expand_braces, is_pattern, matches
from npr_model.screening.inputs.remote import Remote
from npr_model.screening.inputs.skipped import EMPTY_FOLDER, INNER_ARCHIVE, NO_IMAGE, UNREADABLE, describe_skipped
from npr_model.screening.urls import as_path, is_url

STANDARD_INPUT = "-"


class SourceError(InputError):
    """A path that cannot be screened at all."""


class Sources:
    """Files, folders, glob patterns, archives (tar, zip, Parquet) and URLs, in the order given.

    Folders yield their images at all depths in natural order. A file is an image if it has an image suffix (any case),
    or if its first bytes are those of an image. Hidden files, and archives inside folders, are skipped; archives that
    are named or match a pattern are read. A file that is named is always an item. Whatever cannot be listed or read is
    an item whose load fails.

    Args:
        paths: The sources. Braces as in {a,b}.tar or {0..9}.tar are expanded, unless the name exists.
        files_from: File with more files, archives or URLs, one per line, or "-" for standard input. What does not exist
            is an item that fails.
        null_separated: Whether NUL bytes separate the names in ``files_from``.
        column: As in :class:`npr_model.screening.inputs.archives.Archive`.

    Attributes:
        skipped: Number of files skipped so far, by reason.

    Raises:
        SourceError: A path does not exist, a pattern matches nothing, or a folder has no images.
        InputError: A URL cannot be reached.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        *,
        files_from: str | None = None,
        null_separated: bool = False,
        column: str | None = None,
    ) -> None:
        self.skipped: Counter[str] = Counter()
        self._column, self._null_separated, self._names_read = column, null_separated, 0
        self.files_from = files_from
        if files_from not in (None, STANDARD_INPUT):
            if not os.path.exists(files_from):
                raise SourceError(f"the list {readable_name(files_from)} does not exist")
            if os.path.isdir(files_from):
                raise SourceError(f"the list {readable_name(files_from)} is a folder")
        self._parts = [part for path in paths for part in self._checked(as_path(os.fspath(path)))]
        self.skipped = Counter()

    def __iter__(self) -> Iterator[Item]:
        for entry in self.entries():
            yield from entry.items(self._skip) if isinstance(entry, Archive) else (entry,)

    def listed_in(self, files_from: str) -> Sources:
        """Return the same sources with another list."""
        other = copy.copy(self)
        other.files_from = files_from
        return other

    @property
    def why_empty(self) -> str:
        """Why there was nothing to screen, if no file was skipped."""
        if self.files_from is None or self._parts or self._names_read:
            return "no images in the inputs"
        return f"the list {self._list_name} names no files"

    def entries(self) -> Iterator[Item | Archive]:
        """Yield the items with archives unopened, so that other processes can open them. Everything is picklable."""
        self.skipped = Counter()
        for part in self._parts:
            yield from part.entries(self._column, self._skip) if isinstance(part, Remote) else self._of_argument(part)
        for name in self._listed():
            self._names_read += 1
            yield from self._of_name(as_path(name))

    def _checked(self, path: str) -> Iterator[str | Remote]:
        """Yield what a path on the command line stands for, after a look at whether there is anything."""
        try:
            alternatives: Iterable[str | Remote] = [self._checked_one(path)]
        except InputError:
            texts = expand_braces(path)
            if texts == [path]:
                raise
            alternatives = map(self._checked_one, texts)
        yield from alternatives

    def _checked_one(self, path: str) -> str | Remote:
        if not is_url(path):
            self._check(path)
            return path
        skipped: Counter[str] = Counter()
        remote = Remote(path)
        if next(remote.entries(None, lambda name, reason: skipped.update([reason])), None) is None:
            raise SourceError(f"there is nothing to screen at {path}{_also_skipped(skipped)}")
        return remote

    def _check(self, path: str) -> None:
        name = readable_name(path)
        if os.path.isdir(path):
            self.skipped.clear()
            if next(self._walk(path), None) is None:
                hint = "; name its archives, e.g. 'FOLDER/*.tar'" if self.skipped[INNER_ARCHIVE] else ""
                raise SourceError(f"no images in folder {name}{_also_skipped(self.skipped)}{hint}")
        elif not os.path.lexists(path):
            if not is_pattern(path):
                raise SourceError(f"{name} does not exist")
            if next(matches(path, self._walk_all), None) is None:
                raise SourceError(f"no file matches {name}")

    def _of_argument(self, path: str) -> Iterator[Item | Archive]:
        if not is_pattern(path):
            yield from self._of_path(path)
            return
        for match in in_natural_order(matches(path, self._walk_all), str):
            yield from self._of_path(match)

    def _of_path(self, path: str) -> Iterator[Item | Archive]:
        if os.path.isdir(path):
            yield from self._walk(path)
        elif is_archive_name(path) or (not is_image_name(path) and archive_kind(_head(path) or b"")):
            yield Archive(readable_name(path), functools.partial(_open, os.path.abspath(path)), self._column)
        else:
            yield file_item(path)

    @property
    def _list_name(self) -> str:
        return "from standard input" if self.files_from == STANDARD_INPUT else readable_name(self.files_from or "")

    def _listed(self) -> Iterator[str]:
        if self.files_from is None:
            return
        is_input = self.files_from == STANDARD_INPUT
        with contextlib.nullcontext(sys.stdin.buffer) if is_input else open(self.files_from, "rb") as file:
            yield from read_names(file, self._list_name, null_separated=self._null_separated)

    def _of_name(self, name: str) -> Iterator[Item | Archive]:
        """Yield the entries of a name in ``files_from``. Bad names must not stop the run."""
        if "\0" in name:
            yield failing(readable_name(name), "the name holds a NUL byte: use --null if NUL bytes separate the names")
            return
        entries = self._of_path(name)
        if is_url(name):
            try:
                entries = Remote(name, listed=True).entries(self._column, self._skip)
            except InputError as error:
                yield failing(readable_name(name), readable_name(str(error)))
                return
        is_empty = True
        for entry in entries:
            is_empty = False
            yield entry
        if is_empty:
            self._skip(name, EMPTY_FOLDER)

    def _walk(self, folder: str) -> Iterator[Item]:
        problems: list[OSError] = []
        for path in walk_files(folder, on_error=problems.append, on_skip=self._skip):
            while problems:
                yield _unlisted(problems.pop(0))
            if is_image_name(path.name):
                yield file_item(path)
            elif (head := _head(path)) is None:
                self._skip(str(path), UNREADABLE)
            elif is_image(head):
                yield file_item(path)
            else:
                self._skip(str(path), INNER_ARCHIVE if archive_kind(head) else NO_IMAGE)
        yield from map(_unlisted, problems)

    def _walk_all(self, folder: str) -> Iterator[Path]:
        """Yield all visible files below a folder; what cannot be listed matches no pattern."""
        return walk_files(folder, on_error=lambda error: None)

    def _skip(self, name: str, reason: str) -> None:
        self.skipped[reason] += 1


def _also_skipped(skipped: Counter[str]) -> str:
    return f"; skipped: {describe_skipped(skipped)}" if skipped else ""


def _open(path: str) -> BinaryIO:
    return open(path, "rb")


def _head(path: str | os.PathLike) -> bytes | None:
    """Return the first bytes of a regular file, b"" of anything else; None if it cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return b""
        with open(path, "rb", buffering=0) as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return None


def _unlisted(error: OSError) -> Item:
    return failing(readable_name(error.filename), f"the folder cannot be listed: {reason(error)}")

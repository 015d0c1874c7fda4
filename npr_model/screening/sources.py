"""Where images come from: a source is an iterable of items, listed while the run goes on."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from npr_model.errors import InputError, reason
from npr_model.files import readable_name, walk_images


class SourceError(InputError):
    """A path that cannot be screened at all."""


@dataclass(frozen=True)
class Item:
    """One image to score: ``source`` says what it is, ``load()`` gives its encoded bytes or raises OSError."""

    source: str
    load: Callable[[], bytes]


class Files:
    """Files and folders, in the order given; a folder's images (by suffix, any case) at all depths in natural order.

    A file that is named is always an item. A folder that cannot be listed is an item whose load fails, so that it
    shows. ``skipped`` counts the files left out so far, because their names are not those of images.
    Raises SourceError at once for a path that does not exist, and for a folder without any image.
    """

    def __init__(self, paths: Sequence[str | os.PathLike]) -> None:
        self.skipped = 0
        self._paths = [Path(path) for path in paths]
        for path in self._paths:
            if not path.exists():
                raise SourceError(f"{readable_name(path)} does not exist")
            if path.is_dir() and next(self._walk(path), None) is None:
                raise SourceError(f"no images in folder {readable_name(path)}")
        self.skipped = 0

    def __iter__(self) -> Iterator[Item]:
        self.skipped = 0
        for path in self._paths:
            if path.is_dir():
                yield from self._walk(path)
            else:
                yield file_item(path)

    def _walk(self, folder: Path) -> Iterator[Item]:
        problems: list[OSError] = []

        def skip(path: Path) -> None:
            self.skipped += 1

        for path in walk_images(folder, on_error=problems.append, on_other=skip):
            while problems:
                yield _unlisted(problems.pop(0))
            yield file_item(path)
        yield from map(_unlisted, problems)


def file_item(path: str | os.PathLike) -> Item:
    """The item of a file."""
    return Item(readable_name(path), functools.partial(_read, path))


def _read(path: str | os.PathLike) -> bytes:
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe or a device would block
        raise OSError("it is not a regular file")
    return Path(path).read_bytes()


def _unlisted(error: OSError) -> Item:
    def load() -> bytes:
        raise OSError(f"the folder cannot be listed: {reason(error)}")

    return Item(readable_name(error.filename), load)

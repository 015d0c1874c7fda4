"""Files: images in natural order, and writing in one step."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

_JPEG_SUFFIXES = (".jfif", ".jpe", ".jpeg", ".jpg")
_OTHER_SUFFIXES = (".apng", ".avif", ".bmp", ".gif", ".j2k", ".jp2", ".png", ".tga", ".tif", ".tiff", ".webp")
_NETPBM_SUFFIXES = (".pbm", ".pgm", ".pnm", ".ppm")
AT_ONCE = 100_000  # entries of a folder that are sorted together
T = TypeVar("T")
IMAGE_SUFFIXES = frozenset((*_JPEG_SUFFIXES, *_NETPBM_SUFFIXES, *_OTHER_SUFFIXES))


def natural_key(name: str) -> tuple:
    """Sort key that puts img2 before img10. Names that differ only in case or zeros keep a fixed order."""
    parts = re.split(r"([0-9]+)", name)
    for i, part in enumerate(parts):
        digits = part.lstrip("0")
        parts[i] = (len(digits), digits) if i % 2 else part.casefold()  # not int(), which accepts at most 4300 digits
    return parts, name


def in_natural_order(things: Iterable[T], name: Callable[[T], str]) -> Iterator[T]:
    """Sort ``things`` by name, AT_ONCE at a time, so that a folder of ten million files is never in memory at once."""
    things = iter(things)
    while run := list(itertools.islice(things, AT_ONCE)):
        yield from sorted(run, key=lambda thing: natural_key(name(thing)))


def is_image_name(name: str) -> bool:
    """Return whether the name ends in one of IMAGE_SUFFIXES, in any case."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def walk_images(
    root: str | os.PathLike,
    *,
    on_error: Callable[[OSError], None],
    on_other: Callable[[Path], None] = lambda path: None,
) -> Iterator[Path]:
    """Yield image files (by suffix) below ``root``, folder by folder in natural order (:func:`in_natural_order`).

    Hidden entries (a leading dot) are skipped, and links to folders are not followed, so that loops of links end.

    Args:
        root: The folder.
        on_error: Called with the OSError of a folder that cannot be listed.
        on_other: Called with each file that has no image suffix.
    """
    folders = []
    try:
        with os.scandir(root) as entries:
            shown = (entry for entry in entries if not entry.name.startswith("."))
            for entry in in_natural_order(shown, lambda entry: entry.name):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif not _leads_to_folder(entry):
                    if is_image_name(entry.name):
                        yield Path(entry.path)
                    else:
                        on_other(Path(entry.path))
    except OSError as error:
        on_error(error)
        return
    for folder in folders:
        yield from walk_images(folder, on_error=on_error, on_other=on_other)


def _leads_to_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it will fail and say so
        return False


def readable_name(path: str | os.PathLike) -> str:
    r"""Return a path as valid UTF-8 text: bytes that are not UTF-8 become ``\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; on success it is synced to disk and renamed to ``path``.

    If the block raises, ``path`` is unchanged and the temporary file is removed.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()

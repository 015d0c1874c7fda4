"""Files: images in natural order, and writing in one step, so that nobody ever sees half a file."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from npr_model.errors import InputError, reason

AT_ONCE = 100_000  # entries of a folder that are sorted together
HIDDEN = "hidden (a leading dot, or in __MACOSX)"
LEADS_BACK = "links to folders that they lie in"
_PARTIAL = ".partial"  # how the names of incomplete files end
T = TypeVar("T")


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


def is_hidden(name: str) -> bool:
    """Return whether a file or folder has a leading dot, or is the folder that macOS adds to archives."""
    return name == "__MACOSX" or (name.startswith(".") and name not in (".", ".."))


def walk_files(
    root: str | os.PathLike,
    *,
    on_error: Callable[[OSError], None],
    on_skip: Callable[[str, str], None] = lambda path, reason: None,
    within: str | os.PathLike | None = None,
) -> Iterator[Path]:
    """Yield the files below ``root``, folder by folder in natural order (:func:`in_natural_order`).

    Hidden entries (:func:`is_hidden`) are skipped. Links to folders are followed, unless they lead back to a folder on
    the way to them: then they would never end.

    Args:
        root: The folder.
        on_error: Called with the OSError of a folder that cannot be listed.
        on_skip: Called with each entry that is skipped, and the reason: HIDDEN or LEADS_BACK.
        within: Folder that holds ``root``. Links that lead back to a folder between it and ``root`` are skipped too.
    """
    top = os.fspath(within or root)
    pending = [(os.fspath(root), False)]  # folders to list, and whether a link leads to them
    while pending:
        folder, linked = pending.pop()
        below: list[tuple[str, bool]] = []
        try:
            with os.scandir(folder) as entries:
                for entry in in_natural_order(entries, lambda entry: entry.name):
                    if is_hidden(entry.name):
                        on_skip(entry.path, HIDDEN)
                        continue
                    if not is_folder(entry):
                        yield Path(entry.path)
                        continue
                    through_link = linked or entry.is_symlink()
                    if through_link and leads_back(entry.path, top):
                        on_skip(entry.path, LEADS_BACK)
                    else:
                        below.append((entry.path, through_link))
        except OSError as error:
            on_error(error)
        pending += reversed(below)


def leads_back(folder: str | os.PathLike, root: str | os.PathLike) -> bool:
    """Return whether ``folder`` is the same folder as one that it lies in, up to ``root``. Raises OSError."""
    for parent in Path(folder).parents:
        if os.path.samefile(folder, parent):
            return True
        if parent == Path(root):
            break
    return False


def is_folder(entry: os.DirEntry) -> bool:
    """Return whether an entry is a folder or leads to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it will fail and say so
        return False


def readable_name(path: str | os.PathLike) -> str:
    r"""Return a path as valid UTF-8 text: bytes that are not UTF-8 become ``\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def partial_path(path: Path) -> Path:
    """Return a new name beside ``path``, for a file that will be renamed to it when it is complete."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PARTIAL}")


def is_partial(name: str) -> bool:
    """Return whether a file's name is one of :func:`partial_path`."""
    return name.startswith(".") and name.endswith(_PARTIAL)


def remove_partials(folder: Path) -> None:
    """Remove the incomplete files in a folder, which a process left that was killed while it wrote them."""
    for path in folder.iterdir():
        if is_partial(path.name):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; on success it is synced to disk and renamed to ``path``.

    If the block raises, ``path`` is unchanged and the temporary file is removed. An OSError names ``path``.
    """
    path = Path(path)
    temporary = partial_path(path)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename in (None, str(temporary), temporary):  # a full disk gives no name
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text in one step. Raises OSError, which names ``path``."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(path: str | os.PathLike) -> None:
    """Create a folder, with those above it, unless it is there. Raises InputError."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder {readable_name(path)} cannot be created: {reason(error)}") from error

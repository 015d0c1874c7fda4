"""What is scored: a name, and a way to the bytes."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from npr_model.files import readable_name
from npr_model.imaging.decode import DecodedImage

MAX_BYTES = 2**30  # per encoded image; larger files are no photographs and would fill the memory


@dataclass(frozen=True)
class Item:
    """One image to score: ``source`` names it, ``load()`` gives its encoded bytes, or its pixels if it has no file.

    ``load`` raises OSError for a file that cannot be read.
    """

    source: str
    load: Callable[[], bytes | DecodedImage]


def too_large(size: int) -> str:
    """Message for an encoded image of more than MAX_BYTES."""
    return f"it is {size} bytes, more than the limit of {MAX_BYTES}"


def file_item(path: str | os.PathLike) -> Item:
    """Return the item of a file."""
    return Item(readable_name(path), functools.partial(_read, os.path.abspath(path)))  # may be loaded elsewhere


def in_memory(source: str, data: bytes) -> Item:
    """Return an item whose bytes are in memory."""
    return Item(source, functools.partial(bytes, data))


def failing(source: str, message: str) -> Item:
    """Return an item that fails with ``message`` when it is read."""
    return Item(source, functools.partial(_fail, message))


def _fail(message: str) -> bytes:
    raise OSError(message)


def _read(path: str | os.PathLike) -> bytes:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # pipes and devices could block
        raise OSError("it is not a regular file")
    if status.st_size > MAX_BYTES:
        raise OSError(too_large(status.st_size))
    with open(path, "rb", buffering=0) as file:
        return file.read()

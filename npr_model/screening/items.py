"""What is screened: a name, and a way to its bytes. And why a file is not screened."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from npr_model.imaging.decode import DecodedImage

MAX_BYTES = 2**30  # per encoded image; larger files are no photographs and would fill the memory

# Why files that lie beside images are skipped: Skip is called with the name of such a file and one of these
# reasons, or one of npr_model.files.
NO_IMAGE = "not images"
NO_IMAGE_NAME = "without an image suffix (remote files are judged by their names)"
INNER_ARCHIVE = "archives in folders or archives (name them to read them)"
UNREADABLE = "without an image suffix, and unreadable"
EMPTY_ROW = "Parquet rows with an empty list"
EMPTY_ARCHIVE = "archives without images"
EMPTY_FOLDER = "listed folders without images"

Skip = Callable[[str, str], None]


def describe_skipped(skipped: Mapping[str, int]) -> str:
    """Return counts by reason as text; "" if there are none."""
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items() if count)


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


def in_memory(source: str, data: bytes) -> Item:
    """Return an item whose bytes are in memory."""
    return Item(source, functools.partial(bytes, data))


def failing(source: str, message: str) -> Item:
    """Return an item that fails with ``message`` when it is read."""
    return Item(source, functools.partial(_fail, message))


def _fail(message: str) -> bytes:
    raise OSError(message)

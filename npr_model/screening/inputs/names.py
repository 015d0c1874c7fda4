"""Lists of names, as ``--files-from`` reads them: from a file or standard input, while they are written."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from typing import Any

from npr_model.errors import InputError

LONGEST_NAME = 2**16  # bytes
_MARKS = (  # byte order marks; that of UTF-32 begins like that of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class NameListError(InputError):
    """A list of names that cannot be used."""


def read_names(file: Any, name: str, *, null_separated: bool = False) -> Iterator[str]:
    """Yield the non-empty names in a list, one per line, or separated by NUL bytes.

    Names are bytes, as in file systems. A list that begins with a byte order mark is decoded by it (UTF-8, 16 or 32).

    Args:
        file: The list: a binary file with read1().
        name: What messages call it.
        null_separated: Whether NUL bytes separate the names, as ``find -print0`` writes them.

    Raises:
        NameListError: The list cannot be decoded, or is of another kind.
    """
    separator, rest, is_first = b"\0" if null_separated else b"\n", b"", True
    for data in _decoded(file, name):
        *lines, rest = (rest + data).split(separator)
        if is_first and not null_separated and b"\0" in (lines or [rest])[0]:
            raise NameListError(
                f"the list {name} holds NUL bytes: use --null if they separate the names; save UTF-16 text with a byte "
                "order mark, or as UTF-8"
            )
        is_first = is_first and not lines
        if len(rest) > LONGEST_NAME:
            raise NameListError(f"the list {name} holds a line of more than {LONGEST_NAME} bytes, which is no name")
        yield from map(os.fsdecode, _names(lines, null_separated))
    if is_first and null_separated and b"\n" in rest.strip():
        raise NameListError(f"the list {name} holds lines, not names separated by NUL bytes: leave out --null")
    yield from map(os.fsdecode, _names([rest], null_separated))


def _names(lines: list[bytes], null_separated: bool) -> Iterator[bytes]:
    return filter(None, lines if null_separated else (line.rstrip(b"\r") for line in lines))


def _decoded(file: Any, name: str) -> Iterator[bytes]:
    """Yield what can be read, without its byte order mark and in UTF-8 if it has one."""
    first = b""
    while len(first) < 4 and (data := file.read1(LONGEST_NAME)):
        first += data
        if not any(mark.startswith(first) for mark, _ in _MARKS):
            break
    mark, encoding = next(((mark, encoding) for mark, encoding in _MARKS if first.startswith(mark)), (b"", "utf-8"))
    data = first.removeprefix(mark) or file.read1(LONGEST_NAME)
    if encoding == "utf-8":
        while data:
            yield data
            data = file.read1(LONGEST_NAME)
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        while data:
            yield decoder.decode(data).encode()
            data = file.read1(LONGEST_NAME)
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise NameListError(f"the list {name} begins like {encoding} text, but is none: save it as UTF-8") from error

"""Errors in what the user gave, as opposed to errors in this program."""

from __future__ import annotations

import errno
import os
import re


class InputError(Exception):
    """Base of all expected errors. The message is one line: what is wrong, which file or argument, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


def reason(error: BaseException) -> str:
    """Return an exception as one line for the middle of a message: an OSError's own words, else its text or type."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = re.sub(r"<(\S+) object at 0x[0-9a-f]+>", r"\1", str(error))  # a memory address helps nobody
    return " ".join(text.split()) or type(error).__name__


def system_reason(error: BaseException) -> str:
    """Return the system's words for an error's number, without what a library adds to them; else :func:`reason`."""
    if isinstance(error, OSError) and error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno)
    return reason(error)

"""Errors in what the user gave, as opposed to errors in this program."""

from __future__ import annotations


class InputError(Exception):
    """Base of all expected errors. The message is one line: what is wrong, which file or argument, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


def reason(error: BaseException) -> str:
    """Return an exception as one line for the middle of a message: an OSError's own words, else its text or type."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return text or type(error).__name__

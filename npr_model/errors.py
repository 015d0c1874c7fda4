"""What is wrong with the user's input, as opposed to with this program."""

from __future__ import annotations


class InputError(Exception):
    """Base of all expected errors. The message is one line: what, which file, what to do; shown without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


def reason(error: BaseException) -> str:
    """An exception in one line, for the middle of a message: an OSError's plain words, else type and text."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return text or type(error).__name__

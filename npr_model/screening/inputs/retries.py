"""Requests to other machines: what their failures mean, and which are worth another attempt."""

from __future__ import annotations

import email.utils
import errno
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from http import HTTPStatus
from typing import TypeVar

from npr_model.errors import system_reason

WAITS = (0.3, 1.0, 4.0)  # seconds before the next attempts
LONGEST_WAIT = 60.0  # seconds; a server that asks for more patience is not asked again
_TEMPORARY_STATUSES = {408, 425, 429, *range(500, 600)} - {501, 505}
_FINAL = (PermissionError, IsADirectoryError, NotADirectoryError, ImportError, NotImplementedError, ValueError)
T = TypeVar("T")


class RemoteError(OSError):
    """A request that failed for good. The message says why."""


def request(call: Callable[[], T]) -> T:
    """Return ``call()``, which is repeated after failures that may be temporary.

    Temporary are broken and refused connections, timeouts, and answers such as 429 and 503. The server's Retry-After is
    kept, up to LONGEST_WAIT.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: A package is missing.
        RemoteError: Anything else.
    """
    for wait in (*WAITS, None):
        try:
            return call()
        except Exception as error:  # libraries behind the protocols can raise anything
            cause = _cause(error)
            if isinstance(error, ImportError):
                raise
            if status_of(cause) in (404, 410) or (isinstance(error, FileNotFoundError) and cause is error):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
            asked = _retry_after(cause)
            if wait is None or not is_temporary(cause) or (asked or 0) > LONGEST_WAIT:
                raise RemoteError(describe(cause)) from error
            time.sleep(max(wait, asked or 0))
    raise AssertionError("the last attempt returns or raises")


def is_temporary(error: BaseException) -> bool:
    """Return whether the same request may succeed later."""
    status = status_of(error)
    return status in _TEMPORARY_STATUSES if status else not isinstance(error, _FINAL)


def describe(error: BaseException) -> str:
    """Return what failed, in a few words: the HTTP status if there is one."""
    if status := status_of(error):
        wait = _retry_after(error)
        patience = f", to be asked again after {wait:g} s" if wait and wait > LONGEST_WAIT else ""
        return f"HTTP {status} {_phrase(status)}{patience}".rstrip()
    return system_reason(error)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status in an exception of aiohttp, botocore, or a library that is built like them."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(error, "status", None) or getattr(error, "code", None)
    return status if isinstance(status, int) and 400 <= status < 600 else None


def _cause(error: BaseException) -> BaseException:
    """Return the error of the request: fsspec reports each failure of an http server as a missing file."""
    return next((cause for cause in _causes(error) if status_of(cause) or _is_of_connection(cause)), error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_of_connection(error: BaseException) -> bool:
    if isinstance(error, FileNotFoundError):
        return False
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith("aiohttp")


def _retry_after(error: BaseException) -> float | None:
    """Return the seconds that the server asks to wait; its header holds a number or a date."""
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    headers = metadata.get("HTTPHeaders") or getattr(error, "headers", None) or {}
    text = next((value for name, value in headers.items() if name.lower() == "retry-after"), "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        then = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (then.astimezone(timezone.utc) - datetime.now(timezone.utc)).total_seconds())


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""

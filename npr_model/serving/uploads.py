"""Files that are sent over HTTP: as the body of a request, or in a form as browsers and ``curl -F`` send it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from email.message import Message
from typing import Any

from npr_model.errors import InputError

FORM_BYTES = 2**16  # that a form may add to a file

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class UploadError(InputError):
    """A request without a file that can be used. ``code``: too_large, bad_form or incomplete."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


async def receive_file(receive: Receive, content_type: str, max_bytes: int) -> bytes:
    """Return the bytes of the one file in a request.

    Args:
        receive: Gives the next message of the request, as in ASGI.
        content_type: The request's header; "" if it has none.
        max_bytes: Larger files are refused, without reading them to the end.

    Raises:
        UploadError: The file is too large, the form holds no file or several, or the client has gone.
    """
    header = Message()
    header["Content-Type"] = content_type
    is_form = header.get_content_type() == "multipart/form-data"
    body = await _receive_body(receive, max_bytes + FORM_BYTES * is_form, max_bytes)
    if not is_form:
        return body
    file = _file_in_form(body, str(header.get_param("boundary") or ""))
    if len(file) > max_bytes:
        raise _too_large(max_bytes)
    return file


async def _receive_body(receive: Receive, limit: int, max_bytes: int) -> bytes:
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise UploadError("the connection was closed before the file was complete", "incomplete")
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(max_bytes)
        more = message.get("more_body", False)
    return bytes(body)


def _too_large(max_bytes: int) -> UploadError:
    return UploadError(f"the file is larger than the limit of {max_bytes} bytes", "too_large")


def _file_in_form(body: bytes, boundary: str) -> bytes:
    """Return the content of the only part with a file name, or else of the only part (RFC 7578)."""
    delimiter = b"\r\n--" + boundary.encode("latin-1", "replace")
    parts = (b"\r\n" + body).split(delimiter)[1:]
    if not boundary or not parts or not parts[-1].startswith(b"--"):
        raise UploadError("the form has no closing boundary: it is not complete", "bad_form")
    fields = [part.lstrip(b" \t").removeprefix(b"\r\n").partition(b"\r\n\r\n") for part in parts[:-1]]
    if not all(separator for _, separator, _ in fields):
        raise UploadError("a part of the form has no end of its headers", "bad_form")
    files = [content for headers, _, content in fields if re.search(rb"(?i)filename\*?=", headers)]
    files = files or [content for _, _, content in fields]
    if len(files) != 1:
        raise UploadError(f"send one file at a time: the form holds {len(files) or 'none'}", "bad_form")
    return files[0]

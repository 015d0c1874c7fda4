"""Servers that refuse, are busy or break off: the status is named, and what may succeed later is tried again."""

from __future__ import annotations

import email.utils
import http.server
import socket
import threading
import time
import types
from collections import Counter
from collections.abc import Callable

import pytest

from npr_model.errors import InputError
from npr_model.screening.inputs import retries
from npr_model.screening.inputs.retries import RemoteError, describe, is_temporary, request, status_of
from npr_model.screening.inputs.sources import Sources
from tests.model.conftest import encoded, noise
from tests.model.screening.collections import PICTURES, loaded, tar, zipped

pytest.importorskip("aiohttp", reason="needs aiohttp, npr-kernels[http]")

PNG = encoded(noise(8, 8))
FILES = {"a.png": PNG, "a.tar": tar(), "a.zip": zipped()}


class Server:
    """Serves FILES. ``fails(number)`` gives status and headers for the request of that number, or None to serve it."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.fails: Callable[[int], tuple[int, dict[str, str]] | None] = lambda number: None
        self.ranges = True
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.requests[self.path] += 1
                failure = outer.fails(outer.requests[self.path])
                status, headers = failure or (200, {})
                body = b"refused" if failure else FILES[self.path.strip("/").partition("?")[0]]
                if not failure and outer.ranges and (wanted := self.headers.get("Range")):
                    first, last = wanted.removeprefix("bytes=").split("-")
                    headers = {"Content-Range": f"bytes {first}-{last}/{len(body)}"}
                    status, body = 206, body[int(first) : int(last) + 1]
                if status == 0:  # breaks off
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *arguments: None
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def slept(monkeypatch):
    """The seconds that requests waited for; nobody really waits."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(retries, "time", types.SimpleNamespace(sleep=sleep))
    return slept


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 0])
@pytest.mark.parametrize("name", FILES)
def test_what_may_succeed_later_is_tried_again(server, slept, status, name):
    server.fails = lambda number: (status, {}) if number <= 4 else None
    contents = loaded(Sources([f"{server.url}/{name}"]))
    assert len(contents) == (1 if name == "a.png" else len(PICTURES))
    assert all(isinstance(data, bytes) for data in contents.values()) and slept


@pytest.mark.parametrize(
    ("status", "words", "tried_again"),
    [
        (400, "HTTP 400 Bad Request", False),
        (401, "HTTP 401 Unauthorized", False),
        (403, "HTTP 403 Forbidden", False),
        (404, "No such file", False),
        (410, "No such file", False),
        (429, "HTTP 429 Too Many Requests", True),
        (500, "HTTP 500 Internal Server Error", True),
        (503, "HTTP 503 Service Unavailable", True),
        (599, "HTTP 599", True),
    ],
)
@pytest.mark.parametrize("name", FILES)
def test_the_status_is_named(server, slept, status, words, tried_again, name, tmp_path):
    server.fails = lambda number: (status, {})
    with pytest.raises(InputError) as error:
        Sources([f"{server.url}/{name}"])
    assert (words if "HTTP" in words else "does not exist") in str(error.value)
    assert bool(slept) == tried_again and len(slept) <= len(retries.WAITS)
    (tmp_path / "list").write_text(f"{server.url}/{name}\n")
    ((source, message),) = loaded(Sources([], files_from=str(tmp_path / "list"))).items()
    assert source == f"{server.url}/{name}" and words in message and "damaged" not in message


def test_refused_connections(slept, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(InputError, match=f"http://127.0.0.1:{port}/a.png cannot be reached: Connection refused"):
        Sources([f"http://127.0.0.1:{port}/a.png"])
    assert slept == list(retries.WAITS)
    (tmp_path / "list").write_text(f"http://127.0.0.1:{port}/a.tar\n")
    (message,) = loaded(Sources([], files_from=str(tmp_path / "list"))).values()
    assert message == "the archive cannot be opened: Connection refused"


def test_an_archive_whose_parts_fail(server, monkeypatch):
    """Requests for parts of a file fail in between."""
    server.fails = lambda number: (503, {}) if number % 3 == 0 else None
    for name in ("a.tar", "a.zip"):
        contents = loaded(Sources([f"{server.url}/{name}"]))
        assert {key.partition("::")[2]: data for key, data in contents.items()} == PICTURES


def test_the_servers_wish_for_patience_is_kept(server, slept):
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    for wish, least in (("7", 7), (date, 25), ("nonsense", 0), ("-1", 0)):
        slept.clear()
        server.requests.clear()
        server.fails = lambda number, wish=wish: (429, {"Retry-After": wish}) if number <= 2 else None
        assert loaded(Sources([f"{server.url}/a.png"]))
        assert least <= max(slept) <= 40
    server.fails = lambda number: (503, {"retry-after": "3600"})
    slept.clear()
    with pytest.raises(InputError, match="HTTP 503 Service Unavailable, to be asked again after 3600 s"):
        Sources([f"{server.url}/a.png"])
    assert slept == []


@pytest.mark.parametrize("scheme", ["HTTP", "Http"])
def test_schemes_in_capitals(server, scheme, tmp_path):
    url = f"{server.url}/a.png".replace("http", scheme)
    assert loaded(Sources([url])) == {f"{server.url}/a.png": PNG}
    (tmp_path / "list").write_text(f"{url}?x=1\n{url.replace('a.png', 'a.tar')}\n")
    assert len(loaded(Sources([], files_from=str(tmp_path / "list")))) == 1 + len(PICTURES)
    (tmp_path / "a.png").write_bytes(b"x")
    assert loaded(Sources([f"FILE://{tmp_path}/a.png"])) == {f"{tmp_path}/a.png": b"x"}


def test_a_server_that_sends_whole_files_only(server):
    """It ignores requests for parts, as Python's own server does."""
    server.ranges = False
    for name in FILES:
        contents = loaded(Sources([f"{server.url}/{name}"]))
        assert all(isinstance(data, bytes) for data in contents.values())


class ClientError(Exception):
    """Built like botocore's."""

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        super().__init__(f"An error occurred ({status})")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers}}


def test_errors_of_buckets(slept):
    """s3fs raises an OSError for them, and keeps the cause."""

    def failing(status: int, error: OSError, headers: dict[str, str] | None = None):
        def call():
            raise error from ClientError(status, headers or {})

        return call

    with pytest.raises(RemoteError, match=r"^HTTP 403 Forbidden$"):
        request(failing(403, PermissionError("Access Denied")))
    with pytest.raises(FileNotFoundError):
        request(failing(404, FileNotFoundError("x")))
    assert slept == []
    with pytest.raises(RemoteError, match=r"^HTTP 503 Service Unavailable$"):
        request(failing(503, OSError("Please reduce your request rate."), {"Retry-After": "2"}))
    assert slept == [max(2, wait) for wait in retries.WAITS]


def test_what_errors_mean():
    assert status_of(ClientError(429, {})) == 429 and status_of(OSError(404, "x")) is None
    assert describe(ConnectionResetError(104, "whatever")) == "Connection reset by peer"
    assert describe(TimeoutError()) == "TimeoutError" and describe(OSError("in words")) == "in words"
    assert [is_temporary(error) for error in (TimeoutError(), ConnectionResetError(), ClientError(500, {}))] == [
        True
    ] * 3
    assert not any(is_temporary(error) for error in (PermissionError(), ValueError(), ClientError(404, {})))
    with pytest.raises(FileNotFoundError):
        request(lambda: open("/no such file"))  # noqa: SIM115
    with pytest.raises(ModuleNotFoundError):
        request(lambda: __import__("no_such_module"))

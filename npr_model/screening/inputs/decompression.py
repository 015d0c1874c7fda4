"""Decompression of gzip, bzip2, xz and zstd as a stream: as many streams as follow each other, and nothing else.

Python's own readers stop silently at data that is no further stream. Here it is an error, so that no file is read in
part without a word. Zeros behind the last stream are padding.
"""

from __future__ import annotations

import bz2
import functools
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import pyarrow as pa

from npr_model.errors import reason

CHUNK = 2**16  # bytes that are read, and about as many that are unpacked, at once
_KINDS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_SKIPPABLE = tuple(bytes([0x50 + number]) + b"\x2a\x4d\x18" for number in range(16))  # zstd frames without content
LONGEST_MAGIC = max(map(len, _KINDS))


class DamagedError(Exception):
    """Data that breaks off or is something else than expected. The message says what and where."""


class _Decompressor(Protocol):
    """The interface of bz2's and lzma's decompressors for one stream."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib with that interface. It checks the stream's checksum and length."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


_DECOMPRESSORS: dict[str, Callable[[], _Decompressor]] = {
    "gzip": _Gzip,
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
}


class Pieces:
    """Reads exact numbers of bytes from an iterator of pieces, and can put some back."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")  # of the last piece; slices of it are not copied
        self.position = 0  # bytes taken so far

    def read(self, size: int) -> bytes:
        """Return ``size`` bytes; fewer only at the end."""
        parts, missing = [], size
        while missing > 0 and self._has_more():
            parts.append(self._rest[:missing])
            self._rest = self._rest[missing:]
            missing -= len(parts[-1])
        self.position += size - missing
        return b"".join(parts)

    def piece(self) -> bytes:
        """Return the next bytes, as many as there are at hand; b"" at the end."""
        return self.read(len(self._rest)) if self._has_more() else b""

    def peek(self) -> bytes:
        """Return the next byte, which stays to be read; b"" at the end."""
        return bytes(self._rest[:1]) if self._has_more() else b""

    def put_back(self, data: bytes) -> None:
        """Let ``data``, which was read last, be read again."""
        self._rest = memoryview(data + self._rest.tobytes())
        self.position -= len(data)

    def _has_more(self) -> bool:
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        return len(self._rest) > 0

    def skip_zeros(self) -> None:
        """Skip zero bytes."""
        while piece := self.piece():
            if other := piece.lstrip(b"\0"):
                self.put_back(other)
                return


def kind_of(beginning: bytes) -> str | None:
    """Return the kind of compression by a file's first LONGEST_MAGIC bytes; None if it is not compressed."""
    if beginning.startswith(_SKIPPABLE):
        return "zstd"
    return next((kind for magic, kind in _KINDS.items() if beginning.startswith(magic)), None)


def decompressed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the decompressed content of ``pieces``, or the pieces themselves if they are not compressed.

    Raises:
        DamagedError: A stream breaks off, is damaged, or is followed by something else.
    """
    source = Pieces(pieces)
    source.put_back(beginning := source.read(LONGEST_MAGIC))
    kind = kind_of(beginning)
    if kind is None:
        while piece := source.piece():
            yield piece
        return
    unpack = _zstd_frame if kind == "zstd" else functools.partial(_stream, _DECOMPRESSORS[kind])
    while beginning:
        began = source.position
        if kind_of(beginning) != kind:
            raise DamagedError(f"at byte {began}, after the end of the {kind} data, follows {beginning!r}")
        try:
            yield from unpack(source)
        except _StreamError as error:
            raise DamagedError(f"the {kind} data that begins at byte {began} {error}") from error
        source.skip_zeros()
        source.put_back(beginning := source.read(LONGEST_MAGIC))


class _StreamError(Exception):
    """What is wrong with a stream, as opposed to the file that it is read from."""


def _stream(new: Callable[[], _Decompressor], source: Pieces) -> Iterator[bytes]:
    """Yield the content of one gzip, bzip2 or xz stream."""
    decompressor = new()
    while not decompressor.eof:
        data = b""
        if decompressor.needs_input and not (data := source.piece()):
            raise _StreamError("is truncated")
        try:
            piece = decompressor.decompress(data, CHUNK)
        except (OSError, ValueError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise _StreamError(f"is damaged ({reason(error)})") from error
        if piece:
            yield piece
    source.put_back(decompressor.unused_data)


def _zstd_frame(source: Pieces) -> Iterator[bytes]:
    """Yield the content of one zstd frame."""
    frame = _ReadOnly(_zstd_frame_bytes(source))
    with pa.CompressedInputStream(pa.PythonFile(frame, mode="r"), "zstd") as stream:
        while True:
            try:
                piece = stream.read(CHUNK)
            except (OSError, pa.ArrowException) as error:
                if frame.error is not None:
                    raise frame.error from None
                raise _StreamError(f"is damaged ({reason(error)})") from error
            if not piece:
                return
            yield piece


def _zstd_frame_bytes(source: Pieces) -> Iterator[bytes]:
    """Yield the bytes of one zstd frame (RFC 8878), to know where it ends."""

    def take(size: int) -> bytes:
        data = source.read(size)
        if len(data) < size:
            raise _StreamError("is truncated")
        return data

    magic = take(4)
    if magic in _SKIPPABLE:
        missing = int.from_bytes(take(4), "little")
        while missing:
            missing -= len(take(min(missing, CHUNK)))
        return
    descriptor = take(1)
    is_single_segment, has_checksum = descriptor[0] >> 5 & 1, descriptor[0] >> 2 & 1
    dictionary_bytes = (0, 1, 2, 4)[descriptor[0] & 3]
    size_bytes = (is_single_segment, 2, 4, 8)[descriptor[0] >> 6]
    yield magic + descriptor + take((not is_single_segment) + dictionary_bytes + size_bytes)
    is_last = False
    while not is_last:
        header = take(3)
        number = int.from_bytes(header, "little")
        is_last, is_repeated, size = bool(number & 1), number >> 1 & 3 == 1, number >> 3
        yield header + take(1 if is_repeated else size)
    if has_checksum:
        yield take(4)


class _ReadOnly(io.RawIOBase):
    """A file that gives ``pieces``. ``error``: what went wrong while they were made."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._source = Pieces(pieces)
        self.error: Exception | None = None

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            return self._source.read(size)
        except Exception as error:
            self.error = error
            raise OSError(reason(error)) from error

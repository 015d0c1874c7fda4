"""Images in zip files. Several zips may follow each other in one file."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from npr_model.errors import reason
from npr_model.files import HIDDEN
from npr_model.imaging.formats.suffixes import is_image_name
from npr_model.scoring.items import MAX_BYTES, Item, failing, in_memory
from npr_model.screening.inputs.content import HEAD_BYTES, archive_kind, is_image, lies_hidden
from npr_model.screening.inputs.decompression import DamagedError
from npr_model.screening.inputs.skipped import INNER_ARCHIVE, NO_IMAGE, Skip
from npr_model.screening.inputs.tars import readable

_END = b"PK\x05\x06"
_END_BYTES = 22  # of the record at the end, with the length of the comment that follows it as its last two bytes
_LONGEST_COMMENT = 2**16
# What a member begins with: its signature, the version that is needed, flags, and the compression method.
_MEMBER = re.compile(rb"PK\x03\x04[\x0a-\x3f]\x00..[\x00\x08\x09\x0c\x0e\x5d-\x63]\x00", re.DOTALL)
_SCANNED = 2**20  # bytes at once


def zip_items(file: BinaryIO, name: str, skip: Skip) -> Iterator[Item]:
    """Yield the images of a zip, and before them those of zips that lie before it in the same file.

    Args:
        file: The zip; it must be seekable.
        name: What members are named after.
        skip: Called with each file that is skipped.

    Raises:
        Exception: It is no zip, or something other than zeros follows it.
    """
    yield from _last_zip_items(file, name, skip)
    _check_end(file)


def _last_zip_items(file: BinaryIO, name: str, skip: Skip) -> Iterator[Item]:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        start = min([archive.start_dir, *(member.header_offset for member in members)])
        if start:
            yield from _items_before(file, start, name, skip)
        for member in members:
            if not member.is_dir():
                yield from _member_items(archive, member, f"{name}::{readable(member.filename)}", skip)


def _items_before(file: BinaryIO, size: int, name: str, skip: Skip) -> Iterator[Item]:
    """Yield the images in the first bytes of a file. These may also be a program that unpacks the zip behind them."""
    end, last_member = _find_zip(_beginning(file, size))
    end = min(end, size)  # the length of its comment may be wrong
    before = _beginning(file, end)
    if end and zipfile.is_zipfile(before):
        try:
            yield from _last_zip_items(before, name, skip)
        except Exception as error:
            yield failing(name, f"the zip in the first {end} of its bytes is truncated or damaged ({reason(error)})")
    else:
        end = 0
    if last_member >= end:
        yield failing(name, f"the zip in the first {size} of its bytes has no end: it is truncated")


def _find_zip(file: BinaryIO) -> tuple[int, int]:
    """Return the place behind the last zip in a file, 0 if there is none, and that of the last member, else -1."""
    end, last_member, place = 0, -1, 0
    overlap = _END_BYTES - 1
    while data := file.read(_SCANNED):
        for match in _MEMBER.finditer(data):
            last_member = place + match.start()
        record = data.rfind(_END)
        if 0 <= record <= len(data) - _END_BYTES:
            comment = int.from_bytes(data[record + _END_BYTES - 2 : record + _END_BYTES], "little")
            end = place + record + _END_BYTES + comment
        if len(data) <= overlap:
            break
        place += len(data) - overlap
        file.seek(place)
    return end, last_member


def _member_items(archive: zipfile.ZipFile, member: zipfile.ZipInfo, source: str, skip: Skip) -> Iterator[Item]:
    """Yield the item of a member; nothing for a file that is skipped."""
    if lies_hidden(member.filename):
        skip(source, HIDDEN)
        return
    try:
        with archive.open(member) as content:
            head = content.read(HEAD_BYTES)
            if not is_image_name(member.filename) and not is_image(head):
                skip(source, INNER_ARCHIVE if archive_kind(head) else NO_IMAGE)
                return
            data = head + content.read(MAX_BYTES + 1 - len(head))  # the size in the header may be wrong
    except Exception as error:  # checksum, password, unknown method: later members may be fine
        yield failing(source, f"the file in the archive cannot be read ({reason(error)})")
        return
    if len(data) > MAX_BYTES:
        yield failing(source, f"it unpacks to more than the limit of {MAX_BYTES} bytes")
    else:
        yield in_memory(source, data)


def _check_end(file: BinaryIO) -> None:
    """Raise DamagedError if something other than zeros follows the zip: zipfile would not notice."""
    size = file.seek(0, io.SEEK_END)
    begin = file.seek(max(0, size - _END_BYTES - _LONGEST_COMMENT))
    tail = file.read()
    end = begin + tail.rfind(_END) + _END_BYTES
    end += int.from_bytes(tail[end - begin - 2 : end - begin], "little")
    if rest := tail[end - begin :].lstrip(b"\0"):
        raise DamagedError(f"at byte {size - len(rest)}, after the end of the zip, follows {rest[:20]!r}")


def _beginning(file: BinaryIO, size: int) -> BinaryIO:
    return cast(BinaryIO, _Beginning(file, size))


class _Beginning(io.RawIOBase):
    """The first ``size`` bytes of a file, as a file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.size, self._position = file, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if position < 0:
            raise OSError(f"there is no byte {position}")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._position)
        data = self._file.read(min(len(buffer), max(0, self.size - self._position)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

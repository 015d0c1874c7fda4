"""Images in tar files, read as a stream from start to end. Several tars may follow each other in one file."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO, Any, cast

from npr_model.files import HIDDEN
from npr_model.imaging.formats.suffixes import is_image_name
from npr_model.scoring.items import MAX_BYTES, Item, failing, in_memory, too_large
from npr_model.screening.inputs.content import HEAD_BYTES, archive_kind, is_image, lies_hidden
from npr_model.screening.inputs.decompression import CHUNK, DamagedError, Pieces, decompressed
from npr_model.screening.inputs.skipped import INNER_ARCHIVE, NO_IMAGE, Skip


def tar_items(pieces: Iterator[bytes], name: str, skip: Skip) -> Iterator[Item]:
    """Yield the images of a tar, compressed or not.

    Args:
        pieces: The bytes of the file.
        name: What members are named after.
        skip: Called with each file that is skipped.

    Raises:
        Exception: The tar is damaged or truncated, or something that is no tar follows it. What was yielded is whole.
    """
    source = Pieces(decompressed(pieces))
    is_first = True
    while is_first or source.peek():
        yield from _one_tar(_Stream(source), name, skip)
        source.skip_zeros()
        is_first = False


def _one_tar(stream: _Stream, name: str, skip: Skip) -> Iterator[Item]:
    archive = _Tar.open(fileobj=cast(Any, stream), mode="r:", tarinfo=_Header)
    while (member := archive.next()) is not None:
        archive.members.clear()  # tarfile would keep them all
        if member.size < 0:
            raise DamagedError(f"the size of {readable(member.name)} is negative")
        source = f"{name}::{readable(member.name)}"
        if member.isdir():
            continue
        if lies_hidden(member.name):
            skip(source, HIDDEN)
            continue
        has_suffix = is_image_name(member.name)
        if not member.isfile():
            if has_suffix:
                yield failing(source, _not_followed(member))
            else:
                skip(source, NO_IMAGE)
            continue
        if has_suffix and member.size > MAX_BYTES:
            yield failing(source, too_large(member.size))
            continue
        content = cast(IO[bytes], archive.extractfile(member))  # as it is a file
        head = content.read(HEAD_BYTES)
        if not has_suffix and not is_image(head):
            skip(source, INNER_ARCHIVE if archive_kind(head) else NO_IMAGE)
        elif member.size > MAX_BYTES:
            yield failing(source, too_large(member.size))
        else:
            data = head + content.read()
            if len(data) < member.size:
                raise DamagedError(f"{readable(member.name)} has {len(data)} of {member.size} bytes")
            yield in_memory(source, data)
    if not archive.has_end:
        raise DamagedError("the end mark is missing")


def readable(name: str) -> str:
    """Return a member's name as valid UTF-8 text; tar keeps other bytes as surrogates."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _not_followed(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return f"it is a link to {readable(member.linkname)}; links in a tar are not followed"
    return "it is not a regular file"


class _Tar(tarfile.TarFile):
    members: list[tarfile.TarInfo]
    has_end = False


_errors: Any = tarfile  # has these errors, which its type hints leave out


class _Header(tarfile.TarInfo):
    """Notices the end mark, without which a truncated tar would look complete, and what tarfile takes for an end."""

    @classmethod
    def fromtarfile(cls, archive: Any) -> Any:
        stream: _Stream = archive.fileobj
        place = stream.tell()
        try:
            return super().fromtarfile(archive)
        except _errors.EOFHeaderError:
            archive.has_end = True
            raise
        except (_errors.InvalidHeaderError, _errors.TruncatedHeaderError) as error:
            at, what = f"at byte {stream.start + place}", repr(stream.last[:20])
            if place:
                message = f"{at}, where the next member should begin, is {what}"
            elif stream.start:
                message = f"{at}, after the end of the tar, follows {what}"
            else:
                message = f"it is not a tar: it begins with {what}"
            raise DamagedError(message) from error


class _Stream:
    """A file for tarfile. It seeks forward only: to the next member, over what was not read.

    Attributes:
        start: Place in ``pieces`` that counts as the beginning of the file.
        last: What was read last.
    """

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self.start = pieces.position
        self.last = b""

    def tell(self) -> int:
        return self._pieces.position - self.start

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_BYTES + tarfile.BLOCKSIZE:
            raise DamagedError(f"a header says that {size} bytes follow")
        self.last = self._pieces.read(size)
        return self.last

    def seek(self, position: int) -> None:
        if position < self.tell():
            raise DamagedError("a header has a negative size")
        while (missing := position - self.tell()) and self._pieces.read(min(missing, CHUNK)):
            pass

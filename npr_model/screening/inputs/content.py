"""What a file is, by its first bytes and its place: an image, hidden, or something else."""

from __future__ import annotations

from npr_model.files import is_hidden
from npr_model.imaging.errors import ImageError
from npr_model.imaging.formats.signatures import LENGTH, format_of
from npr_model.screening.inputs.decompression import kind_of

HEAD_BYTES = LENGTH  # of a file, to tell what it is
_TAR_MAGIC = slice(257, 262)


def is_image(head: bytes) -> bool:
    """Return whether a file that begins with ``head`` is an image, also one of a format that cannot be decoded.

    TGA files have no signature: their suffix must tell.
    """
    try:
        return format_of(head) != "TGA"
    except ImageError as error:
        return error.code == "unsupported"


def archive_kind(head: bytes) -> str | None:
    """Return "zip", "parquet" or "tar" (also for compressed data, which is taken for one); None for anything else."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"PAR1"):
        return "parquet"
    return "tar" if head[_TAR_MAGIC] == b"ustar" or kind_of(head) else None


def lies_hidden(name: str) -> bool:
    """Return whether a path inside an archive is hidden, or lies in a hidden folder."""
    return any(map(is_hidden, name.split("/")))

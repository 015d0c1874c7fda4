"""Pictures, archives of them, and what sources load from them: what the tests of screening share."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa

from npr_model.scoring.items import Item
from npr_model.screening.inputs.sources import Sources
from tests.model.conftest import encoded, noise

PICTURES = {f"part{i % 2}/img{i}.png": encoded(noise(8, 8 + i, seed=i)) for i in range(5)}
OTHERS = {"part0/img0.json": b"{}", "notes.txt": b"x"}


def tar(path: Path | None = None, mode: str = "w", files: dict[str, bytes] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        folder = tarfile.TarInfo("part0")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in (files or PICTURES | OTHERS).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    if path:
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def zipped(path: Path | None = None, files: dict[str, bytes] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("part0")
        for name, data in (files or PICTURES | OTHERS).items():
            archive.writestr(name, data)
    if path:
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def loaded(source) -> dict[str, bytes | str]:
    """By source the bytes of every item, or what is wrong with it; no source twice."""
    result = {}
    for item in source:
        assert isinstance(item, Item) and item.source not in result
        try:
            result[item.source] = item.load()
        except (OSError, ValueError) as error:
            result[item.source] = str(error)
    return result


def zstd(data: bytes) -> bytes:
    """Without a checksum, which the zstd program adds."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def members(path: Path | str) -> tuple[dict[str, bytes], str | None]:
    """What an archive holds by the names of its members, and what is wrong with it."""
    contents = loaded(Sources([path]))
    error = contents.pop(str(path), None)
    return {name.partition("::")[2]: data for name, data in contents.items()}, error

"""Archives of every flavour, one behind the other, compressed, cut, or with something else between them.

Every image is read with its exact bytes, or there is an item that says what is wrong. NPR_FUZZ_CASES sets the number of
cases, and --hypothesis-seed draws others.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import os
import re
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from npr_model.screening.inputs.archives import Archive
from tests.model.screening.collections import zstd

CASES = int(os.environ.get("NPR_FUZZ_CASES", 200))
JUNK = (b"\n", b"<html>502</html>", b"PK", b"\x1f\x8b\x08", b"ustar", bytes(600) + b"\1", b"BZh9", b"\xff" * 700)


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gz": functools.partial(gzip.compress, compresslevel=1),
    "bz2": functools.partial(bz2.compress, compresslevel=1),
    "xz": functools.partial(lzma.compress, preset=0),
    "zst": zstd,
}


@dataclass(frozen=True)
class Member:
    """A file in an archive. ``is_image``: whether an item is expected for it."""

    name: str
    data: bytes
    is_image: bool


PNG = b"\x89PNG\r\n\x1a\n"
NAMES = st.sampled_from(["p.png", "dir/p.JPG", "grüße.webp", "very/" * 30 + "long.png", "x" * 101 + ".png", "./p.tif"])
OTHERS = st.sampled_from(["notes.txt", "._p.png", "__MACOSX/p.png", "dir/.hidden/p.png", "data"])
SIZES = st.sampled_from([0, 1, 511, 512, 513, 1024, 3000])


@st.composite
def members(draw: st.DrawFn) -> list[Member]:
    made = []
    for number in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["image", "image", "image", "other", "without suffix"]))
        data = bytes([7, number]) + draw(st.binary(min_size=8, max_size=8)) * (draw(SIZES) // 8)
        if kind == "image":
            made.append(Member(draw(NAMES), data[: draw(SIZES)], True))
        elif kind == "other":
            made.append(Member(draw(OTHERS), data, False))
        else:
            made.append(Member(f"p{number}", PNG + data, True))
    return made


def make_tar(draw: st.DrawFn, files: list[Member]) -> bytes:
    buffer = io.BytesIO()
    flavours = [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
    if not any(file.name.startswith("xxx") for file in files):  # too long for the oldest
        flavours.append(tarfile.USTAR_FORMAT)
    flavour = draw(st.sampled_from(flavours))
    with tarfile.open(fileobj=buffer, mode="w", format=flavour) as archive:
        for file in files:
            header = tarfile.TarInfo(file.name)
            header.size, header.mtime = len(file.data), draw(st.sampled_from([0, 1.5]))
            if draw(st.booleans()):
                folder = tarfile.TarInfo("a folder")
                folder.type = tarfile.DIRTYPE
                archive.addfile(folder)
            archive.addfile(header, io.BytesIO(file.data))
        end = archive.offset
    blocks = draw(st.sampled_from([1, 2, 20]))  # of the end mark
    return buffer.getvalue()[:end] + bytes(512 * blocks)


def make_zip(draw: st.DrawFn, files: list[Member]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in files:
            method = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]))
            archive.writestr(zipfile.ZipInfo(file.name), file.data, method)
        if draw(st.booleans()):
            archive.comment = draw(st.text("a b", max_size=30)).encode()
    prefix = draw(st.sampled_from([b"", b"", b"#!/bin/sh\n" * 9]))
    return prefix + buffer.getvalue()


@st.composite
def archives(draw: st.DrawFn) -> tuple[str, bytes, list[Member], bool]:
    """Return what was done, the file, its members in order, and whether all of them must be read without an error."""
    kind = draw(st.sampled_from(["tar", "tar", "zip"]))
    compression = draw(st.sampled_from(sorted(COMPRESSIONS))) if kind == "tar" else "none"
    compress, make = COMPRESSIONS[compression], make_tar if kind == "tar" else make_zip
    each_alone = draw(st.booleans())
    files: list[Member] = []
    starts: list[tuple[int, int]] = []  # where each archive begins, and how many files lie before it
    data, is_whole, done = b"", True, [kind, compression]
    for number in range(draw(st.integers(1, 3))):
        if number and draw(st.booleans()):
            done.append("junk between")
            data, is_whole = data + draw(st.sampled_from(JUNK)), False
        elif number and draw(st.booleans()):
            data += bytes(512 * draw(st.integers(1, 30)))
        some = draw(members())
        starts.append((len(data), len(files)))
        files += some
        one = make(draw, some)
        data += compress(one) if each_alone else one
    if not each_alone:
        data = compress(data)
    damage = draw(st.sampled_from(["none", "none", "zeros behind", "junk behind", "cut", "flipped", "cut and doubled"]))
    done.append(damage)
    place = draw(st.integers(0, len(data)))
    if damage == "zeros behind":
        data += bytes(draw(st.integers(1, 12_000)))
    elif damage == "junk behind":
        data, is_whole = data + draw(st.sampled_from(JUNK)), False
    elif damage == "cut":
        data, is_whole = data[:place], False
        if each_alone or compression == "none":  # of an archive behind the cut nothing is left
            files = files[: next((count for start, count in starts if start >= place), len(files))]
    elif damage == "cut and doubled" and (compression != "none" or kind == "zip"):  # a tar has no checksums of files
        beginning, is_whole = data[: place + 1], False
        data = beginning + data
        if each_alone or compression == "none":
            known = b"." if kind == "tar" else b"PK\3\4.{6}"  # what tells that an archive begins
            lost = (count for start, count in starts if not re.search(known, beginning[start:], re.DOTALL))
            files = files[: next(lost, len(files))] + files
        else:
            files = files + files
    elif damage == "flipped" and (compression in ("gz", "bz2", "xz") or kind == "zip") and place < len(data):
        data, is_whole = data[:place] + bytes([data[place] ^ 1 << draw(st.integers(0, 7))]) + data[place + 1 :], False
    return ", ".join(done), data, files, is_whole


class ShortReads(io.BytesIO):
    """As a socket, which gives less than was asked for."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(size if size is None or size < 0 else max(1, size * 2 // 3))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(
    max_examples=CASES,
    deadline=None,
    derandomize="NPR_FUZZ_CASES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
@given(archives(), st.booleans())
def test_every_image_is_read_exactly_or_an_error_is_reported(made, in_short_reads):
    done, data, files, is_whole = made
    event(done)
    is_zip = done.startswith("zip")
    opened = ShortReads if in_short_reads and not is_zip else io.BytesIO
    skipped: list[str] = []
    scored, errors = [], []
    name = "a.zip" if is_zip else "a.tar"
    for item in Archive(name, lambda: opened(data)).items(lambda name, reason: skipped.append(name)):
        try:
            scored.append((item.source.partition("::")[2], item.load()))
        except OSError as error:
            assert "\n" not in str(error) and " at 0x" not in str(error)
            errors.append(str(error))
    images = [(file.name, file.data) for file in files if file.is_image]
    rest = iter(images)
    # What a damaged stream is unpacked to is known to be wrong only at its end, where its checksum is.
    is_checked_late = "tar" in done and ("flipped" in done or "doubled" in done)
    if not (errors and is_checked_late):
        assert all(one in rest for one in scored), "an item is no image of the archive, or not in order"
    assert len(scored) == len(images) or errors, "an image was left out without a word"
    if is_whole:
        assert scored == images and not errors
        assert len(skipped) == sum(not file.is_image for file in files) + (not images)  # an empty archive counts, too

"""Archives as people have them: one behind the other, with junk, from a Mac; and all ways to keep images in Parquet."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from npr_model.files import HIDDEN
from npr_model.screening.inputs import tars
from npr_model.screening.inputs.skipped import EMPTY_ARCHIVE, EMPTY_ROW, INNER_ARCHIVE, NO_IMAGE
from npr_model.screening.inputs.sources import Sources
from tests.model.conftest import encoded, noise
from tests.model.screening.test_archives_fuzz import zstd
from tests.model.screening.test_sources import loaded, tar, zipped

FIRST = {f"a{i}.png": encoded(noise(8, 8, seed=i)) for i in range(3)}
SECOND = {f"b{i}.jpg": encoded(noise(8, 8, seed=9 + i), "JPEG") for i in range(3)}
COMPRESSIONS = {"tar": bytes, "tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress, "tzst": zstd}
JUNK = b"<html>502 Bad gateway</html>" * 100


def members(path: Path | str) -> tuple[dict[str, bytes], str | None]:
    """What an archive holds by the names of its members, and what is wrong with it."""
    contents = loaded(Sources([path]))
    error = contents.pop(str(path), None)
    return {name.partition("::")[2]: data for name, data in contents.items()}, error


@pytest.fixture(params=["local", "remote"])
def put(request, tmp_path):
    """Writes a file, on this machine or elsewhere; gives its name."""

    def put(name: str, data: bytes) -> str:
        if request.param == "local":
            (tmp_path / name).write_bytes(data)
            return str(tmp_path / name)
        fsspec.filesystem("memory").pipe_file(f"/put/{name}", data)
        return f"memory:///put/{name}"

    yield put
    fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("between", [0, 512, 20_000], ids=lambda count: f"{count} zeros between")
def test_tars_that_follow_each_other(put, suffix, between):
    """As ``cat a.tar b.tar`` makes them, before or after compression."""
    compress = COMPRESSIONS[suffix]
    for number, data in enumerate(
        (
            compress(tar(files=FIRST) + bytes(between) + tar(files=SECOND) + bytes(777)),
            compress(tar(files=FIRST)) + bytes(between) + compress(tar(files=SECOND)) + bytes(777),
        )
    ):
        contents, error = members(put(f"{number}.{suffix}", data))
        assert contents == FIRST | SECOND and error is None


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("place", ["behind the tar", "behind the compressed data"])
def test_junk_behind_a_tar_is_an_error(put, suffix, place):
    compress, data = COMPRESSIONS[suffix], tar(files=FIRST)
    data = compress(data + JUNK) if place == "behind the tar" else compress(data) + JUNK
    contents, error = members(put(f"a.{suffix}", data))
    assert contents == FIRST
    assert "at byte " in error and "<html>" in error


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_second_tar_that_is_truncated_is_an_error(put, suffix):
    compress, second = COMPRESSIONS[suffix], tar(files=SECOND)
    cut = second.index(b"b2.jpg")  # between two members
    contents, error = members(put(f"a.{suffix}", compress(tar(files=FIRST) + second[:cut])))
    assert contents.items() == (FIRST | SECOND).items() - {("b2.jpg", SECOND["b2.jpg"])}
    assert "the end mark is missing" in error
    contents, error = members(put(f"b.{suffix}", compress(tar(files=FIRST)) + compress(second)[:-30]))
    assert FIRST.items() <= contents.items() and (error or suffix == "tar")


def test_a_broken_header_inside_a_tar_is_an_error(tmp_path):
    data = bytearray(tar(files=FIRST))
    data[data.index(b"a1.png")] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    contents, error = members(tmp_path / "a.tar")
    assert contents == {"a0.png": FIRST["a0.png"]} and "where the next member should begin, is b'" in error


@pytest.mark.parametrize("size", [-1, 2**40])
def test_headers_with_impossible_sizes(tmp_path, size):
    header = tarfile.TarInfo("a.png")
    header.size = size
    (tmp_path / "a.tar").write_bytes(tar(files=FIRST)[:-10240] + header.tobuf(tarfile.GNU_FORMAT) + bytes(9000))
    contents = loaded(Sources([tmp_path / "a.tar"]))
    assert any(isinstance(value, str) for value in contents.values())


def test_zips_that_follow_each_other(put):
    script = b"#!/bin/sh\n" * 9
    for number, (before, between, behind) in enumerate(
        [(b"", b"", b""), (script, script, bytes(50)), (b"", JUNK, b"")]
    ):
        data = before + zipped(files=FIRST) + between + zipped(files=SECOND) + behind
        contents, error = members(put(f"{number}.zip", data))
        assert contents == FIRST | SECOND and error is None


def test_junk_and_truncated_zips_beside_a_zip_are_errors(put):
    contents, error = members(put("a.zip", zipped(files=FIRST) + JUNK))
    assert contents == FIRST and "<html>" in error
    contents, error = members(put("b.zip", zipped(files=FIRST)[:-40] + zipped(files=SECOND)))
    assert contents == SECOND and "has no end: it is truncated" in error
    contents, error = members(put("c.zip", zipped(files=FIRST) + zipped(files=SECOND)[:300]))
    assert contents == FIRST and error


MAC = {f"{folder}{name}": data for folder in ("", "photos/", "./") for name, data in FIRST.items()}
HIDDEN_FILES = ["._a0.png", "__MACOSX/photos/._a0.png", "__MACOSX/a.png", "./._a0.png", ".x/a.png", "photos/.a.jpg"]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_hidden_files_are_skipped_and_counted(tmp_path, kind):
    files = MAC | dict.fromkeys(HIDDEN_FILES, b"\0\5\x16\7")
    (tar if kind == "tar" else zipped)(path := tmp_path / f"a.{kind}", files=files)
    source = Sources([path])
    assert loaded(source) == {f"{path}::{name}": data for name, data in MAC.items()}
    assert source.skipped == {HIDDEN: len(HIDDEN_FILES)}
    tar(tmp_path / "b.tar", files={".a.png": b"x"})
    source = Sources([path, tmp_path / "b.tar"])
    assert len(loaded(source)) == len(MAC)
    assert source.skipped == {HIDDEN: len(HIDDEN_FILES) + 1, EMPTY_ARCHIVE: 1}


def test_hidden_files_in_folders_are_counted(tmp_path):
    for name, data in (FIRST | dict.fromkeys(HIDDEN_FILES, b"x")).items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(data)
    source = Sources([tmp_path])
    assert len(loaded(source)) == len(FIRST)
    assert source.skipped == {HIDDEN: 4}  # ._a0.png, __MACOSX, .x and photos/.a.jpg


@pytest.mark.parametrize("kind", ["tar", "zip", "folder"])
def test_the_content_tells_what_is_an_image(tmp_path, kind):
    files = {"photo": FIRST["a0.png"], "x.dat": SECOND["b0.jpg"], "bad.png": b"text"}
    others = {"notes": b"text", "inner.bin": zipped(files=FIRST), "inner.tar": tar(files=FIRST), "empty": b""}
    path = tmp_path / f"a.{kind}"
    if kind == "folder":
        path.mkdir()
        for name, data in (files | others).items():
            (path / name).write_bytes(data)
    else:
        (tar if kind == "tar" else zipped)(path, files=files | others)
    source, separator = Sources([path]), "/" if kind == "folder" else "::"
    assert loaded(source) == {f"{path}{separator}{name}": data for name, data in files.items()}
    assert source.skipped == {NO_IMAGE: 2, INNER_ARCHIVE: 2}


@pytest.mark.parametrize("name", ["comic.cbz", "archive", "a.tar"])
@pytest.mark.parametrize("make", [tar, zipped])
def test_the_content_tells_the_kind_of_an_archive_that_is_named(tmp_path, name, make):
    make(tmp_path / name, files=FIRST)
    assert members(tmp_path / name) == (FIRST, None)


def test_an_archive_that_cannot_be_opened_is_not_called_damaged(tmp_path):
    (tmp_path / "list").write_text(f"{tmp_path}/gone.tar\n")
    (message,) = loaded(Sources([], files_from=str(tmp_path / "list"))).values()
    assert message == "the archive cannot be opened: No such file or directory"


BYTES = list(FIRST.values())
STRUCTS = [{"bytes": data, "path": "x.png"} for data in BYTES]
COLUMNS = {
    "binary": pa.array(BYTES, pa.binary()),
    "large_binary": pa.array(BYTES, pa.large_binary()),
    "binary_view": pa.array(BYTES, pa.binary_view()),
    "dictionary": pa.array(BYTES).dictionary_encode(),
    "struct": pa.array(STRUCTS),
    "struct of views": pa.array(STRUCTS, pa.struct({"bytes": pa.binary_view(), "path": pa.string()})),
}
LISTS = {
    "list": pa.array([[data] for data in BYTES]),
    "large_list": pa.array([[data] for data in BYTES], pa.large_list(pa.binary())),
    "fixed_size_list": pa.array([[data] for data in BYTES], pa.list_(pa.binary(), 1)),
    "list of structs": pa.array([[struct] for struct in STRUCTS]),
}


@pytest.mark.parametrize("kind", COLUMNS | LISTS)
def test_columns_of_bytes(tmp_path, kind):
    table = pa.table({"label": [0, 1, 2], "image": (COLUMNS | LISTS)[kind], "note": ["x"] * 3})
    pq.write_table(table, path := tmp_path / "a.parquet")
    names = [f"{row}::0" if kind in LISTS else str(row) for row in range(3)]
    assert members(path) == (dict(zip(names, BYTES, strict=True)), None)
    assert members(path)[0] == {
        name.partition("::")[2]: data for name, data in loaded(Sources([path], column="image")).items()
    }


def test_bytes_of_a_fixed_size(tmp_path):
    """They are read, but taken for digests if there is another column of bytes."""
    digests = pa.array([b"x" * 32] * 3, pa.binary(32))
    pq.write_table(pa.table({"image": digests}), path := tmp_path / "a.parquet")
    assert members(path)[0] == dict.fromkeys("012", b"x" * 32)
    pq.write_table(pa.table({"sha256": digests, "image": BYTES}), path)
    assert list(members(path)[0].values()) == BYTES


def test_rows_without_bytes(tmp_path):
    lists = pa.array([[{"bytes": BYTES[0], "path": "x"}, {"bytes": None, "path": "photo.png"}], [], None])
    pq.write_table(pa.table({"images": lists}), path := tmp_path / "a.parquet")
    source = Sources([path])
    contents = {name.partition("::")[2]: value for name, value in loaded(source).items()}
    assert contents == {
        "0::0": BYTES[0],
        "0::1": "the column images has no image bytes in this row, only the path photo.png",
        "2": "the column images has no image bytes in this row",
    }
    assert source.skipped == {EMPTY_ROW: 1}


@pytest.mark.parametrize(
    ("table", "column", "message"),
    [
        ({"label": [1], "text": ["x"]}, None, "has no binary column; it has: label (int64), text (string)"),
        ({"label": [1], "image": [b"x"]}, "label", "the column 'label' of {} holds no bytes; the columns are: label"),
        ({"label": [1]}, "image", "has no column 'image'; it has: label (int64)"),
        ({"a": [b"x"], "b": [{"bytes": b"x"}]}, None, "has several binary columns (a, b): choose one with --column"),
        ({"a": [{"path": "x"}]}, None, "has no binary column; it has: a (struct<path: string>)"),
    ],
)
def test_what_is_wrong_with_the_columns(tmp_path, table, column, message):
    pq.write_table(pa.table(table), path := tmp_path / "a.parquet")
    (error,) = loaded(Sources([path], column=column)).values()
    assert message.format(path) in error


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("gap", [0, 1, 2**20 + 3])
def test_parquet_files_that_follow_each_other_are_an_error(tmp_path, group, gap):
    """Also if they are of the same shape, so that the data of one would be read as the other's."""
    for name in "ab":
        images = [name.encode() * 100] * 3
        pq.write_table(pa.table({"image": images}), tmp_path / name, row_group_size=group, compression="none")
    (tmp_path / "c.parquet").write_bytes((tmp_path / "a").read_bytes() + bytes(gap) + (tmp_path / "b").read_bytes())
    _, error = members(tmp_path / "c.parquet")
    assert "several Parquet files follow each other" in error
    assert members(tmp_path / "b")[0] == dict.fromkeys("012", b"b" * 100)


def test_a_footer_that_does_not_follow_the_data_at_once(tmp_path):
    """As with an index of pages."""
    table = pa.table({"image": BYTES, "label": [1, 2, 3]})
    pq.write_table(table, path := tmp_path / "a.parquet", write_page_index=True)
    assert list(members(path)[0].values()) == BYTES


def test_compressed_data_is_not_unpacked_at_once(tmp_path, monkeypatch):
    """A member that is too large is passed over in pieces, also one that unpacks to a thousand times its size."""
    monkeypatch.setattr(tars, "MAX_BYTES", 2**20)
    largest, read = 0, tars.Pieces.read

    def watching(self, size):
        nonlocal largest
        largest = max(largest, size)
        return read(self, size)

    monkeypatch.setattr(tars.Pieces, "read", watching)
    files = {"bomb.png": bytes(2**26), "good.png": b"x"}
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar(files=files)))
    contents, error = members(tmp_path / "a.tar.gz")
    assert contents["good.png"] == b"x" and "more than the limit" in contents["bomb.png"] and error is None
    assert largest <= 2**20


def test_links_without_a_suffix_are_skipped(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("latest")
        link.type, link.linkname = tarfile.SYMTYPE, "photos"
        archive.addfile(link)
    (tmp_path / "a.tar").write_bytes(buffer.getvalue() + tar(files=FIRST))
    source = Sources([tmp_path / "a.tar"])
    assert len(loaded(source)) == 3 and source.skipped == {NO_IMAGE: 1}


def test_members_with_the_same_name_are_all_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        for data in BYTES:
            archive.writestr("a.png", data)
    assert [item.load() for item in Sources([tmp_path / "a.zip"])] == BYTES

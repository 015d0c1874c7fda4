"""Archives as people have them: one behind the other, with junk, from a Mac."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from npr_model.files import HIDDEN
from npr_model.screening.inputs import tars
from npr_model.screening.inputs.skipped import EMPTY_ARCHIVE, INNER_ARCHIVE, NO_IMAGE
from npr_model.screening.inputs.sources import Sources
from tests.model.conftest import encoded, noise
from tests.model.screening.collections import OTHERS, PICTURES, loaded, members, tar, zipped, zstd

FIRST = {f"a{i}.png": encoded(noise(8, 8, seed=i)) for i in range(3)}
SECOND = {f"b{i}.jpg": encoded(noise(8, 8, seed=9 + i), "JPEG") for i in range(3)}
COMPRESSIONS = {"tar": bytes, "tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress, "tzst": zstd}
JUNK = b"<html>502 Bad gateway</html>" * 100


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


@pytest.mark.parametrize(
    "name", ["a.tar", "a.tar.gz", "A.TGZ", "a.tar.bz2", "a.tar.xz", "a.zip"], ids=lambda name: name.partition(".")[2]
)
def test_archives(name, tmp_path):
    path = tmp_path / name
    modes = {"gz": "w:gz", "tgz": "w:gz", "bz2": "w:bz2", "xz": "w:xz", "tar": "w"}
    zipped(path) if name.endswith("zip") else tar(path, modes[name.lower().rpartition(".")[2]])
    source = Sources([path])
    assert loaded(source) == {f"{path}::{member}": data for member, data in PICTURES.items()}
    assert source.skipped == {NO_IMAGE: len(OTHERS)}
    assert loaded(source) == loaded(source)  # it can be listed again


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 0.93])
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip", "parquet"])
def test_archives_that_are_cut_off(kind, share, tmp_path):
    """What comes before the cut, then one item that says so; nothing is silently left out."""
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"image": list(PICTURES.values())}), path)
    elif kind == "zip":
        zipped(path)
    else:
        tar(path, "w:gz" if kind == "tar.gz" else "w", files=PICTURES)
    whole = path.read_bytes()
    size = len(whole) if kind != "tar" else whole.rindex(list(PICTURES.values())[-1]) + 300  # the padding is long
    path.write_bytes(whole[: int(share * size)])
    found = list(loaded(Sources([path])).items())
    *before, (name, message) = found
    assert name == str(path) and message.startswith("the archive is truncated or damaged (")
    assert all(data == PICTURES[source.partition("::")[2]] for source, data in before)
    if kind == "tar":
        assert len(before) == {0.0: 0, 0.2: 0, 0.5: 2, 0.8: 3, 0.93: 4}[share]


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_compressed_streams_one_after_another(kind, tmp_path):
    """As parallel compressors write them."""
    module = {"gz": gzip, "bz2": bz2, "xz": lzma}[kind]
    data = tar(files=PICTURES)
    (tmp_path / "a.tar").write_bytes(b"".join(module.compress(data[i : i + 1000]) for i in range(0, len(data), 1000)))
    assert len(loaded(Sources([tmp_path / "a.tar"]))) == len(PICTURES)


def test_links_in_a_tar_and_a_tar_of_nothing(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
        for name, kind in (
            ("hard.png", tarfile.LNKTYPE),
            ("soft.png", tarfile.SYMTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "a.png"
            archive.addfile(link)
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    found = {name.partition("::")[2]: value for name, value in loaded(Sources([tmp_path / "a.tar"])).items()}
    assert found.pop("a.png") == b"" and found.pop("pipe.png") == "it is not a regular file"
    assert all("it is a link to a.png" in found[name] for name in ("hard.png", "soft.png")) and len(found) == 2
    tarfile.open(tmp_path / "empty.tar", "w").close()
    assert loaded(Sources([tmp_path / "empty.tar"])) == {}


def test_a_tar_that_ends_between_two_members_is_not_whole(tmp_path):
    whole = tar(files=PICTURES)
    third = whole.index(b"part0/img2.png")  # a member's header begins with its name
    (tmp_path / "a.tar").write_bytes(whole[:third])
    found = loaded(Sources([tmp_path / "a.tar"]))
    assert len(found) == 3 and "the end mark is missing" in found[f"{tmp_path}/a.tar"]


def test_members_that_are_damaged_leave_the_others(tmp_path, monkeypatch):
    data = bytearray(zipped(files=PICTURES))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        broken = archive.infolist()[2]
    data[broken.header_offset + 60] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(data)
    found = loaded(Sources([tmp_path / "a.zip"]))
    assert len(found) == len(PICTURES)
    wrong = {name: value for name, value in found.items() if isinstance(value, str)}
    assert list(wrong) == [f"{tmp_path}/a.zip::{broken.filename}"]
    assert "cannot be read" in wrong.popitem()[1]


def test_odd_names_in_archives(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8") as archive:
        for name in ("new\nline.png", "bad\udcff.png", "grüße.png"):
            archive.addfile(tarfile.TarInfo(name))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    names = {item.source.partition("::")[2] for item in Sources([tmp_path / "a.tar"])}
    assert names == {"new\nline.png", "bad\\xff.png", "grüße.png"}


def test_a_long_tar_is_not_kept_in_memory(tmp_path, monkeypatch):
    tar(tmp_path / "a.tar", files={f"{i}.png": b"x" for i in range(2000)})
    lengths, opened = [], tars._Tar.open

    def watching(**options):
        archive = opened(**options)
        lengths.append(archive.members)
        return archive

    monkeypatch.setattr(tars._Tar, "open", watching)
    assert {len(lengths[0]) <= 2 for _ in Sources([tmp_path / "a.tar"])} == {True}
    assert len(list(Sources([tmp_path / "a.tar"]))) == 2000

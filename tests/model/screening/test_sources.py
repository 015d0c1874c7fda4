"""Every kind of source gives the same rows for the same images, and one item for whatever is wrong."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import sys
import tarfile
import zipfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from npr_model.errors import InputError
from npr_model.files import HIDDEN
from npr_model.scoring import items
from npr_model.scoring.items import Item
from npr_model.screening.inputs import remote, retries, tars, zips
from npr_model.screening.inputs.skipped import NO_IMAGE, NO_IMAGE_NAME
from npr_model.screening.inputs.sources import SourceError, Sources
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


@pytest.mark.parametrize("nested", [False, True])
def test_parquet(nested, tmp_path):
    values = [*PICTURES.values(), None]
    if nested:  # as data sets on hubs are
        column = pa.array([value and {"bytes": value, "path": "x"} for value in values])
    else:
        column = pa.array(values, pa.large_binary())
    pq.write_table(pa.table({"label": list(range(6)), "image": column}), tmp_path / "a.parquet", row_group_size=4)
    expected = {f"{tmp_path}/a.parquet::{row}": data for row, data in enumerate(PICTURES.values())}
    found = loaded(Sources([tmp_path / "a.parquet"]))
    assert found.pop(f"{tmp_path}/a.parquet::5") == "the column image has no image bytes in this row"
    assert found == expected


def test_parquet_with_several_columns_of_bytes(tmp_path):
    table = pa.table({"thumbnail": [b"t"], "image": [b"i"], "label": [1]})
    pq.write_table(table, path := tmp_path / "a.parquet")
    assert loaded(Sources([path], column="image")) == {f"{path}::0": b"i"}
    for column, message in (
        (None, r"several binary columns \(thumbnail, image\): choose"),
        ("nope", "no column 'nope'"),
    ):
        (found,) = loaded(Sources([path], column=column)).values()  # of a million shards one must not stop the others
        assert re.search(message, found)
    pq.write_table(table.select(["label"]), path)
    assert loaded(Sources([path])) == {str(path): f"{path} has no binary column; it has: label (int64)"}


def test_patterns_and_archives_in_folders(tmp_path):
    for number in (2, 10):
        tar(tmp_path / f"shard{number}.tar", files={f"{number}.png": b"x"})
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.png").write_bytes(b"a")
    assert len(loaded(Sources([f"{tmp_path}/*.tar"]))) == 2
    assert loaded(Sources([f"{tmp_path}/**/*.png"])) == {f"{tmp_path}/deep/er/a.png": b"a"}
    assert loaded(Sources([tmp_path])) == {f"{tmp_path}/deep/er/a.png": b"a"}
    with pytest.raises(SourceError, match=r"no file matches .*\*\.zip"):
        Sources([f"{tmp_path}/*.zip"])
    with pytest.raises(SourceError, match=r"no file matches .*/d\*"):  # only a folder does
        Sources([f"{tmp_path}/d*"])
    (tmp_path / "deep" / "er" / "a.png").unlink()
    with pytest.raises(SourceError, match=r"no images in folder .*; name its archives"):
        Sources([tmp_path])
    (tmp_path / "[odd].png").write_bytes(b"odd")  # a file that looks like a pattern is that file
    assert loaded(Sources([tmp_path / "[odd].png"])) == {f"{tmp_path}/[odd].png": b"odd"}


def test_lists_of_names(tmp_path, monkeypatch):
    tar(tmp_path / "a.tar")
    (tmp_path / "b c.png").write_bytes(b"b")
    odd = os.fsencode(tmp_path) + b"/\xff.png"
    Path(os.fsdecode(odd)).write_bytes(b"odd")
    lines = (
        b"\n".join(
            [
                b"b c.png\r",
                b"",
                b"gone.png",
                b"gone[1].png",
                b"a.tar",
                b"gone.tar",
                b"memory://gone/x.png",
                b"memory://gone",
                odd,
            ]
        )
        + b"\n"
    )
    (tmp_path / "list.txt").write_bytes(lines)
    monkeypatch.chdir(tmp_path)
    expected = {f"a.tar::{member}": data for member, data in PICTURES.items()} | {"b c.png": b"b"}
    expected[f"{tmp_path}/\\xff.png"] = b"odd"
    found = loaded(Sources([], files_from="list.txt"))
    assert {name: found.pop(name) for name in expected} == expected
    assert sorted(found) == ["gone.png", "gone.tar", "gone[1].png", "memory:///gone/x.png", "memory://gone"]
    assert all("No such file" in message for name, message in found.items() if name != "memory://gone")
    assert "does not exist" in found["memory://gone"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert loaded(Sources([tmp_path / "b c.png"], files_from="-")).keys() == {
        *expected, *found, f"{tmp_path}/b c.png"
    }  # fmt: skip
    with pytest.raises(SourceError, match="the list nope does not exist"):
        Sources([], files_from="nope")


@pytest.fixture
def bucket():
    """A folder of fsspec's file system in memory, with PICTURES and a tar of them."""
    files = fsspec.filesystem("memory")
    for name, data in (PICTURES | OTHERS).items():
        files.pipe_file(f"/bucket/{name}", data)
    files.pipe_file("/bucket/.hidden.png", b"x")
    files.pipe_file("/shards/a.tar", tar())
    yield "memory://bucket"
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def test_urls(bucket):
    source = Sources([bucket])
    assert loaded(source) == {f"memory:///bucket/{name}": data for name, data in PICTURES.items()}
    assert source.skipped == {NO_IMAGE_NAME: len(OTHERS), HIDDEN: 1}
    assert [item.source[-8:-4] for item in source] == ["img0", "img2", "img4", "img1", "img3"]
    one = f"{bucket}/part1/img1.png"
    assert loaded(Sources([one])) == {"memory:///bucket/part1/img1.png": PICTURES["part1/img1.png"]}
    assert len(loaded(Sources([f"{bucket}/part0/*.png"]))) == 3
    for pattern in ("shards/*.tar", "s*/a.tar", "**/?.tar"):
        assert loaded(Sources([f"memory://{pattern}"])) == {
            f"memory:///shards/a.tar::{member}": data for member, data in PICTURES.items()
        }
    assert len(loaded(Sources(["memory://bucket/*/img?.png"]))) == 5
    with pytest.raises(SourceError, match="nothing to screen at memory://bucket/"):
        Sources(["memory://bucket/*.png"])  # not at all depths
    fsspec.filesystem("memory").pipe_file("/bucket/odd[1]?.png", b"odd")
    assert loaded(Sources(["memory://bucket/odd[1]?.png"])) == {"memory:///bucket/odd[1]?.png": b"odd"}


def test_urls_in_lists_are_no_patterns(bucket, tmp_path):
    """A name with brackets is that file's; nobody is asked what a URL named like a file is before it is loaded."""
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/odd[1]?.png", b"odd")
    lines = ["memory://bucket/odd[1]?.png", "memory://bucket/part*/img0.png", "memory://shards/a.tar", "memory://x*"]
    (tmp_path / "list").write_bytes("\n".join(lines).encode() + b"\nmemory://bad\xff/\n/nul\0.png\n")
    found = loaded(Sources([], files_from=str(tmp_path / "list")))
    assert found.pop("memory:///bucket/odd[1]?.png") == b"odd"
    assert sum(name.startswith("memory:///shards/a.tar::") for name in found) == len(PICTURES)
    assert "No such file" in found["memory:///bucket/part*/img0.png"]
    assert "does not exist" in found["memory://x*"]
    assert "does not exist" in found["memory://bad\\xff/"]
    assert len(found) == len(PICTURES) + 4


def test_chained_urls_keep_the_name_of_the_archive(tmp_path):
    for name in "ab":
        zipped(tmp_path / f"{name}.zip", files={"x.png": name.encode()})
    urls = [f"zip://x.png::file://{tmp_path}/{name}.zip" for name in "ab"]
    assert loaded(Sources(urls)) == {urls[0]: b"a", urls[1]: b"b"}


@pytest.mark.parametrize("listed", [False, True])
def test_what_is_elsewhere_and_too_large_is_not_held(listed, bucket, monkeypatch):
    for module in (remote, items):
        monkeypatch.setattr(module, "MAX_BYTES", 3)
    fsspec.filesystem("memory").pipe_file("/bucket/large.png", b"large")
    (entry,) = remote.Remote("memory://bucket/large.png", listed=listed).entries(None, lambda name: None)
    with pytest.raises(OSError, match="more than the limit of 3"):
        entry.load()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nowhere", "does not exist"),
        ("nope://x", "cannot be reached: .*nope"),
        ("gs://x/y", "needs a package that is not installed: .*gcsfs"),
    ],
)
def test_urls_that_cannot_be_reached(url, message):
    with pytest.raises(InputError, match=f"{url} {message}"):
        Sources([url])


class Unreliable(MemoryFileSystem):
    """Fails every third request."""

    protocol = "unreliable"
    requests = 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("unreliable://", "memory://"))

    def _request(self):
        type(self).requests += 1
        if self.requests % 3 == 0:
            raise ConnectionResetError("connection reset by peer")

    def ls(self, *arguments, **options):
        self._request()
        return super().ls(*arguments, **options)

    def cat_file(self, *arguments, **options):
        self._request()
        return super().cat_file(*arguments, **options)

    def _open(self, *arguments, **options):
        self._request()
        return super()._open(*arguments, **options)


def test_requests_that_fail_are_tried_again(bucket, monkeypatch):
    fsspec.register_implementation("unreliable", Unreliable, clobber=True)
    monkeypatch.setattr(retries, "WAITS", (0, 0, 0))
    for url, count in (("unreliable://bucket", 5), ("unreliable://shards/a.tar", 5)):
        found = loaded(Sources([url]))
        assert len(found) == count and all(isinstance(data, bytes) for data in found.values())
    assert Unreliable.requests > 10
    monkeypatch.setattr(retries, "WAITS", ())  # one that fails for good is the item's error
    results = [loaded(Sources([f"unreliable://bucket/part0/img{i}.png"])).popitem()[1] for i in (0, 2, 4)]
    assert "connection reset by peer" in results and sum(isinstance(result, bytes) for result in results) >= 1


def test_s3(tmp_path, checkpoint, capsys, monkeypatch):
    """A real server, which s3fs talks to over HTTP."""
    server_module = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    from npr_model import cli

    server = server_module.ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        files = s3fs.S3FileSystem(skip_instance_cache=True)
        files.mkdir("photos")
        for name, data in PICTURES.items():
            files.pipe_file(f"photos/set/{name}", data)
        files.pipe_file("photos/shards/a.tar", tar())
        output = tmp_path / "scores.parquet"
        urls = ["s3://photos/set", "s3://photos/shards/a.tar"]
        assert cli.main(["screen", *urls, "-o", str(output), "--checkpoint", str(checkpoint)]) == 0
        rows = {row["source"]: row for row in pq.read_table(output).to_pylist()}
        for name in PICTURES:
            one, other = rows.pop(f"s3://photos/set/{name}"), rows.pop(f"s3://photos/shards/a.tar::{name}")
            assert one["error"] is None and (one["logit"], one["sha256"]) == (other["logit"], other["sha256"])
        assert rows == {}
        for url in ("s3://photos/set/*/*.jpg", "s3://photos/other*/x.png", "s3://nobucket/*.png"):
            assert cli.main(["screen", url, "--checkpoint", str(checkpoint)]) == 2, url
        assert cli.main(["screen", "s3://photos/nothing", "--checkpoint", str(checkpoint)]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == "npr: error: s3://photos/nothing does not exist"
    finally:
        server.stop()


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


def test_what_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    for module in (items, remote, tars, zips):
        monkeypatch.setattr(module, "MAX_BYTES", 1000)
    files = {"bomb.png": bytes(10**6), "good.png": b"x"}
    tar(tmp_path / "a.tar", files=files)
    zipped(tmp_path / "a.zip", files=files)
    (tmp_path / "bomb.png").write_bytes(bytes(1001))
    for path, message in {
        "a.tar::": "it is 1000000 bytes",
        "a.zip::": "unpacks to more than the limit",
        "": "1001",
    }.items():
        found = loaded(Sources([tmp_path / (path.rstrip(":") or "bomb.png")]))
        assert message in found[f"{tmp_path}/{path}bomb.png"]
        assert not path or found[f"{tmp_path}/{path}good.png"] == b"x"


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


def test_a_folder_is_never_held_whole(tmp_path, monkeypatch):
    from npr_model import files

    monkeypatch.setattr(files, "AT_ONCE", 4)
    for number in range(11):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    listed, scandir = [], os.scandir

    class Watching:
        def __init__(self, path):
            self.entries = scandir(path)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.entries.close()

        def __iter__(self):
            for entry in self.entries:
                listed.append(entry.name)
                yield entry

    source = Sources([tmp_path])
    monkeypatch.setattr(os, "scandir", Watching)
    items = iter(source)
    names = [next(items).source]
    assert len(listed) == 4
    names += [item.source for item in items]
    assert len(set(names)) == len(listed) == 11

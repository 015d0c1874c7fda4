"""Images at URLs of any file system that fsspec knows; requests that fail are tried again."""

from __future__ import annotations

import fsspec
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from npr_model.errors import InputError
from npr_model.files import HIDDEN
from npr_model.scoring import items
from npr_model.screening.inputs import remote, retries
from npr_model.screening.inputs.skipped import NO_IMAGE_NAME
from npr_model.screening.inputs.sources import SourceError, Sources
from tests.model.screening.collections import OTHERS, PICTURES, loaded, tar, zipped


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

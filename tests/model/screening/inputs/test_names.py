"""Lists of names: byte order marks, NUL bytes, and files that are no lists."""

from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path

import pytest

from npr_model.screening.inputs.names import LONGEST_NAME, NameListError, read_names
from npr_model.screening.inputs.skipped import EMPTY_FOLDER
from npr_model.screening.inputs.sources import SourceError, Sources
from tests.model.screening.collections import PICTURES, loaded, tar

NAMES = ["a b.png", "grüße 漢.png", "c.png"]


class Slow(io.BytesIO):
    """Gives one byte at a time, as a pipe may."""

    def read1(self, size: int = -1) -> bytes:
        return super().read1(1)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be with mark"])
@pytest.mark.parametrize("separator", ["\n", "\r\n", "\0"])
@pytest.mark.parametrize("file", [io.BytesIO, Slow])
def test_encodings(encoding, separator, file):
    text = separator.join([*NAMES[:2], "", NAMES[2], ""])
    data = b"\xfe\xff" + text.encode("utf-16-be") if "mark" in encoding else text.encode(encoding)
    assert list(read_names(file(data), "x", null_separated=separator == "\0")) == NAMES


def test_names_are_bytes():
    assert [os.fsencode(name) for name in read_names(io.BytesIO(b"\xff\n\xfe.png"), "x")] == [b"\xff", b"\xfe.png"]
    assert list(read_names(io.BytesIO(b"a\nb\0c\n\0d"), "x", null_separated=True)) == ["a\nb", "c\n", "d"]


@pytest.mark.parametrize(
    ("data", "null", "message"),
    [
        (b"a.png\0b.png\0", False, "holds NUL bytes: use --null"),
        ("a.png\n".encode("utf-16-le"), False, "save UTF-16 text with a byte order mark"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", False, "holds NUL bytes"),
        (b"a.png\nb.png\n", True, "holds lines, not names separated by NUL bytes: leave out --null"),
        (b"\xff\xfea\0b", False, "begins like utf-16-le text, but is none"),
        (b"x" * (LONGEST_NAME + 1), False, "a line of more than 65536 bytes"),
    ],
)
def test_what_is_no_list(data, null, message):
    with pytest.raises(NameListError, match="the list L") as error:
        list(read_names(io.BytesIO(data), "L", null_separated=null))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_names_come_as_they_are_written():
    """The first name is there before the list is complete."""
    reader, writer = os.pipe()
    with open(reader, "rb") as file, open(writer, "wb", buffering=0) as other:
        names = read_names(file, "x")
        other.write(b"first.png\nsec")
        assert next(names) == "first.png"
        other.write(b"ond.png\n")
        assert next(names) == "second.png"


def test_sources_of_a_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "new\nline.png").write_bytes(b"n")
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbfa.png\nodd\0name.png\n")
    contents = loaded(Sources([], files_from="list"))
    assert contents["a.png"] == b"a" and "holds a NUL byte: use --null" in contents["odd\0name.png"]
    (tmp_path / "list").write_bytes(b"a.png\0new\nline.png\0")
    assert loaded(Sources([], files_from="list", null_separated=True)) == {"a.png": b"a", "new\nline.png": b"n"}


def test_a_listed_folder_without_images_is_counted(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "list").write_text(f"{tmp_path}/empty\n{tmp_path}/a.png\n")
    source = Sources([], files_from=str(tmp_path / "list"))
    assert len(loaded(source)) == 1 and source.skipped == {EMPTY_FOLDER: 1}


def test_a_list_may_be_a_pipe(tmp_path):
    """As the shell's <(command) is."""
    (tmp_path / "a.png").write_bytes(b"a")
    os.mkfifo(tmp_path / "list")
    source = Sources([], files_from=str(tmp_path / "list"))
    writer = threading.Thread(target=(tmp_path / "list").write_text, args=(f"{tmp_path}/a.png\n",))
    writer.start()
    assert len(loaded(source)) == 1
    writer.join()
    with pytest.raises(SourceError, match="is a folder"):
        Sources([], files_from=str(tmp_path))


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

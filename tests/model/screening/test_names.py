"""Lists of names: byte order marks, NUL bytes, and files that are no lists. Patterns that the shell left alone."""

from __future__ import annotations

import io
import os
import subprocess
import threading

import pytest

from npr_model.errors import InputError
from npr_model.screening.inputs.names import LONGEST_NAME, NameListError, read_names
from npr_model.screening.inputs.patterns import expand_braces
from npr_model.screening.inputs.skipped import EMPTY_FOLDER
from npr_model.screening.inputs.sources import SourceError, Sources
from tests.model.screening.test_sources import loaded, tar

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


@pytest.mark.parametrize(
    "text",
    [
        "a{b,c}d",
        "{a,b}{1..3}",
        "x{01..03}",
        "{a,{b,c}d}",
        "{a}",
        "{",
        "}{a,b}",
        "{a,b",
        "{10..1..4}",
        "{c..a}",
        "{-1..1}",
        "{}",
        "x{,y}",
        "{{a,b}",
        "{1..2}{x}",
        "{008..10}",
        "{-01..1}",
        "{a,b}.{tar,zip}",
    ],
)
def test_braces_are_those_of_bash(text):
    shell = subprocess.run(["bash", "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, check=True)
    assert expand_braces(text) == shell.stdout.splitlines()


def test_too_many_alternatives():
    with pytest.raises(InputError, match="more than 100000 alternatives"):
        expand_braces("{1..99999999999}")
    with pytest.raises(InputError, match="too many braces inside braces"):
        expand_braces("{a," * 1500 + "}" * 1500)


def test_braces_on_the_command_line(tmp_path):
    for name in "ab":
        tar(tmp_path / f"{name}.tar", files={f"{name}.png": name.encode()})
    assert sorted(loaded(Sources([f"{tmp_path}/{{a,b}}.tar"])).values()) == [b"a", b"b"]
    assert sorted(loaded(Sources([f"file://{tmp_path}/{{a..b}}.t*"])).values()) == [b"a", b"b"]
    with pytest.raises(SourceError, match=r"/c\.tar does not exist"):
        Sources([f"{tmp_path}/{{a,c}}.tar"])
    (tmp_path / "{a,b}.tar").write_bytes(tar(files={"odd.png": b"odd"}))  # what exists is that file
    assert list(loaded(Sources([f"{tmp_path}/{{a,b}}.tar"])).values()) == [b"odd"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/*.png", ["a.png", "x/b.png", "x/y/c.png"]),
        ("x/**/*.png", ["x/b.png", "x/y/c.png"]),
        ("**/y/*", ["x/y/c.png", "x/y/d.jpg"]),
        ("*/**", ["x/b.png", "x/y/c.png", "x/y/d.jpg"]),
        ("**/[cd].*", ["x/y/c.png", "x/y/d.jpg"]),
        ("*.png", ["a.png"]),
        ("x**/b.png", ["x/b.png"]),
    ],
)
@pytest.mark.parametrize("relative", [False, True])
def test_patterns(tmp_path, monkeypatch, pattern, expected, relative):
    for name in ("a.png", "x/b.png", "x/y/c.png", "x/y/d.jpg", "x/.hidden/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    prefix = "" if relative else f"{tmp_path}/"
    assert [item.source for item in Sources([prefix + pattern])] == [prefix + name for name in expected]
